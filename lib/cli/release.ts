/** `uprobe release`: asks the agents of this package that hold claims to give way. */
import type { Command } from 'commander'
import { release, UprobeError } from '../index.js'
import { escapeForDisplay } from '../log.js'
import { EXIT_CODES_HELP } from './failure.js'
import { parsePid } from './options.js'
import { Output } from './output.js'
import { alignColumns, jsonLine } from './text.js'

const HELP = `
A claim (counter: 'msb') keeps every other tracer away from its probe, also while it is paused. This asks the agents that
hold claims, in one process or in all, to clear them and to let other tracers in. Their probes are paused until the agent
resumes them. A claim whose agent is dead is cleared by \`uprobe repair\`.

Examples:
  uprobe release 4242
  uprobe release --json
${EXIT_CODES_HELP}`

/** Adds the command to `program`. */
export function addRelease(program: Command): void {
  program
    .command('release')
    .summary('ask agents that hold claims to give way')
    .description('Ask the agents of this package that hold claims on USDT counters to give way.')
    .argument('[pid]', 'only claims in this process', parsePid)
    .option('--lease-dir <dir>', 'the directory of the leases, if it is not the default')
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (pid: number | undefined, flags: { json?: true; leaseDir?: string }) => {
      const output = new Output(process.stdout)
      const entries = await release({ pid, leaseDir: flags.leaseDir })
      const rows = entries.map(({ pid: target, path, provider, name, owner, released }) => [
        String(target),
        escapeForDisplay(`usdt:${path}:${provider}:${name}`),
        `${escapeForDisplay(owner.comm)}[${owner.pid}]`,
        released ? 'released' : 'not released',
      ])
      await output.lines(flags.json ? entries.map((entry) => jsonLine(entry)) : alignColumns(rows))
      output.check()
      const kept = entries.filter(({ released }) => !released).length
      if (kept > 0) {
        throw new UprobeError(
          'ERR_UPROBE_LEASE',
          `${kept} of ${entries.length} claims were not released, since their agents did not answer. Ask again, or end them.`,
        )
      }
    })
}
