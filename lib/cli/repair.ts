/** `uprobe repair`: what others left behind in counters, and putting it right. */
import type { Command } from 'commander'
import { pino } from 'pino'
import { type RepairEntry, repair, UprobeError } from '../index.js'
import { escapeForDisplay } from '../log.js'
import { EXIT_CODES_HELP } from './failure.js'
import { checkLeaseDir, leaseDirOption, parsePid } from './options.js'
import { Output } from './output.js'
import { alignColumns, hex, jsonLine, singleLine } from './text.js'
import { Unseen } from './unseen.js'

const HELP = `
Without --apply nothing is changed: each line says what would be done. A tool that counts by hand (gdb, old versions of
bcc) cannot be told from a leak while it lives; end such tools first. Breakpoints with a living holder are left to it, and
a process under a debugger is left alone. docs/counters.md explains the states and the arithmetic.

Examples:
  uprobe repair 4242             what is wrong, and what would be done
  uprobe repair 4242 --apply     do it
  uprobe repair --json           look at every process
${EXIT_CODES_HELP}`

function value(bits: number | null): string {
  return bits === null ? '-' : `0x${bits.toString(16)}`
}

function toColumns({ pid, path, provider, name, problem, before, after, applied, note }: RepairEntry): string[] {
  return [
    String(pid),
    escapeForDisplay(`usdt:${path}:${provider}:${name}`),
    problem,
    `${value(before)} → ${value(after)}`,
    applied ? 'applied' : 'not applied',
    singleLine(note),
  ]
}

/** Adds the command to `program`. */
export function addRepair(program: Command): void {
  program
    .command('repair')
    .summary('put right what dead tracers left in counters')
    .description('Find claims of dead agents, leaked counts, negative counters and breakpoints that nobody holds, and put them right.')
    .argument('[pid]', 'only this process; without it, every process', parsePid)
    .option('--apply', 'do it; without, only say what would be done')
    .addOption(leaseDirOption())
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (pid: number | undefined, flags: { apply?: true; json?: true; leaseDir?: string }) => {
      checkLeaseDir(flags.leaseDir)
      const output = new Output(process.stdout)
      const dryRun = flags.apply !== true
      // Who redirects standard error keeps a record of what was changed, in lines as those of an agent's log.
      const logger = !dryRun && pino(pino.destination({ dest: process.stderr.fd, sync: true }))
      const unseen = new Unseen(flags.json ?? false)
      const entries = await repair({ pid, dryRun, leaseDir: flags.leaseDir, logger, onUnseen: unseen.add })
      await output.lines(
        flags.json ? entries.map((entry) => jsonLine({ ...entry, address: hex(entry.address) })) : alignColumns(entries.map(toColumns)),
      )
      output.check()
      const failed = dryRun ? 0 : entries.filter(({ applied }) => !applied).length
      unseen.tell(failed > 0)
      if (failed > 0) throw new UprobeError('ERR_UPROBE_COUNTER_BUSY', `${failed} of ${entries.length} were not repaired; each says why.`)
    })
}
