import assert from 'node:assert/strict'
import { test } from 'node:test'
import { buildTarget } from '../support/build.js'
import { counterValue, fileBytes, instructionBytes } from '../support/memory.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { attach, countingProgram, load, MAP_PERCPU_ARRAY, native, readCount, uprobePmu, withoutRights } from './kernel.js'

function countingMap(): number {
  return native.bpfMapCreate({ type: MAP_PERCPU_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 1, name: 'test_count' })
}

test('one registration counts the hits of four threads exactly', { skip: withoutRights }, async (t) => {
  const program = buildTarget(t, 'usdt')
  const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
  const target = await Target.start(t, program)
  const mapFd = countingMap()
  const progFd = await load(countingProgram(mapFd))
  t.after(() => {
    for (const fd of [progFd, mapFd]) native.closeFd(fd)
  })
  await attach(t, program, fileOffset, progFd, target.pid, Number(refCtrOffset))
  assert.equal(await target.askNumber('threads 4 25000'), 100_000)
  assert.equal(readCount(mapFd, true), 100_000n)
})

test('the breakpoint and the counter are there when the promise resolves, and gone when closing does', {
  skip: withoutRights,
}, async (t) => {
  const program = buildTarget(t, 'usdt')
  const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
  const target = await Target.start(t, program)
  const original = fileBytes(program, fileOffset)
  for (const tid of [target.pid, -1]) {
    assert.equal(counterValue(target.pid, program, refCtrOffset), 0)
    const perfFd = await native.perfEventOpenUprobe({
      type: uprobePmu(),
      path: program,
      fileOffset,
      refCtrOffset: Number(refCtrOffset),
      retprobe: false,
      tid,
    })
    assert.equal(counterValue(target.pid, program, refCtrOffset), 1)
    assert.notEqual(instructionBytes(target.pid, program, fileOffset), original)
    await native.closeFds([perfFd])
    assert.equal(counterValue(target.pid, program, refCtrOffset), 0)
    assert.equal(instructionBytes(target.pid, program, fileOffset), original)
  }
})

test('a disabled event counts nothing, an enabled one by itself', { skip: withoutRights }, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [note] = notesOf(program, 't:plain')
  assert.ok(note)
  const target = await Target.start(t, program)
  const options = { type: uprobePmu(), path: program, fileOffset: note.fileOffset, refCtrOffset: 0, retprobe: false, tid: target.pid }
  const perfFd = await native.perfEventOpenUprobe(options)
  t.after(() => native.closeFds([perfFd]))
  await target.ask('plain 7')
  assert.equal(native.perfEventReadCount(perfFd), 7n)
  native.perfEventEnable(perfFd, false)
  await target.ask('plain 7')
  assert.equal(native.perfEventReadCount(perfFd), 7n)
  native.perfEventEnable(perfFd, true)
  await target.ask('plain 7')
  assert.equal(native.perfEventReadCount(perfFd), 14n)
})

test('a refusal rejects with the call, the errno and its name', { skip: withoutRights }, async () => {
  const missing = { type: uprobePmu(), path: '/nonexistent/file', fileOffset: 0n, refCtrOffset: 0, retprobe: false, tid: -1 }
  await assert.rejects(native.perfEventOpenUprobe(missing), { syscall: 'perf_event_open', code: 'ENOENT', errno: 2 })
  await assert.rejects(native.perfEventSetBpf(0, 0), { syscall: 'ioctl(PERF_EVENT_IOC_SET_BPF)', code: 'ENOTTY', errno: 25 })
  await assert.rejects(native.taskWatchOpen(0x7fffffff), { syscall: 'perf_event_open', code: 'ESRCH', errno: 3 })
})

test('a wrong argument throws a TypeError that names it', () => {
  const good = { type: 1, path: '/x', fileOffset: 0n, refCtrOffset: 0, retprobe: false, tid: -1 }
  const open = native.perfEventOpenUprobe as (options: unknown) => unknown
  const wrong: [unknown, RegExp][] = [
    [undefined, /^options must be an object$/],
    [{ ...good, type: 1.5 }, /^type must be an integer from 0 to 4294967295$/],
    [{ ...good, type: Number.NaN }, /^type must be/],
    [{ ...good, path: 'a\0b' }, /^path must be a string without NUL$/],
    [{ ...good, path: 7 }, /^path must be/],
    [{ ...good, fileOffset: 1 }, /^fileOffset must be a bigint/],
    [{ ...good, fileOffset: -1n }, /^fileOffset must be a bigint/],
    [{ ...good, fileOffset: 1n << 64n }, /^fileOffset must be a bigint/],
    [{ ...good, refCtrOffset: 2 ** 32 }, /^refCtrOffset must be/],
    [{ ...good, retprobe: 1 }, /^retprobe must be a boolean$/],
    [{ ...good, tid: -2 }, /^tid must be/],
  ]
  for (const [options, message] of wrong) assert.throws(() => open(options), { name: 'TypeError', message })
  const throwing = Object.defineProperty({}, 'type', { get: () => assert.fail('from a getter') })
  assert.throws(() => open(throwing), /from a getter/)
})
