/** `uprobe list`: the USDT probes in a file, or in all files that a process maps, one line a site. */
import type { Command } from 'commander'
import { EXIT_CODES_HELP } from './failure.js'
import { printList } from './print-list.js'

const HELP = `
A line has the probe as \`trace\` takes it, the offset of its instruction in the file, its counter and its arguments as
the file stores them. PATTERN is PROVIDER:NAME, with * and ?. A number is a process id; write ./123 for a file.

Examples:
  uprobe list /usr/bin/python3.11
  uprobe list 4242 'python:gc__*'
  uprobe list --json /usr/lib/postgresql/15/bin/postgres 'postgresql:query__*'
${EXIT_CODES_HELP}`

/** Adds the command to `program`. */
export function addList(program: Command): void {
  const { parseFileOrPid } = require('./options.js') as typeof import('./options.js')
  program
    .command('list')
    .summary('list the USDT probes of a file or a process')
    .description('List the USDT probes in a file, or in all files that a process maps.')
    .argument('<path|pid>', 'a file, or the id of a process', parseFileOrPid)
    .argument('[pattern]', 'only probes that match PROVIDER:NAME')
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action((target: string | number, pattern: string | undefined, options: { json?: true }) =>
      printList(target, pattern, options.json === true),
    )
}
