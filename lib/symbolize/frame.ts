/**
 * A frame of a stack, as far as it is known. What is not known for sure is `null`: no name is better than a wrong one.
 */

/** One address of a stack. */
export interface StackFrame {
  /** For the first frame the address of the site, for the others the one that the function returns to. */
  readonly address: bigint
  /**
   * Name of the function, as the file or the JIT compiler has it, C++ names mangled; `null` if none is known. It may hold anything: escape it before printing.
   */
  readonly symbol: string | null
  /** How far behind the function's start the address is, in bytes; `null` without a name. */
  readonly offset: bigint | null
  /** Path of the file, as /proc/PID/maps prints it, or what the kernel calls a mapping that is no file's, as `[vdso]` and `[uprobes]`; `null` if it is not known, or has no name. */
  readonly module: string | null
  /** Offset in the file; `null` if the address is in none. */
  readonly fileOffset: bigint | null
  /** Build id of the file in hexadecimal digits; `null` if it has none. */
  readonly buildId: string | null
}
