/**
 * The thread that reads the records of BPF programs and hands them to JavaScript in batches.
 *
 * In guests on 5.10 and newest only: it takes long, and the others do not differ here.
 */
import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { type TestContext, test } from 'node:test'
import type { MappedRing } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { mappedRings } from '../support/leftovers.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { countTurns, waitFor } from '../support/wait.js'
import {
  attach,
  load,
  MAP_ARRAY,
  MAP_RINGBUF,
  native,
  RECORD_BYTES,
  type Recording,
  record,
  recordingProgram,
  uprobePmu,
  withoutRights,
} from './kernel.js'

/** The most that is handed over in one piece (kChunkBytes of native/chunk.h), without the last record. */
const CHUNK_BYTES = (1 << 18) - RECORD_BYTES

/** A target whose t:plain writes into the recording's ring: `plain N` makes N records that are numbered from 0. */
async function start(t: TestContext, recording: Recording): Promise<Target> {
  const program = buildTarget(t, 'usdt')
  const [note] = notesOf(program, 't:plain')
  assert.ok(note)
  const target = await Target.start(t, program)
  await attach(t, program, note.fileOffset, recording.progFd, target.pid)
  return target
}

/** What the reading thread has used: how often it went to sleep, and its user and system time in ticks. */
function usage({ reader }: Recording): { switches: string | undefined; ticks: string[] } {
  const task = `/proc/self/task/${reader.tid}`
  const switches = readFileSync(`${task}/status`, 'utf8').match(/^voluntary_ctxt_switches:\s+(\d+)/m)?.[1]
  return { switches, ticks: readFileSync(`${task}/stat`, 'utf8').replace(/.*\) /, '').split(' ').slice(11, 13) }
}

/** After a silence, so many hits in a row are each read at once (kReadsAtOnce, native/reader_thread.cc). */
const READS_AT_ONCE = 4

/** Makes the hits that are read at once, one by one, and waits until the reader sleeps for the rest of its interval. */
async function useUp(recording: Recording, target: Target): Promise<void> {
  for (let hit = 1; hit <= READS_AT_ONCE; hit++) {
    await target.ask('plain 1')
    await waitFor(`hit ${hit}`, () => recording.records.length === hit)
  }
  await fallAsleep(recording)
}

/** Waits until the reader sleeps and has not woken for a while. */
async function fallAsleep(recording: Recording): Promise<void> {
  await waitFor('the reader to sleep', async () => {
    const { switches } = usage(recording)
    await new Promise((resolve) => setTimeout(resolve, 100))
    return isSleeping(recording) && switches === usage(recording).switches
  })
}

const isSleeping = ({ reader }: Recording) => readFileSync(`/proc/self/task/${reader.tid}/stat`, 'utf8').includes(') S ')
const indexes = (recording: Recording) => recording.records.map((r) => r.index)
const upTo = (count: number) => Array.from({ length: count }, (_, index) => index)

test('delivers every record once and in order', { skip: withoutRights }, async (t) => {
  const recording = await record(t)
  const target = await start(t, recording)
  await target.ask('plain 20000')
  await recording.reader.drain()
  assert.equal(recording.lost(), 0n)
  assert.deepEqual(indexes(recording), upTo(20_000))
})

test('delivers a single hit without being asked', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { flushIntervalMs: 60_000 })
  const target = await start(t, recording)
  const before = process.hrtime.bigint()
  await target.ask('plain 1')
  await waitFor('the hit', () => recording.records.length === 1)
  const [hit] = recording.records
  assert.ok(hit !== undefined && hit.time > before && hit.time < process.hrtime.bigint())
})

test('reads and wakes once an interval while hits keep coming', { skip: withoutRights }, async (t) => {
  const flushIntervalMs = 100
  let bytes = 0
  const recording = await record(t, {
    flushIntervalMs,
    // No quarter of it fills up in that time, which would wake the reader sooner.
    ringBytes: 64 << 20,
    // The records are only counted: where to look at one takes longer than to make one, a bell would never end.
    paused: true,
    onDoorbell: ({ reader }) => {
      for (let batch = reader.take(); batch !== undefined; batch = reader.take()) bytes += batch.byteLength
    },
  })
  const target = await start(t, recording)
  const before = usage(recording)
  const startNs = process.hrtime.bigint()
  await target.ask('spin 1')
  await waitFor('ten bells', () => recording.bells >= 10)
  const { bells } = recording
  const sleeps = Number(usage(recording).switches) - Number(before.switches)
  const elapsedMs = Number(process.hrtime.bigint() - startNs) / 1e6
  const intervals = elapsedMs / flushIntervalMs + READS_AT_ONCE + 1
  // What is read at once is handed over in pieces, and each may ring.
  const pieces = Math.floor(bytes / CHUNK_BYTES)
  assert.ok(bells <= intervals + pieces, `${bells} bells in ${elapsedMs} ms, with ${pieces} full pieces`)
  // No hit wakes it in between. It may sleep once more for a lock that JavaScript has at that moment.
  assert.ok(sleeps <= 2 * (intervals + pieces), `it slept ${sleeps} times in ${elapsedMs} ms`)
  const executed = await target.askNumber('spin-stop')
  await recording.reader.drain()
  assert.equal(bytes / RECORD_BYTES + Number(recording.lost()), executed)
  assert.equal(recording.lost(), 0n)
})

test('lets no hit wake it for the rest of the interval, unless a drain asks', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { flushIntervalMs: 60_000 })
  const target = await start(t, recording)
  await useUp(recording, target)
  const before = usage(recording)
  await target.ask('plain 100')
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.deepEqual(usage(recording), before)
  assert.equal(recording.records.length, READS_AT_ONCE)
  await recording.reader.drain()
  assert.equal(recording.records.length, READS_AT_ONCE + 100)
})

test('reads before the interval is over when a program finds the ring a quarter full', { skip: withoutRights }, async (t) => {
  const ringBytes = 4096
  const recording = await record(t, { flushIntervalMs: 60_000, ringBytes, forceWakeup: true })
  const target = await start(t, recording)
  await useUp(recording, target)
  const quarter = ringBytes / 4 / RECORD_BYTES
  await target.ask(`plain ${Math.ceil(quarter)}`)
  await waitFor('the others', () => recording.records.length > quarter)
})

test('delivers the end of a burst, and each of the hits after it, without being asked', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { flushIntervalMs: 5 })
  const target = await start(t, recording)
  let hits = 0
  for (const burst of [3000, 1, 1, 500, ...Array.from({ length: 3 * READS_AT_ONCE }, () => 1), 2]) {
    await target.ask(`plain ${burst}`)
    hits += burst
    await waitFor(`${hits} hits`, () => recording.records.length === hits)
  }
  assert.equal(recording.lost(), 0n)
})

test('a reader goes on where the one before it stopped', { skip: withoutRights }, async (t) => {
  const ringBytes = 1 << 20
  const recording = await record(t, { flushIntervalMs: 60_000, ringBytes })
  const target = await start(t, recording)
  // It then keeps from the kernel how far it has read.
  await useUp(recording, target)
  await recording.reader.close()
  await target.ask('plain 3')
  const second = new native.RingReader({
    ring: await native.mapRing(recording.ringFd, ringBytes),
    flushIntervalMs: 5,
    pendingLimitBytes: 1 << 20,
    onDoorbell: () => undefined,
  })
  t.after(() => second.close())
  await second.drain()
  assert.equal(second.take()?.byteLength, 3 * RECORD_BYTES)
})

test('uses no CPU while nothing happens', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { flushIntervalMs: 5 })
  const target = await start(t, recording)
  await target.ask('plain 1000')
  await recording.reader.drain()
  // It has gone to sleep for good when it has not woken for many intervals.
  await fallAsleep(recording)
  const before = usage(recording)
  await new Promise((resolve) => setTimeout(resolve, 300))
  assert.deepEqual(usage(recording), before)
  // And it still wakes.
  await target.ask('plain 1')
  await waitFor('the hit', () => recording.records.length === 1001)
})

test('leaves records in the ring at the bound, and loses none when they are taken in time', { skip: withoutRights }, async (t) => {
  const pendingLimitBytes = 100 * RECORD_BYTES
  const recording = await record(t, { paused: true, pendingLimitBytes, flushIntervalMs: 0 })
  const target = await start(t, recording)
  await target.ask('plain 1000')
  await waitFor('the bell', () => recording.bells > 0)
  const drained = recording.reader.drain()
  const first = await waitFor('the first batch', () => recording.reader.take())
  assert.ok(first.byteLength <= pendingLimitBytes, `${first.byteLength} bytes waited`)
  let records = first.byteLength / RECORD_BYTES
  await waitFor('the others', () => {
    for (let batch = recording.reader.take(); batch !== undefined; batch = recording.reader.take()) {
      assert.ok(batch.byteLength <= pendingLimitBytes)
      records += batch.byteLength / RECORD_BYTES
    }
    return records === 1000
  })
  await drained
  assert.equal(recording.lost(), 0n)
})

test('delivered and lost add up when nobody takes and the ring overflows', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { paused: true, pendingLimitBytes: 64 * RECORD_BYTES, ringBytes: 4096, flushIntervalMs: 0 })
  const target = await start(t, recording)
  await target.ask('plain 5000')
  const drained = recording.reader.drain()
  await waitFor('the rest', () => {
    recording.takeAll()
    return recording.records.length + Number(recording.lost()) === 5000
  })
  await drained
  // 64 waited, and the ring holds 170: no more can have been kept.
  assert.ok(recording.lost() >= 5000n - 64n - 170n, `${recording.lost()} lost`)
  const kept = indexes(recording)
  assert.deepEqual(kept.slice(0, 64), upTo(64))
  assert.deepEqual(
    kept,
    [...new Set(kept)].sort((a, b) => a - b),
  )
})

test('a drain resolves only after all that was committed before it has been offered', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { flushIntervalMs: 60_000 })
  const target = await start(t, recording)
  for (let round = 1; round <= 50; round++) {
    await target.ask('plain 10')
    await recording.reader.drain()
    assert.equal(recording.records.length, 10 * round)
  }
})

test('drains of an empty ring, and many at once, resolve', { skip: withoutRights }, async (t) => {
  const recording = await record(t)
  await recording.reader.drain()
  await Promise.all(Array.from({ length: 100 }, () => recording.reader.drain()))
})

test('a drain waits for room, and close rejects it', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { paused: true, pendingLimitBytes: RECORD_BYTES, flushIntervalMs: 0 })
  const target = await start(t, recording)
  await target.ask('plain 3')
  await waitFor('the bell', () => recording.bells > 0)
  let settled = false
  const drained = recording.reader.drain().finally(() => {
    settled = true
  })
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
  assert.equal(settled, false)
  const closed = recording.reader.close()
  await assert.rejects(drained, { message: 'the ring reader is closed' })
  await closed
})

test('a closed reader answers, and closes again', { skip: withoutRights }, async (t) => {
  const { reader } = await record(t)
  const task = `/proc/self/task/${reader.tid}`
  assert.equal(readFileSync(`${task}/comm`, 'utf8'), 'uprobe-reader\n')
  await reader.close()
  // Who waits for a thread goes on when it lets go of its stack, and a moment later the kernel takes it off its list.
  await waitFor('the thread to be gone', () => !existsSync(task))
  assert.equal(mappedRings(), 0)
  await reader.close()
  assert.equal(reader.take(), undefined)
  assert.equal(reader.waits, false)
  assert.deepEqual(reader.takeEvents(), [])
  assert.throws(() => reader.watch(0, 'pidfd'), { message: 'the ring reader is closed' })
  reader.unwatch(1)
  reader.ref()
  reader.unref()
  await assert.rejects(reader.drain(), { message: 'the ring reader is closed' })
})

test('a doorbell for a drain tells of no events', { skip: withoutRights }, async (t) => {
  const told: boolean[] = []
  const { reader } = await record(t, { onDoorbell: (_, events) => told.push(events) })
  await reader.drain()
  assert.deepEqual(told, [false])
})

test('closes from within its own doorbell', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { onDoorbell: ({ reader }) => void reader.close() })
  await assert.rejects(recording.reader.drain(), { message: 'the ring reader is closed' })
  assert.equal(recording.bells, 1)
})

test('an exception in the doorbell is an uncaught exception, and the next bell rings', { skip: withoutRights }, async (t) => {
  const recording = await record(t, {
    onDoorbell: ({ bells }) => {
      if (bells === 1) throw new Error('thrown by the doorbell')
    },
  })
  const uncaught = new Promise<Error>((resolve) => process.setUncaughtExceptionCaptureCallback(resolve))
  t.after(() => process.setUncaughtExceptionCaptureCallback(null))
  await recording.reader.drain()
  assert.equal((await uncaught).message, 'thrown by the doorbell')
  await recording.reader.drain()
  assert.equal(recording.bells, 2)
})

test('refuses what does not describe a ring', async () => {
  assert.throws(() => native.mapRing(0, 5000), { name: 'TypeError', message: 'ringBytes must be a power of two' })
  assert.throws(() => native.mapRing(0, 512), { name: 'TypeError', message: /^ringBytes must be an integer from/ })
  await assert.rejects(native.mapRing(1e6, 4096), { syscall: 'fcntl(F_DUPFD_CLOEXEC)', code: 'EBADF' })
})

test('refuses a map that is no ring, or a ring of another size', { skip: withoutRights }, async (t) => {
  const array = native.bpfMapCreate({ type: MAP_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 4096, name: 'test_array' })
  const ring = newRing(t, 8192)
  t.after(() => native.closeFd(array))
  const refusal = { syscall: 'bpf(BPF_OBJ_GET_INFO_BY_FD)', code: 'EINVAL' }
  await assert.rejects(native.mapRing(array, 4096), refusal)
  await assert.rejects(native.mapRing(ring, 4096), refusal)
  assert.equal(mappedRings(), 0)
})

test('a mapped ring is for one reader, and for none that is refused', { skip: withoutRights }, async (t) => {
  const ring = await native.mapRing(newRing(t, 8192), 8192)
  const options = { ring, flushIntervalMs: 20, pendingLimitBytes: 1, onDoorbell: () => undefined }
  assert.throws(() => new native.RingReader({ ...options, flushIntervalMs: -1 }), { name: 'TypeError' })
  const reader = new native.RingReader(options)
  const noRing = { name: 'TypeError', message: 'ring must be a mapped ring that no reader has' }
  for (const other of [ring, reader, {}, null, 7]) {
    assert.throws(() => new native.RingReader({ ...options, ring: other as MappedRing }), noRing)
  }
  await reader.close()
})

/** A ring, which is closed when the test is over. */
function newRing(t: TestContext, ringBytes: number): number {
  const fd = native.bpfMapCreate({ type: MAP_RINGBUF, keyBytes: 0, valueBytes: 0, maxEntries: ringBytes, name: 'test_ring' })
  t.after(() => native.closeFd(fd))
  return fd
}

test('a large ring is mapped in pieces, of which a child gets none, and unmapped when its reader is closed', {
  skip: withoutRights,
}, async (t) => {
  const ringBytes = 64 << 20
  const ring = await native.mapRing(newRing(t, ringBytes), ringBytes)
  // The page that we write; and twice the data with the page that the kernel writes, 16 MiB at a time.
  assert.equal(mappedRings(), 1 + 9)
  const flags = readFileSync('/proc/self/smaps', 'latin1').matchAll(/ r--s .*anon_inode:bpf-map\n(?:\w+:.*\n)*?VmFlags: (.*)/g)
  const pieces = [...flags].map(([, text = '']) => text.split(' '))
  assert.equal(pieces.length, 9)
  // "Do not copy area on fork" (Documentation/filesystems/proc.rst).
  assert.ok(pieces.every((piece) => piece.includes('dc')))
  const reader = new native.RingReader({ ring, flushIntervalMs: 20, pendingLimitBytes: 1, onDoorbell: () => undefined })
  await reader.close()
  assert.equal(mappedRings(), 0)
})

/** How often the event loop turns while `work` is under way. */
async function turnsDuring(work: () => Promise<unknown>): Promise<number> {
  const loop = countTurns()
  await work()
  loop.stop()
  return loop.turns
}

test('the event loop turns while a large ring is mapped, and while it is unmapped', { skip: withoutRights }, async (t) => {
  const ringBytes = 256 << 20
  const mapFd = newRing(t, ringBytes)
  // Either takes some milliseconds. A busy machine can give them to the other thread alone, but does not do so every time.
  let most = { mapping: 0, unmapping: 0 }
  for (let attempt = 0; attempt < 8 && Math.min(most.mapping, most.unmapping) < 10; attempt++) {
    let ring: MappedRing | undefined
    const mapping = await turnsDuring(async () => {
      ring = await native.mapRing(mapFd, ringBytes)
    })
    assert.ok(ring)
    const reader = new native.RingReader({ ring, flushIntervalMs: 20, pendingLimitBytes: 1, onDoorbell: () => undefined })
    const unmapping = await turnsDuring(() => reader.close())
    most = { mapping: Math.max(most.mapping, mapping), unmapping: Math.max(most.unmapping, unmapping) }
  }
  assert.ok(Math.min(most.mapping, most.unmapping) >= 10, JSON.stringify(most))
})

/** Lengths of payloads, and the numbers in them: two that differ in one of the two only from the first. */
const KINDS = { first: [24, 1], same: [24, 1], longer: [32, 1], other: [24, 2] } as const

for (const [second, distance] of [
  ['same', 32],
  ['longer', 0],
  ['other', 0],
] as const) {
  test(`says whether the records of a batch are alike: some, and behind them ${second} ones`, { skip: withoutRights }, async (t) => {
    const program = buildTarget(t, 'usdt')
    const [note] = notesOf(program, 't:plain')
    assert.ok(note)
    const target = await Target.start(t, program)
    const recording = await record(t, { paused: true })
    const { reader, ringFd, lossFd } = recording
    const hit = async (kind: keyof typeof KINDS, hits: number): Promise<void> => {
      const [payloadBytes, probeId] = KINDS[kind]
      const progFd = await load(recordingProgram(ringFd, lossFd, false, { payloadBytes, probeId }))
      const { fileOffset } = note
      const perfFd = await native.perfEventOpenUprobe({
        type: uprobePmu(),
        path: program,
        fileOffset,
        refCtrOffset: 0,
        retprobe: false,
        tid: target.pid,
      })
      await native.perfEventSetBpf(perfFd, progFd)
      await target.ask(`plain ${hits}`)
      await native.closeFds([perfFd])
      native.closeFd(progFd)
    }
    const take = async (): Promise<[number | undefined, number]> => {
      await reader.drain()
      return [reader.take()?.byteLength, reader.takenDistance]
    }
    await hit('first', 3)
    await waitFor('the hits', () => reader.waits)
    assert.deepEqual(await take(), [3 * 32, 32])
    assert.equal(reader.waits, false)
    // Read by the thread at different times, and put together while they wait.
    await hit('first', 3)
    await reader.drain()
    await hit(second, 2)
    const [payloadBytes] = KINDS[second]
    assert.deepEqual(await take(), [3 * 32 + 2 * (8 + payloadBytes), distance])
    assert.deepEqual(await take(), [undefined, 0])
  })
}

test('knows nothing of records that name no probe', { skip: withoutRights }, async (t) => {
  const recording = await record(t, { paused: true })
  const target = await start(t, recording)
  await target.ask('plain 1')
  await recording.reader.drain()
  assert.equal(recording.reader.take()?.byteLength, RECORD_BYTES)
  assert.equal(recording.reader.takenDistance, 0)
})
