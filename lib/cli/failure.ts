/**
 * How a command ends when it cannot do what was asked: one line on standard error, `uprobe: MESSAGE (CODE)`, for a filter with two more that point at the place,
 * or with `--json` one object `{"error":{"code":…,"message":…}}`, and the exit code: 2 for wrong usage, which another command line would mend, 1 for everything else.
 */
import type { CommanderError } from 'commander'
import { isSystemCallError, UprobeError } from '../errors.js'
import { inFlags } from './flag-names.js'
import { jsonLine, singleLine } from './text.js'

export type ExitCode = 0 | 1 | 2

/** What the help of every command says about exit codes. */
export const EXIT_CODES_HELP = `
Exit codes:
  0  success; nothing found is success too
  1  a failure, explained in one line on standard error
  2  wrong usage`

interface Failure {
  code: string
  message: string
  exitCode: 1 | 2
}

/** By its code and not by its class, for which commander would have to be loaded. */
function isOfCommander(error: unknown): error is CommanderError {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && error.code.startsWith('commander.')
}

/** Whether commander ended with help or version that was asked for: no failure. */
export function wasAskedFor(error: unknown): boolean {
  return isOfCommander(error) && error.exitCode === 0
}

function describe(error: unknown): Failure {
  if (isOfCommander(error)) {
    return { code: 'ERR_UPROBE_BAD_OPTION', message: error.message.replace(/^error: /, '').replaceAll('\n', ' '), exitCode: 2 }
  }
  if (error instanceof UprobeError) {
    const usage = error.code === 'ERR_UPROBE_BAD_SPEC' || error.code === 'ERR_UPROBE_BAD_OPTION'
    return { code: error.code, message: inFlags(error.message), exitCode: usage ? 2 : 1 }
  }
  if (isSystemCallError(error)) return { code: error.code, message: error.message, exitCode: 1 }
  // A mistake of ours. The place in the code is what a report needs most, and the stack's first frame still fits one line.
  if (error instanceof Error) {
    const frame = error.stack?.split('\n').find((line) => line.startsWith('    at '))
    return { code: error.name, message: `internal error: ${error.message}${frame === undefined ? '' : ` (${frame.trim()})`}`, exitCode: 1 }
  }
  return { code: 'Error', message: `internal error: ${String(error)}`, exitCode: 1 }
}

/** Reports what a command threw, and answers the exit code. */
export function report(error: unknown, json: boolean): ExitCode {
  // `uprobe` alone: commander has printed the help to standard error already.
  if (isOfCommander(error) && error.code === 'commander.help') return 2
  const { code, message, exitCode } = describe(error)
  if (json) {
    process.stderr.write(`${jsonLine({ error: { code, message } })}\n`)
  } else {
    // What is wrong in an expression is shown below the sentence that says it.
    const [sentence = '', ...place] = exitCode === 2 ? message.split('\n') : [message]
    process.stderr.write([`uprobe: ${singleLine(sentence)} (${code})`, ...place.map(singleLine), ''].join('\n'))
  }
  return exitCode
}

/** A remark that does not end the command, on standard error in the form that `json` asks for. */
export function warn(message: string, json: boolean): void {
  const said = inFlags(message)
  process.stderr.write(json ? `${jsonLine({ warning: { message: said } })}\n` : `uprobe: warning: ${singleLine(said)}\n`)
}
