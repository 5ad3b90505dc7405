import assert from 'node:assert/strict'
import { test } from 'node:test'
import { buildTarget } from '../support/build.js'
import { counterValue } from '../support/memory.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { countingProgram, insn, load, MAP_ARRAY, MAP_PERCPU_ARRAY, native, readCount, withoutRights } from './kernel.js'

const TRACE_UPROBE_MULTI = 48
const MAP_HASH = 1
const MAP_OF_MAPS = 12

test('reads the values of a range of keys, one after another', { skip: withoutRights }, (t) => {
  const mapFd = native.bpfMapCreate({ type: MAP_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 5, name: 'test_map' })
  t.after(() => native.closeFd(mapFd))
  for (let key = 0; key < 5; key++) native.bpfMapUpdate(mapFd, key, Buffer.of(key, 0, 0, 0, 0, 0, 0, 1))
  const values = new BigUint64Array(native.bpfMapRead(mapFd, 1, 3, 8))
  assert.deepEqual(
    [...values],
    [1n, 2n, 3n].map((low) => low | (1n << 56n)),
  )
  assert.throws(() => native.bpfMapRead(mapFd, 4, 2, 8), { syscall: 'bpf(BPF_MAP_LOOKUP_ELEM)', code: 'ENOENT' })
})

test('reads as many values of a per-CPU map as the kernel copies', { skip: withoutRights }, (t) => {
  const mapFd = native.bpfMapCreate({ type: MAP_PERCPU_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 1, name: 'test_map' })
  t.after(() => native.closeFd(mapFd))
  const each = Array.from({ length: native.possibleCpus() }, (_, cpu) => BigInt(cpu + 1))
  native.bpfMapUpdate(mapFd, 0, new Uint8Array(BigUint64Array.from(each).buffer))
  assert.deepEqual([...new BigUint64Array(native.bpfMapRead(mapFd, 0, 1, 8 * each.length))], each)
})

test('takes the entries of a hash map, so many at a time, until there are none', { skip: withoutRights }, (t) => {
  const mapFd = native.bpfMapCreate({ type: MAP_HASH, keyBytes: 4, valueBytes: 8, maxEntries: 100, name: 'test_map' })
  t.after(() => native.closeFd(mapFd))
  for (let key = 0; key < 100; key++) native.bpfMapUpdate(mapFd, key, Buffer.of(key, 0, 0, 0, 0, 0, 0, 1))
  const taken: number[] = []
  for (const expected of [60, 40, 0]) {
    const entries = Buffer.from(native.bpfMapTake(mapFd, 4, 8, 60))
    assert.equal(entries.length, 12 * expected)
    for (let at = 0; at < entries.length; at += 12) {
      assert.equal(entries.readBigUInt64LE(at + 4), BigInt(entries.readUInt32LE(at)) | (1n << 56n))
      taken.push(entries.readUInt32LE(at))
    }
  }
  assert.deepEqual(
    taken.sort((one, other) => one - other),
    Array.from({ length: 100 }, (_, key) => key),
  )
  assert.throws(() => native.bpfMapTake(mapFd, 0, 8, 1), { message: 'keyBytes must be positive' })
})

test('makes entries of zeros for the keys of another hash map, so many at a time, as far as there is room', {
  skip: withoutRights,
}, (t) => {
  const mapOf = (maxEntries: number): number => {
    const mapFd = native.bpfMapCreate({ type: MAP_HASH, keyBytes: 4, valueBytes: 8, maxEntries, name: 'test_map' })
    t.after(() => native.closeFd(mapFd))
    return mapFd
  }
  const valuesOf = (mapFd: number): Map<number, bigint> => {
    const entries = Buffer.from(native.bpfMapTake(mapFd, 4, 8, 1000))
    return new Map(
      Array.from({ length: entries.length / 12 }, (_, index) => [
        entries.readUInt32LE(12 * index),
        entries.readBigUInt64LE(12 * index + 4),
      ]),
    )
  }
  const [from, to, small] = [mapOf(100), mapOf(100), mapOf(10)] as const
  for (let key = 0; key < 100; key++) native.bpfMapUpdate(from, key, Buffer.of(key, 0, 0, 0, 0, 0, 0, 1))
  native.bpfMapUpdate(to, 7, Buffer.of(1, 2, 3, 4, 5, 6, 7, 8))
  let last = native.bpfMapReserve(from, to, 4, 8, new Uint8Array(0), 60)
  assert.equal(last.length, 4)
  last = native.bpfMapReserve(from, to, 4, 8, last, 60)
  assert.equal(last.length, 0)
  const reserved = valuesOf(to)
  assert.equal(reserved.size, 100)
  // One that was there is as it was.
  for (const [key, value] of reserved) assert.equal(value, key === 7 ? 0x0807_0605_0403_0201n : 0n)
  native.bpfMapReserve(from, small, 4, 8, new Uint8Array(0), 100)
  assert.equal(valuesOf(small).size, 10)
  assert.equal(valuesOf(from).size, 100)
  assert.throws(() => native.bpfMapReserve(from, to, 0, 8, new Uint8Array(0), 1), { message: 'keyBytes must be positive' })
  assert.throws(() => native.bpfMapReserve(from, to, 4, 8, new Uint8Array(3), 1), { message: 'after must be a key or empty' })
})

test('replaces a map in a map of maps', { skip: withoutRights }, async (t) => {
  const inner = native.bpfMapCreate({ type: MAP_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 1, name: 'test_map' })
  const outer = native.bpfMapCreate({ type: MAP_OF_MAPS, keyBytes: 4, valueBytes: 4, maxEntries: 1, name: 'test_map', innerMapFd: inner })
  t.after(() => native.closeFds([inner, outer]))
  await native.bpfMapReplaceInner(outer, 0, inner)
  await assert.rejects(native.bpfMapReplaceInner(outer, 1, inner), { syscall: 'bpf(BPF_MAP_UPDATE_ELEM)', code: 'E2BIG' })
})

test('refuses a tracepoint that is not there', { skip: withoutRights }, () => {
  assert.throws(() => native.bpfRawTracepointOpen('nowhere', 0), { syscall: 'bpf(BPF_RAW_TRACEPOINT_OPEN)' })
})

test('a rejected program says what the verifier said', { skip: withoutRights }, async () => {
  const readsUninitialised = Buffer.concat([insn(0xbf, 0, 3, 0, 0), insn(0x95, 0, 0, 0, 0)])
  await assert.rejects(load(readsUninitialised), (error: Error & { verifierLog?: string }) => {
    assert.match(error.verifierLog ?? '', /R3 !read_ok/)
    assert.equal(error.message, 'bpf(BPF_PROG_LOAD) failed with EACCES (13)')
    return true
  })
})

test('refuses arguments that the kernel would read out of bounds', () => {
  const program = { type: 2, expectedAttachType: 0, insns: Buffer.alloc(8), license: 'GPL', name: 'x' }
  assert.throws(() => native.bpfProgLoad({ ...program, insns: Buffer.alloc(12) }), {
    message: 'insns must be whole instructions of 8 bytes',
  })
  assert.throws(() => native.bpfProgLoad({ ...program, name: 'sixteen bytes ..' }), { message: 'name must be at most 15 bytes long' })
  const link = { progFd: 0, path: '/x', fileOffsets: new BigUint64Array(2), refCtrOffsets: null, retprobe: false, pid: 0 }
  assert.throws(() => native.bpfLinkCreateUprobeMulti({ ...link, cookies: new BigUint64Array(1) }), {
    message: 'cookies must be as long as fileOffsets',
  })
  assert.throws(() => native.bpfLinkCreateUprobeMulti({ ...link, cookies: new BigUint64Array(2), refCtrOffsets: new BigUint64Array(3) }), {
    message: 'refCtrOffsets must be null, or as long as fileOffsets',
  })
})

test('one uprobe_multi link arms several sites with their counters', { skip: withoutRights }, async (t) => {
  const program = buildTarget(t, 'usdt')
  const gated = gatedNote(program, 't:gated')
  const [plain] = notesOf(program, 't:plain')
  assert.ok(plain)
  const target = await Target.start(t, program)
  const mapFd = native.bpfMapCreate({ type: MAP_PERCPU_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 1, name: 'test_count' })
  t.after(() => native.closeFd(mapFd))
  const progFd = await load(countingProgram(mapFd), TRACE_UPROBE_MULTI)
  t.after(() => native.closeFd(progFd))
  let linkFd: number
  try {
    linkFd = await native.bpfLinkCreateUprobeMulti({
      progFd,
      path: program,
      fileOffsets: BigUint64Array.of(plain.fileOffset, gated.fileOffset),
      refCtrOffsets: BigUint64Array.of(0n, gated.refCtrOffset),
      cookies: BigUint64Array.of(1n, 2n),
      retprobe: false,
      pid: target.pid,
    })
  } catch (error) {
    // Linux before 6.6 does not know the link.
    assert.equal((error as { code?: string }).code, 'EINVAL')
    return t.skip('this kernel has no uprobe_multi link')
  }
  assert.equal(counterValue(target.pid, program, gated.refCtrOffset), 1)
  await target.ask('plain 30')
  await target.ask('gated 12')
  assert.equal(readCount(mapFd, true), 42n)
  assert.equal(native.bpfProgInfo(progFd).recursionMisses, 0n)
  assert.ok(native.bpfProgInfo(progFd).id > 0)
  await native.closeFds([linkFd])
  assert.equal(counterValue(target.pid, program, gated.refCtrOffset), 0)
})
