/**
 * The trials of `doctor()`: does what an attach does, on this process and the package's own addon, and takes it back.
 *
 * The site is `usdt:uprobe:selftest` in the addon, which fires only in `fireSelfTest`. It is registered for this process alone, so that no other
 * process is slowed down or changed. Its hits come from a thread of their own: a perf event without BPF would see only the thread it was opened on.
 */
import { compileCapture, STATS_VALUE_BYTES } from '../capture/compile.js'
import { type Arch, bindOperands, functionArguments } from '../capture/operands.js'
import { readUsdtNotes } from '../elf/usdt-notes.js'
import { UprobeError } from '../errors.js'
import { addonPath, loadNative, type Native } from '../native.js'
import {
  BPF_LICENSE,
  BPF_MAP_TYPE_PERCPU_ARRAY,
  BPF_MAP_TYPE_RINGBUF,
  BPF_PROG_TYPE_KPROBE,
  createMap,
  loadProgram,
} from '../register/bpf-objects.js'
import { closeRegistrations } from '../register/close.js'
import { multiSupport } from '../register/multi-support.js'
import { readUprobePmu, type UprobePmu } from '../register/pmu.js'
import { readHits } from '../register/stats.js'
import { TargetFile } from '../target/file.js'

/** How a trial ended. */
export type Trial =
  | { readonly outcome: 'passed' }
  | { readonly outcome: 'failed'; readonly error: Error }
  | { readonly outcome: 'not-tried'; readonly because: string }

/** Everything that was tried. */
export interface Trials {
  /** The addon was loaded. */
  readonly addon: Trial
  /** The description of the uprobe PMU, or why there is none. */
  readonly pmu: UprobePmu | Error
  /** Maps and a program that reads arguments and a string were created. */
  readonly bpf: Trial
  /** A probe was registered with that program, and its hits were counted. */
  readonly perf: Trial
  /** The uprobe_multi link is there, and filters by process as it should. */
  readonly multi: Trial
  /** See `Native.uprobeSyscallErrno`; `null` without the addon. */
  readonly uprobeSyscallErrno: number | null
}

const HITS = 3
/** Smallest size that is a multiple of every page size of x64 and arm64. */
const RING_BYTES = 65_536

const passed: Trial = { outcome: 'passed' }

function notTried(because: string): Trial {
  return { outcome: 'not-tried', because }
}

function failed(error: unknown): Trial {
  return { outcome: 'failed', error: error instanceof Error ? error : new Error(String(error)) }
}

/** Tries everything, each as far as what it builds on goes. Never throws. */
export async function runTrials(): Promise<Trials> {
  let native: Native
  try {
    native = loadNative()
  } catch (error) {
    const without = notTried('the addon is not loaded')
    return { addon: failed(error), pmu: tryPmu(), bpf: without, perf: without, multi: without, uprobeSyscallErrno: null }
  }
  const pmu = tryPmu()
  const fds: number[] = []
  try {
    const program = await tryProgram(native, fds)
    return {
      addon: passed,
      pmu,
      bpf: 'trial' in program ? program.trial : passed,
      perf: 'trial' in program ? notTried('there is no BPF program to attach') : await tryPerf(native, pmu, program),
      multi: 'trial' in program ? notTried('there is no BPF program to attach') : await tryMulti(native),
      uprobeSyscallErrno: native.uprobeSyscallErrno(),
    }
  } finally {
    await closeRegistrations(native, fds)
  }
}

function tryPmu(): UprobePmu | Error {
  try {
    return readUprobePmu()
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error))
  }
}

interface LoadedProgram {
  readonly progFd: number
  readonly statsFd: number
}

/** Loads a program that uses what the programs of real probes use: registers, user memory, the ring and atomic counts. */
async function tryProgram(native: Native, fds: number[]): Promise<LoadedProgram | { trial: Trial }> {
  try {
    const arch: Arch = process.arch === 'arm64' ? 'arm64' : 'x64'
    const statsFd = createMap(native, {
      type: BPF_MAP_TYPE_PERCPU_ARRAY,
      keyBytes: 4,
      valueBytes: STATS_VALUE_BYTES,
      maxEntries: 1,
      name: 'uprobe_doctor',
    })
    fds.push(statsFd)
    const ringFd = createMap(native, {
      type: BPF_MAP_TYPE_RINGBUF,
      keyBytes: 0,
      valueBytes: 0,
      maxEntries: RING_BYTES,
      name: 'uprobe_doctor',
    })
    fds.push(ringFd)
    const insns = compileCapture({
      arch,
      attach: 'perf',
      probeId: 0,
      slot: 0,
      shapes: [{ operands: bindOperands(functionArguments(arch), 0n, new Map()), strings: [0], stringLimit: 64 }],
      statsFd,
      ringFd,
      ringBytes: RING_BYTES,
      excludeTid: null,
    })
    const progFd = await loadProgram(native, {
      type: BPF_PROG_TYPE_KPROBE,
      expectedAttachType: 0,
      insns,
      license: BPF_LICENSE,
      name: 'uprobe_doctor',
    })
    fds.push(progFd)
    return { progFd, statsFd }
  } catch (error) {
    return { trial: failed(error) }
  }
}

async function tryPerf(native: Native, pmu: UprobePmu | Error, { progFd, statsFd }: LoadedProgram): Promise<Trial> {
  if (pmu instanceof Error) return notTried('there is no uprobe PMU')
  try {
    const hits = await countHits(native, pmu, progFd, statsFd)
    if (hits === HITS) return passed
    return failed(
      new UprobeError('ERR_UPROBE_NOT_ARMED', `a probe in this process was registered, but ${hits} of ${HITS} hits were counted`),
    )
  } catch (error) {
    return failed(error)
  }
}

/** Probes the addon in this process, fires, and answers how many hits the program counted. */
async function countHits(native: Native, pmu: UprobePmu, progFd: number, statsFd: number): Promise<number> {
  const file = TargetFile.open(native, addonPath())
  let perfFd: number | undefined
  try {
    const notes = await readUsdtNotes(await file.elf())
    const fileOffset = notes.find(({ provider, name }) => provider === 'uprobe' && name === 'selftest')?.fileOffset ?? null
    if (fileOffset === null)
      throw new UprobeError('ERR_UPROBE_NATIVE', 'The addon carries no usdt:uprobe:selftest. Install the package again.')
    perfFd = await native.perfEventOpenUprobe({
      type: pmu.type,
      path: file.kernelPath,
      fileOffset,
      refCtrOffset: 0,
      retprobe: false,
      tid: process.pid,
    })
    await native.perfEventSetBpf(perfFd, progFd)
    native.fireSelfTest(HITS)
    return readHits(native, statsFd)
  } finally {
    if (perfFd !== undefined) await closeRegistrations(native, [perfFd])
    file.close()
  }
}

async function tryMulti(native: Native): Promise<Trial> {
  try {
    const { oneProcess, reason } = await multiSupport(native)
    return oneProcess ? passed : notTried(reason ?? 'the kernel does not offer it')
  } catch (error) {
    return failed(error)
  }
}
