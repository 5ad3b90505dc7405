/**
 * Stacks as flame graph tools read them: a line a stack, `name;outermost;…;innermost count` (flamegraph.pl, inferno, speedscope).
 *
 * A semicolon in a name would make two frames of one, so it becomes a colon, as stackcollapse-perf.pl has it; what could break the line or drive a terminal is escaped. The
 * tools take the last blank for the one before the count, so blanks in names are left.
 */
import { basename } from 'node:path'
import { escapeForDisplay } from '../log.js'
import type { StackFrame } from './frame.js'

/** One frame as people read it: the name, else file and offset, else the address. */
export function frameName({ symbol, module, fileOffset, address }: StackFrame): string {
  if (symbol !== null) return symbol
  if (module === null) return `0x${address.toString(16)}`
  return fileOffset === null ? module : `${basename(module)}+0x${fileOffset.toString(16)}`
}

/**
 * A stack as the beginning of a folded line; a blank and how often it was seen complete it.
 * @param comm - what the line begins with: the name of the thread, for instance
 * @param frames - innermost first, as `hit.symbolize()` gives them
 */
export function foldStack(comm: string, frames: readonly StackFrame[]): string {
  return [comm, ...frames.map(frameName).reverse()].map((name) => escapeForDisplay(name).replaceAll(';', ':')).join(';')
}
