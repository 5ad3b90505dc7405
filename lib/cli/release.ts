/** `uprobe release`: asks the agents of this package that hold claims to give way. */
import type { Command } from 'commander'
import { release, UprobeError } from '../index.js'
import { escapeForDisplay, processForDisplay } from '../log.js'
import { EXIT_CODES_HELP } from './failure.js'
import { checkLeaseDir, leaseDirOption, parsePid } from './options.js'
import { Output } from './output.js'
import { alignColumns, jsonLine } from './text.js'
import { Unseen } from './unseen.js'

const HELP = `
A claim (counter: 'msb') keeps every other tracer away from its probe, also while it is paused. This asks the agents that
hold claims, in one process or in all, to clear them and to let other tracers in. Their probes are paused until the agent
resumes them. An agent that does not answer is waited for, 10 seconds at most; it gives way when it runs again. A claim
whose agent is dead is cleared by \`uprobe repair\`.

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
    .addOption(leaseDirOption())
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (pid: number | undefined, flags: { json?: true; leaseDir?: string }) => {
      checkLeaseDir(flags.leaseDir)
      const output = new Output(process.stdout)
      const unseen = new Unseen(flags.json ?? false)
      const entries = await release({
        pid,
        leaseDir: flags.leaseDir,
        onUnseen: unseen.add,
        onWaiting: (owner) => process.stderr.write(`waiting for ${processForDisplay(owner)} to give way\n`),
      })
      const rows = entries.map(({ pid: target, path, provider, name, owner, released, reason }) => [
        String(target),
        escapeForDisplay(`usdt:${path}:${provider}:${name}`),
        processForDisplay(owner),
        released ? 'released' : `not released: ${escapeForDisplay(reason ?? '')}`,
      ])
      await output.lines(flags.json ? entries.map(({ reason, ...entry }) => jsonLine(entry)) : alignColumns(rows))
      output.check()
      const kept = entries.filter(({ released }) => !released)
      unseen.tell(kept.length > 0)
      if (kept.length > 0) {
        const reasons = [...new Set(kept.map(({ reason }) => reason))].join('; ')
        throw new UprobeError('ERR_UPROBE_LEASE', `${kept.length} of ${entries.length} claims were not released: ${reasons}.`)
      }
    })
}
