/**
 * Repairs of each state, made for real. What leaks a uprobe of the kernel on purpose is in test/guest-only.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import test, { type TestContext } from 'node:test'
import { pino } from 'pino'
import { counters, type RepairEntry, repair } from '../../lib/index.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { counterValue, isArmed, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'
import { register } from './places.js'

const GCC = needs({ programs: ['gcc'] })

interface Scene {
  readonly target: Target
  readonly leaseDir: string
  value(): number
  write(value: number): void
  repair(dryRun: boolean): Promise<RepairEntry[]>
}

/** A process, and the counter that three sites share. */
async function scene(t: TestContext): Promise<Scene> {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const refCtrOffset = notesOf(target.program, 't:shared')[0]?.refCtrOffset ?? 0n
  return {
    target,
    leaseDir,
    value: () => counterValue(target.pid, target.program, refCtrOffset),
    write: (value) => writeCounter(target.pid, target.program, refCtrOffset, value),
    repair: (dryRun) => repair({ pid: target.pid, dryRun, leaseDir }),
  }
}

function summary(entries: readonly RepairEntry[]): unknown[] {
  return entries.map(({ name, problem, before, after, applied }) => [name, problem, before, after, applied])
}

test('nothing is wrong: no entry', GCC, async (t) => {
  const { target, repair } = await scene(t)
  const probe = await newTracer(t).attach('usdt:t:*', { pid: target.pid })
  assert.deepEqual(await repair(false), [])
  await probe.detach()
  assert.deepEqual(await repair(false), [])
})

test(
  'a count that a killed tool left: the dry run changes nothing, the repair takes it away, and a second finds nothing',
  GCC,
  async (t) => {
    const { write, value, repair } = await scene(t)
    write(3)
    assert.deepEqual(summary(await repair(true)), [['shared', 'leaked-count', 3, 0, false]])
    assert.equal(value(), 3)
    assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 3, 0, true]])
    assert.equal(value(), 0)
    assert.deepEqual(await repair(false), [])
  },
)

test('a leak beside a living tracer: exactly what leaked goes, and the tracer goes on', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const probe = await newTracer(t).attach('usdt:t:shared', { pid: target.pid })
  write(value() + 4)
  assert.deepEqual(summary(await repair(true)), [['shared', 'leaked-count', 7, 3, false]])
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 7, 3, true]])
  assert.equal(value(), 3)
  assert.equal(await target.askNumber('shared 2'), 6)
  await detachComplete(probe, 6)
  assert.equal(value(), 0)
})

test('a leak beside one registered site of three: the pins of the others are taken back', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const notes = notesOf(target.program, 't:shared')
  const takeBack = await register(t, target, notes[1] ?? assert.fail(), 'with its counter')
  write(value() + 3)
  assert.equal(value(), 4)
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 4, 1, true]])
  assert.equal(value(), 1)
  await takeBack()
  assert.equal(value(), 0)
  for (const { fileOffset } of notes) assert.equal(isArmed(target.pid, target.program, fileOffset), false)
})

test('a leak whose sites somebody has registered without the counter cannot be pinned, and is left', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const takeBack = await register(t, target, notesOf(target.program, 't:shared')[0] ?? assert.fail(), 'without a counter')
  write(2)
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 2, 2, false]])
  assert.equal(value(), 2)
  await takeBack()
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 2, 0, true]])
})

for (const [before, problem] of [
  [0x8000, 'foreign-claim'],
  [0x8001, 'underflow'],
  [0xffff, 'underflow'],
] as const) {
  test(`0x${before.toString(16)} that nobody accounts for (${problem})`, GCC, async (t) => {
    const { target, write, value, repair } = await scene(t)
    write(before)
    assert.deepEqual(summary(await repair(true)), [['shared', problem, before, 0, false]])
    assert.equal(value(), before)
    assert.deepEqual(summary(await repair(false)), [['shared', problem, before, 0, true]])
    assert.equal(value(), 0)
    await detachComplete(await newTracer(t).attach('usdt:t:shared', { pid: target.pid }), 0)
  })
}

test('a negative value under a living tracer: the number of its sites is stored, and its end gives 0', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const probe = await newTracer(t).attach('usdt:t:shared', { pid: target.pid })
  write(0xfff0)
  assert.deepEqual(summary(await repair(false)), [['shared', 'underflow', 0xfff0, 3, true]])
  assert.equal(value(), 3)
  await detachComplete(probe, 0)
  assert.equal(value(), 0)
})

test('a breakpoint with a holder that is listed nowhere is left to it', GCC, async (t) => {
  const { target, value, repair } = await scene(t)
  const [note] = notesOf(target.program, 't:shared')
  assert.ok(note)
  const takeBack = await register(t, target, note, 'with its counter')
  assert.deepEqual(summary(await repair(true)), [['shared', 'stuck-breakpoint', 1, 1, false]])
  assert.deepEqual(summary(await repair(false)), [['shared', 'stuck-breakpoint', 1, 1, false]])
  assert.equal(isArmed(target.pid, target.program, note.fileOffset), true)
  await takeBack()
  assert.equal(value(), 0)
})

test('the claim of a killed agent, and what children inherited from it', GCC, async (t) => {
  const { target, leaseDir, value } = await scene(t)
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:shared', { pid: target.pid, counter: 'msb' }), 'attached')
  const child = await target.askNumber('fork-hold')
  await agent.stop()
  const before = leaseFiles(leaseDir)
  const dry = await repair({ leaseDir, dryRun: true })
  assert.deepEqual(
    dry.filter(({ problem }) => problem === 'orphan-claim').map(({ pid, before: b, after, applied }) => [pid, b, after, applied]),
    [
      [target.pid, 0x8000, 0, false],
      [child, 0x8000, 0, false],
    ],
  )
  assert.deepEqual(leaseFiles(leaseDir), before)
  assert.equal(value(), 0x8000)
  assert.deepEqual(
    (await repair({ leaseDir, dryRun: false, pid: target.pid })).map(({ pid, applied }) => [pid, applied]),
    [
      [target.pid, true],
      [child, true],
    ],
  )
  assert.equal(value(), 0)
  assert.deepEqual(leaseFiles(leaseDir), ['locks'])
  assert.equal((await counters(child, { leaseDir })).find(({ name }) => name === 'shared')?.state, 'idle')
})

test('a process under a debugger is left alone', { ...GCC, ...needs({ programs: ['gcc', 'strace'] }) }, async (t) => {
  const { target, write, value, repair } = await scene(t)
  write(2)
  const strace = spawn('strace', ['-qq', '-o', '/dev/null', '-p', String(target.pid)], { stdio: 'ignore' })
  t.after(() => strace.kill('SIGKILL'))
  while (!/TracerPid:\t[1-9]/.test(execFileSync('cat', [`/proc/${target.pid}/status`], { encoding: 'utf8' })))
    await new Promise(setImmediate)
  const [entry] = await repair(false)
  assert.equal(entry?.applied, false)
  assert.match(entry?.note ?? '', new RegExp(`process ${strace.pid} debugs`))
  assert.equal(value(), 2)
  strace.kill('SIGTERM')
  await once(strace, 'close')
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 2, 0, true]])
})

test('each change is written to the log, with who asked', GCC, async (t) => {
  const { target, leaseDir, write } = await scene(t)
  const lines: Array<Record<string, unknown>> = []
  const logger = pino({ level: 'warn' }, { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) })
  write(1)
  await repair({ pid: target.pid, leaseDir, logger })
  assert.deepEqual(lines, [])
  await repair({ pid: target.pid, leaseDir, logger, dryRun: false })
  const { audit, pid, problem, before, after, applied, uid } = lines[0] ?? assert.fail()
  assert.deepEqual(
    [audit, pid, problem, before, after, applied, uid],
    ['repair', target.pid, 'leaked-count', 1, 0, true, process.getuid?.()],
  )
  assert.equal(lines.length, 1)
})
