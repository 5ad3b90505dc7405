/** `uprobe list`: the USDT probes in a file, or in all files that a process maps, one line a site. */
import type { Command } from 'commander'
// Not through index.js, which would load all that attaching takes.
import { list, type UsdtListing } from '../list.js'
import { escapeForDisplay } from '../log.js'
import { EXIT_CODES_HELP } from './failure.js'
import { parseFileOrPid } from './options.js'
import { Output } from './output.js'
import { alignColumns, hex, jsonLine } from './text.js'

const HELP = `
A line has the probe as \`trace\` takes it, the offset of its instruction in the file, its counter and its arguments as
the file stores them. PATTERN is PROVIDER:NAME, with * and ?. A number is a process id; write ./123 for a file.

Examples:
  uprobe list /usr/bin/python3.11
  uprobe list 4242 'python:gc__*'
  uprobe list --json /usr/lib/postgresql/15/bin/postgres 'postgresql:query__*'
${EXIT_CODES_HELP}`

/** A site as JSON: addresses and offsets as `0x…` strings, which keep 64 bits in every JSON parser. */
function toJson(site: UsdtListing): object {
  return {
    provider: site.provider,
    name: site.name,
    path: site.path,
    pc: hex(site.pc),
    base: hex(site.base),
    semaphore: hex(site.semaphore),
    args: site.args,
    fileOffset: hex(site.fileOffset),
    refCtrOffset: hex(site.refCtrOffset),
  }
}

/** What to say of a site's counter; a semaphore without a place in the file lies where the kernel never finds it. */
function counterColumn(site: UsdtListing): string {
  if (site.refCtrOffset !== null) return `counter ${hex(site.refCtrOffset)}`
  return site.semaphore === 0n ? 'no counter' : 'counter unreachable'
}

function toColumns(site: UsdtListing): string[] {
  return [
    escapeForDisplay(`usdt:${site.path}:${site.provider}:${site.name}`),
    hex(site.fileOffset) ?? 'not mapped',
    counterColumn(site),
    escapeForDisplay(site.args),
  ]
}

/** Adds the command to `program`. */
export function addList(program: Command): void {
  program
    .command('list')
    .summary('list the USDT probes of a file or a process')
    .description('List the USDT probes in a file, or in all files that a process maps.')
    .argument('<path|pid>', 'a file, or the id of a process', parseFileOrPid)
    .argument('[pattern]', 'only probes that match PROVIDER:NAME')
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (target: string | number, pattern: string | undefined, options: { json?: true }) => {
      const output = new Output(process.stdout)
      const sites = await list(target, pattern)
      await output.lines(options.json ? sites.map((site) => jsonLine(toJson(site))) : alignColumns(sites.map(toColumns)))
      output.check()
    })
}
