/**
 * Running out of descriptors or memory, wherever it happens.
 *
 * Opening a file of /proc fails for want of a descriptor as it does when the process is gone. Taken for the latter, a tracer at its limit would report living
 * processes as dead and mapped files as missing. So whoever takes failures for an answer asks here first.
 */
import { EMFILE, ENFILE, ENOMEM } from './errno.js'
import { errnoOf, isSystemCallError, UprobeError } from './errors.js'

const WHAT: ReadonlyMap<number | undefined, string> = new Map([
  [EMFILE, 'this process has no file descriptor left. Raise its limit (ulimit -n)'],
  [ENFILE, 'the system has no file descriptor left. Raise fs.file-max'],
  [ENOMEM, 'the kernel has no memory left. Raise the limit of the control group'],
])

/**
 * `ERR_UPROBE_LIMIT` if the failure says that a limit is reached, `null` if it says something else.
 * @param doing - what failed, as the beginning of a sentence: `Process 7 cannot be looked at`
 */
export function limitError(error: unknown, doing: string): UprobeError | null {
  const what = WHAT.get(errnoOf(error))
  if (what === undefined || error instanceof UprobeError || !isSystemCallError(error)) return null
  return new UprobeError('ERR_UPROBE_LIMIT', `${doing}: ${what}, or attach to less.`, {
    cause: error,
    errno: errnoOf(error),
    syscall: error.syscall,
  })
}

/** Whether a system call failed, and not for want of anything: what it was asked for is not there, or not for us. */
export function saysAbsent(error: unknown): boolean {
  return isSystemCallError(error) && limitError(error, '') === null && !isLimit(error)
}

/** Whether a failure that was explained says something of what was asked for: it is broken, or not there. A limit that is reached says nothing of it. */
export function saysUnusable(error: unknown): boolean {
  return error instanceof UprobeError && !isLimit(error)
}

/** Whether a failure that was explained says that a limit is reached. */
export function isLimit(error: unknown): boolean {
  return error instanceof UprobeError && error.code === 'ERR_UPROBE_LIMIT'
}
