/**
 * Creating BPF maps and programs, and explaining why the kernel refuses.
 */
import { EACCES, EMFILE, ENOMEM, ENOSYS, EPERM } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import type { BpfMap, BpfProgram, Native } from '../native.js'
import { missingRight } from '../rights.js'

/** BPF_PROG_TYPE_KPROBE: uprobes run programs of this type (include/uapi/linux/bpf.h). */
export const BPF_PROG_TYPE_KPROBE = 2
/** BPF_TRACE_UPROBE_MULTI: what a program for a uprobe_multi link must expect. */
export const BPF_TRACE_UPROBE_MULTI = 48
/** BPF_PROG_TYPE_RAW_TRACEPOINT */
export const BPF_PROG_TYPE_RAW_TRACEPOINT = 17
/** BPF_MAP_TYPE_HASH */
export const BPF_MAP_TYPE_HASH = 1
/** BPF_MAP_TYPE_PERCPU_HASH */
export const BPF_MAP_TYPE_PERCPU_HASH = 5
/** BPF_MAP_TYPE_LRU_HASH */
export const BPF_MAP_TYPE_LRU_HASH = 9
/** BPF_MAP_TYPE_ARRAY_OF_MAPS */
export const BPF_MAP_TYPE_ARRAY_OF_MAPS = 12
/** BPF_MAP_TYPE_ARRAY */
export const BPF_MAP_TYPE_ARRAY = 2
/** BPF_MAP_TYPE_PERCPU_ARRAY */
export const BPF_MAP_TYPE_PERCPU_ARRAY = 6
/** BPF_MAP_TYPE_RINGBUF (5.8 and later) */
export const BPF_MAP_TYPE_RINGBUF = 27

/** The helpers that read memory and time are for GPL-compatible programs only (`gpl_only` in kernel/trace/bpf_trace.c). */
export const BPF_LICENSE = 'Dual MIT/GPL'

/** What became of RLIMIT_MEMLOCK: nothing yet, or what trying to raise it came to. */
let memlock: 'as found' | 'raised' | 'fixed' = 'as found'

/**
 * Creates a small map.
 * @throws {UprobeError} `ERR_UPROBE_BPF_PERMISSION`, `ERR_UPROBE_UNSUPPORTED`, `ERR_UPROBE_LIMIT` or `ERR_UPROBE_BPF_REJECTED`
 */
export function createMap(native: Native, map: BpfMap): number {
  const before = memlock
  try {
    return native.bpfMapCreate(map)
  } catch (error) {
    if (mayFitNow(native, error, before)) return createMap(native, map)
    throw explainBpf(error, `the map ${map.name}`)
  }
}

/**
 * Creates a map that may be large. The kernel allocates and clears all of it at once: 256 MiB for a ring took 50 ms, 100,000 groups with a histogram a second. So it does that on
 * a thread of libuv's, and the event loop goes on.
 * @throws {UprobeError} as {@link createMap}
 */
export async function createLargeMap(native: Native, map: BpfMap): Promise<number> {
  const before = memlock
  try {
    return await native.bpfMapCreateLarge(map)
  } catch (error) {
    if (mayFitNow(native, error, before)) return createLargeMap(native, map)
    throw explainBpf(error, `the map ${map.name}`)
  }
}

/**
 * Whether it is worth trying again to create a map. Before 5.11 the memory of maps counts against RLIMIT_MEMLOCK, and too little of it is reported as EPERM (bpf_charge_memlock). The limit is raised once.
 * @param before - what had become of the limit when the map was refused; another that was refused at the same time may have raised it since
 */
function mayFitNow(native: Native, error: unknown, before: typeof memlock): boolean {
  if (errnoOf(error) !== EPERM || before !== 'as found') return false
  if (memlock === 'as found') memlock = raiseMemlock(native) ? 'raised' : 'fixed'
  return memlock === 'raised'
}

/** Tells whether that worked. Without CAP_SYS_RESOURCE it does not. */
function raiseMemlock(native: Native): boolean {
  try {
    native.raiseMemlockLimit()
    return true
  } catch (error) {
    if (isSystemCallError(error)) return false
    throw error
  }
}

/**
 * Loads a program.
 * @throws {UprobeError} as {@link createMap}
 */
export async function loadProgram(native: Native, program: BpfProgram): Promise<number> {
  try {
    return await native.bpfProgLoad(program)
  } catch (error) {
    throw explainBpf(error, `the program ${program.name}`)
  }
}

function explainBpf(error: unknown, what: string): unknown {
  const errno = errnoOf(error)
  if (errno === undefined) return error
  const details = { cause: error, errno, syscall: 'bpf' }
  const log = error instanceof Error && 'verifierLog' in error ? String(error.verifierLog) : ''
  if (errno === ENOSYS) {
    return new UprobeError('ERR_UPROBE_UNSUPPORTED', 'This kernel has no BPF (CONFIG_BPF_SYSCALL). Capturing hits takes it.', details)
  }
  if (errno === EPERM || (errno === EACCES && log === '')) {
    return new UprobeError(
      'ERR_UPROBE_BPF_PERMISSION',
      `The kernel refused ${what}: hits are captured with BPF, and without it only one thread of the target would be seen. ${missingRight('bpf')}`,
      details,
    )
  }
  if (errno === EMFILE || errno === ENOMEM) {
    return new UprobeError(
      'ERR_UPROBE_LIMIT',
      `The kernel has no memory or file descriptor left for ${what}. Raise the limit, or attach less.`,
      details,
    )
  }
  const reason = log === '' ? '' : ` The verifier says: ${log.trim().split('\n').slice(-3).join(' | ')}`
  return new UprobeError(
    'ERR_UPROBE_BPF_REJECTED',
    `The kernel refused ${what} (errno ${errno}).${reason} It takes Linux 5.8 or later; otherwise please report this.`,
    details,
  )
}
