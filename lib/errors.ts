/**
 * Every error of this package, as a value that a program can act on.
 *
 * A `UprobeError` has a stable `code`, a message that says what failed and what to do about it, and, where the kernel
 * was asked, the `syscall` and `errno` it answered with. Messages are for people and may change; codes do not. Each code
 * has a heading in docs/errors.md with its cause and remedy; a test keeps the two lists equal.
 */

/** The codes, each with one line on when it is thrown. docs/errors.md has cause and remedy. */
export const ERROR_CODES = {
  ERR_UPROBE_UNSUPPORTED: 'the operating system, architecture or kernel cannot do what was asked',
  ERR_UPROBE_NATIVE: 'the native addon could not be loaded',
  ERR_UPROBE_BAD_SPEC: 'a probe specification does not follow the grammar',
  ERR_UPROBE_BAD_OPTION: 'an option has a wrong type or value',
  ERR_UPROBE_FILE: 'a file does not exist or cannot be read',
  ERR_UPROBE_BAD_ELF: 'a file is not an ELF file, or is broken',
  ERR_UPROBE_ARCH: 'a file is for another architecture than this machine',
  ERR_UPROBE_NOT_FOUND: 'no probe or symbol matches',
  ERR_UPROBE_TOO_MANY_SITES: 'a pattern matches more sites than maxSites allows',
  ERR_UPROBE_IFUNC: 'the symbol is an indirect function: its address is that of a resolver',
  ERR_UPROBE_TARGET_GONE: 'the process does not exist, is another one by now, or is a thread of the kernel',
  ERR_UPROBE_TARGET_DENIED: 'the process may not be inspected',
  ERR_UPROBE_NOT_INSTRUCTION: 'the address is not known to be the start of an instruction',
  ERR_UPROBE_UNSAFE_NOP5: 'a 5-byte nop may not be probed on this kernel',
  ERR_UPROBE_UNSAFE_SECCOMP: 'a return probe would kill a target that uses seccomp on this kernel',
  ERR_UPROBE_UNSAFE_GO: 'a return probe would break the stack of a Go program',
  ERR_UPROBE_UNPROBEABLE: 'the kernel cannot probe this instruction or mapping',
  ERR_UPROBE_NOT_ARMED: 'the kernel accepted the probe, but the breakpoint is not in the target',
  ERR_UPROBE_COUNTER_OFFSET: 'a counter offset is unaligned or larger than the interface can express',
  ERR_UPROBE_COUNTER_MISMATCH: 'another tracer has registered the site with another counter offset',
  ERR_UPROBE_COUNTER_NEGATIVE: 'the counter is negative as the kernel reads it',
  ERR_UPROBE_COUNTER_UNREACHABLE: 'the counter lies where the kernel never finds it',
  ERR_UPROBE_COUNTER_NOT_RAISED: 'the site is armed, but its counter was not raised',
  ERR_UPROBE_COUNTER_PLACE: 'the counter lies where it cannot be written without harm',
  ERR_UPROBE_COUNTER_BUSY: 'another tracer holds the counter, so it cannot be claimed',
  ERR_UPROBE_COUNTER_FOREIGN: 'the counter has a value that nobody known accounts for',
  ERR_UPROBE_COUNTER_MODE: 'another probe holds the counter in the other mode',
  ERR_UPROBE_LEASE: 'the lease directory cannot be used',
  ERR_UPROBE_PERMISSION: 'the kernel refused to register a probe for want of a right',
  ERR_UPROBE_BPF_PERMISSION: 'the kernel refused BPF for want of a right',
  ERR_UPROBE_BPF_REJECTED: 'the kernel refused a generated BPF program or map',
  ERR_UPROBE_LIMIT: 'a limit of this process or of the kernel is reached',
  ERR_UPROBE_KERNEL: 'a system call failed in a way that has no explanation of its own',
  ERR_UPROBE_CLOSED: 'the tracer or probe is closed',
} as const

/** A stable error code; see {@link ERROR_CODES}. */
export type UprobeErrorCode = keyof typeof ERROR_CODES

/** What a {@link UprobeError} may carry beside its code and message. */
export interface UprobeErrorDetails {
  /** The error that caused this one. */
  cause?: unknown
  /** The system call that failed, as in `perf_event_open`. */
  syscall?: string | undefined
  /** The positive errno it failed with. */
  errno?: number | undefined
  /** The process the error is about. */
  pid?: number | undefined
  /** The file the error is about, escaped for display. */
  path?: string | undefined
  /** The probe site the error is about, as `path:0xoffset` or the probe's name. */
  site?: string | undefined
}

/** An error of this package. `code` is stable; the message says what failed and what to do. */
export class UprobeError extends Error {
  override readonly name = 'UprobeError'
  readonly code: UprobeErrorCode
  declare readonly syscall?: string
  declare readonly errno?: number
  declare readonly pid?: number
  declare readonly path?: string
  declare readonly site?: string

  constructor(code: UprobeErrorCode, message: string, details: UprobeErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause })
    this.code = code
    if (details.syscall !== undefined) this.syscall = details.syscall
    if (details.errno !== undefined) this.errno = details.errno
    if (details.pid !== undefined) this.pid = details.pid
    if (details.path !== undefined) this.path = details.path
    if (details.site !== undefined) this.site = details.site
  }
}

/** An error as Node and the native addon throw it for a failed system call. */
export interface SystemCallError extends Error {
  /** Name of the errno, as in `EINVAL`; for an errno that libc does not know, `ERRNO_524`. */
  code: string
  /** Positive errno in errors of the addon, negative in those of Node; use {@link errnoOf}. */
  errno: number
  syscall: string
}

/** Whether `error` is a failed system call, from Node or from the addon. */
export function isSystemCallError(error: unknown): error is SystemCallError {
  return error instanceof Error && 'syscall' in error && 'errno' in error && typeof error.errno === 'number'
}

/** The positive errno of a failed system call, or `undefined` for any other error. */
export function errnoOf(error: unknown): number | undefined {
  return isSystemCallError(error) ? Math.abs(error.errno) : undefined
}
