/** `uprobe doctor`: will it work here, and if not, what helps. */
import type { Command } from 'commander'
import { type DoctorCheck, doctor } from '../index.js'
import { EXIT_CODES_HELP } from './failure.js'
import { Output } from './output.js'
import { jsonLine, singleLine } from './text.js'

const HELP = `
A line marked FAIL says why attaching will not work, and what helps; the first one is the one to begin with. A line
marked note is a limit that attaching can live with.
${EXIT_CODES_HELP.replace('a failure, explained in one line on standard error', 'attaching will not work here')}`

function mark({ ok, remedy }: DoctorCheck): string {
  if (!ok) return 'FAIL'
  return remedy === null ? 'ok' : 'note'
}

function* toText(checks: readonly DoctorCheck[]): Generator<string> {
  const width = Math.max(...checks.map(({ check }) => check.length))
  for (const check of checks) {
    yield `${mark(check).padEnd(4)}  ${check.check.padEnd(width)}  ${singleLine(check.detail)}`
    if (check.remedy !== null) yield `${' '.repeat(width + 8)}-> ${singleLine(check.remedy)}`
  }
  yield checks.every(({ ok }) => ok) ? 'Attaching will work here.' : 'Attaching will not work here.'
}

/** Adds the command to `program`. */
export function addDoctor(program: Command): void {
  program
    .command('doctor')
    .summary('can this machine do it, and if not, why and what helps')
    .description('Check whether attaching will work on this machine and with these rights, by trying it on this process.')
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (options: { json?: true }) => {
      const output = new Output(process.stdout)
      const checks = await doctor()
      await output.lines(options.json ? checks.map((check) => jsonLine(check)) : toText(checks))
      output.check()
      if (!checks.every(({ ok }) => ok)) process.exitCode = 1
    })
}
