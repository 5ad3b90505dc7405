/**
 * What the tests of the addon need of the kernel, assembled by hand: BPF programs of a dozen instructions, and probes on fresh targets. Nothing of
 * lib/ is used but the addon itself, so that a failure here is the addon's.
 */
import { readFileSync } from 'node:fs'
import type { TestContext } from 'node:test'
import { loadNative, type Native, type RingReader, type RingReaderOptions } from '../../lib/native.js'

/** Why a test that probes cannot run, or `false`. In CI it must run: it then fails instead. */
export const withoutRights: string | false =
  process.getuid?.() === 0 || process.env.CI === 'true' ? false : 'probing needs root: run the tests as root'

export const native: Native = loadNative()

/** Type number of the uprobe PMU. */
export function uprobePmu(): number {
  return Number(readFileSync('/sys/bus/event_source/devices/uprobe/type', 'utf8'))
}

export const MAP_ARRAY = 2
export const MAP_PERCPU_ARRAY = 6
export const MAP_RINGBUF = 27
export const PROG_KPROBE = 2

/** One BPF instruction. */
export function insn(code: number, dst: number, src: number, off: number, imm: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeUInt8(code, 0)
  bytes.writeUInt8((src << 4) | dst, 1)
  bytes.writeInt16LE(off, 2)
  bytes.writeInt32LE(imm, 4)
  return bytes
}

const moveImm = (dst: number, imm: number) => insn(0xb7, dst, 0, 0, imm)
const moveReg = (dst: number, src: number) => insn(0xbf, dst, src, 0, 0)
const call = (helper: number) => insn(0x85, 0, 0, 0, helper)
const exit = () => insn(0x95, 0, 0, 0, 0)
const loadMap = (dst: number, mapFd: number) => Buffer.concat([insn(0x18, dst, 1, 0, mapFd), insn(0, 0, 0, 0, 0)])

/** `map[0] += 1`, 11 instructions. */
function increment(mapFd: number): Buffer {
  return Buffer.concat([
    insn(0x62, 10, 0, -4, 0), // *(u32 *)(fp - 4) = 0, the key
    moveReg(2, 10),
    insn(0x07, 2, 0, 0, -4),
    loadMap(1, mapFd), // two slots
    call(1), // bpf_map_lookup_elem
    insn(0x15, 0, 0, 2, 0), // null: skip
    moveImm(1, 1),
    insn(0xdb, 0, 1, 0, 0), // lock *(u64 *)r0 += r1
  ])
}

/** Counts hits in `map[0]`. */
export function countingProgram(mapFd: number): Buffer {
  return Buffer.concat([increment(mapFd), moveImm(0, 0), exit()])
}

/** Bytes of a record of {@link recordingProgram} as `take` gives it. */
export const RECORD_BYTES = 8 + 16

/** Submit flags: wake a reader that has caught up with this very record. */
const WAKE_IF_CAUGHT_UP = 0
/** Submit flags: wake the reader in any case (BPF_RB_FORCE_WAKEUP). */
const WAKE_ALWAYS = 2

/** What else a record has, which begins with the first argument of t:plain as u64, and the time as u64. */
export interface RecordShape {
  /** At least 24 where there is an id. */
  readonly payloadBytes: number
  /** The number of a probe, where the records of the library have it. */
  readonly probeId: number | null
}

const PLAIN_RECORD: RecordShape = { payloadBytes: RECORD_BYTES - 8, probeId: null }

/** Writes a record for each hit. What does not fit is counted in `lossMap[0]`. */
export function recordingProgram(ringFd: number, lossMapFd: number, forceWakeup: boolean, shape: RecordShape = PLAIN_RECORD): Buffer {
  const firstArgument = process.arch === 'arm64' ? 0 : 112 // of struct pt_regs: x0, rdi
  const loss = Buffer.concat([increment(lossMapFd), moveImm(0, 0), exit()])
  const record = Buffer.concat([
    moveReg(7, 0),
    insn(0x79, 1, 6, firstArgument, 0),
    insn(0x7b, 7, 1, 0, 0),
    call(5), // bpf_ktime_get_ns
    insn(0x7b, 7, 0, 8, 0),
    ...(shape.probeId === null ? [] : [insn(0x62, 7, 0, 16, shape.probeId)]),
    moveReg(1, 7),
    moveImm(2, forceWakeup ? WAKE_ALWAYS : WAKE_IF_CAUGHT_UP),
    call(132), // bpf_ringbuf_submit
    moveImm(0, 0),
    exit(),
  ])
  return Buffer.concat([
    moveReg(6, 1),
    loadMap(1, ringFd),
    moveImm(2, shape.payloadBytes),
    moveImm(3, 0),
    call(131), // bpf_ringbuf_reserve
    insn(0x15, 0, 0, record.length / 8, 0), // null: to `loss`
    record,
    loss,
  ])
}

try {
  // Before Linux 5.11 maps count against RLIMIT_MEMLOCK, which is small by default.
  native.raiseMemlockLimit()
} catch (error) {
  // Without CAP_SYS_RESOURCE, as in many containers. Where the limit counts, making the first map fails and says so.
  if (!(error instanceof Error && 'code' in error && error.code === 'EPERM')) throw error
}

/** Loads a program for a uprobe. */
export function load(insns: Uint8Array, expectedAttachType = 0): Promise<number> {
  return native.bpfProgLoad({ type: PROG_KPROBE, expectedAttachType, insns, license: 'Dual MIT/GPL', name: 'uprobe_test' })
}

/** Reads `map[0]`, summed over CPUs where there is one a CPU. */
export function readCount(mapFd: number, perCpu: boolean): bigint {
  const values = new BigUint64Array(native.bpfMapRead(mapFd, 0, 1, 8 * (perCpu ? native.possibleCpus() : 1)))
  return values.reduce((sum, value) => sum + value, 0n)
}

/** Registers a uprobe on every process that maps `path`, or on one, runs `progFd` at it, and closes it when the test is over. */
export async function attach(
  t: TestContext,
  path: string,
  fileOffset: bigint,
  progFd: number,
  tid = -1,
  refCtrOffset = 0,
): Promise<number> {
  const perfFd = await native.perfEventOpenUprobe({ type: uprobePmu(), path, fileOffset, refCtrOffset, retprobe: false, tid })
  t.after(() => native.closeFds([perfFd]))
  await native.perfEventSetBpf(perfFd, progFd)
  return perfFd
}

/** The ring of a test, its reader, and what came through. */
export interface Recording {
  readonly reader: RingReader
  readonly ringFd: number
  readonly lossFd: number
  readonly progFd: number
  /** First argument and time of each record, in order. */
  readonly records: { index: number; time: bigint }[]
  /** How often the bell rang. */
  bells: number
  /** Takes all that waits into `records`. */
  takeAll(): void
  /** Hits that found the ring full. */
  lost(): bigint
}

/** How {@link record} differs from the usual. */
export interface RecordOptions extends Partial<Omit<RingReaderOptions, 'ring' | 'onDoorbell'>> {
  ringBytes?: number
  /** Doorbells take nothing. */
  paused?: boolean
  /** Each hit wakes the reader. */
  forceWakeup?: boolean
  /** Called at the end of each doorbell. */
  onDoorbell?: (recording: Recording, events: boolean) => void
}

/** Makes a ring with a reader, whose doorbell takes all that waits. */
export async function record(t: TestContext, options: RecordOptions = {}): Promise<Recording> {
  const { paused = false, forceWakeup = false, onDoorbell, ringBytes = 1 << 20, ...others } = options
  const ringFd = native.bpfMapCreate({ type: MAP_RINGBUF, keyBytes: 0, valueBytes: 0, maxEntries: ringBytes, name: 'test_ring' })
  const lossFd = native.bpfMapCreate({ type: MAP_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 1, name: 'test_loss' })
  const progFd = await load(recordingProgram(ringFd, lossFd, forceWakeup))
  const records: Recording['records'] = []
  const takeAll = () => {
    for (let batch = reader.take(); batch !== undefined; batch = reader.take()) {
      const view = new DataView(batch)
      if (batch.byteLength % RECORD_BYTES !== 0) throw new Error(`a batch of ${batch.byteLength} bytes`)
      for (let at = 0; at < batch.byteLength; at += RECORD_BYTES) {
        if (view.getUint32(at, true) !== 16) throw new Error('a record with another head')
        records.push({ index: Number(view.getBigUint64(at + 8, true) & 0xffff_ffffn), time: view.getBigUint64(at + 16, true) })
      }
    }
  }
  const recording: Recording = {
    reader: new native.RingReader({
      ring: await native.mapRing(ringFd, ringBytes),
      flushIntervalMs: 20,
      pendingLimitBytes: 64 << 20,
      onDoorbell: (events) => {
        recording.bells++
        if (!paused) takeAll()
        onDoorbell?.(recording, events)
      },
      ...others,
    }),
    ringFd,
    lossFd,
    progFd,
    records,
    bells: 0,
    takeAll,
    lost: () => readCount(lossFd, false),
  }
  const { reader } = recording
  t.after(async () => {
    await reader.close()
    for (const fd of [progFd, ringFd, lossFd]) native.closeFd(fd)
  })
  return recording
}
