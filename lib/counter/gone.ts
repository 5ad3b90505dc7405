/**
 * Processes that are gone, or out of reach, when something is done about their counters.
 */
import { EFAULT, ESRCH, ESTALE } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import { TargetProcess } from '../target/process.js'

/** Whether a store failed since the memory is not there any more: the address space, the mapping, or what was mapped. The bit went with it. */
export function isGone(error: unknown): boolean {
  const errno = errnoOf(error)
  return errno === ESRCH || errno === EFAULT || errno === ESTALE
}

/** Whether a failure says something of one process among many, and not of us. */
export function isOfOneProcess(error: unknown): boolean {
  return error instanceof UprobeError ? error.code !== 'ERR_UPROBE_LIMIT' : isSystemCallError(error)
}

/**
 * A process; `null` if there is none of that number.
 * @throws {UprobeError} `ERR_UPROBE_LIMIT`, `ERR_UPROBE_UNSUPPORTED`
 */
export function openIfThere(native: Native, pid: number): TargetProcess | null {
  try {
    return TargetProcess.open(native, pid)
  } catch (error) {
    if (error instanceof UprobeError && error.code === 'ERR_UPROBE_TARGET_GONE') return null
    throw error
  }
}
