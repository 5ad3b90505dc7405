/**
 * The logger, and the escaping of what comes from a target.
 *
 * pino is the logger of this package. A tracer logs through a child of the logger it is given, or not at all; the library makes no transport
 * and writes to no stream by itself.
 */
import type { Logger as PinoLogger } from 'pino'

/** What this package logs through. */
export type Logger = Pick<PinoLogger, 'debug' | 'info' | 'warn' | 'error'>

const nothing = (): void => undefined

/** Takes what is logged where nobody asked for it. Loading pino for that would hold the event loop of an agent for some 20 ms. */
const SILENT: Logger = { debug: nothing, info: nothing, warn: nothing, error: nothing }

/** The logger of one component: a child of the user's, or a silent one. */
export function childLogger(logger: PinoLogger | false | undefined, component: string): Logger {
  return logger ? logger.child({ name: `uprobe:${component}` }) : SILENT
}

/** A process as people read it: `COMM[PID]`, or its name alone where the pid is not known (0). */
export function processForDisplay({ comm, pid }: { readonly comm: string; readonly pid: number }): string {
  return pid === 0 ? escapeForDisplay(comm) : `${escapeForDisplay(comm)}[${pid}]`
}

/**
 * Makes a string from a target (a path, a symbol, an argument) safe to print: control characters, escape sequences, line and paragraph separators and
 * bidirectional controls become `\xNN` or `\u{N}`, a backslash becomes `\\`. Other text is left as it is.
 */
export function escapeForDisplay(text: string): string {
  return text.replace(
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what must not reach a terminal
    /[\u0000-\u001f\u007f-\u009f\\\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    (character) => {
      if (character === '\\') return '\\\\'
      const code = character.charCodeAt(0)
      return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u{${code.toString(16)}}`
    },
  )
}
