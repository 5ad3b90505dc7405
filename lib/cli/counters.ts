/** `uprobe counters`: every USDT counter of a process, and who holds it. */
import type { Command } from 'commander'
import { type CounterInfo, counters } from '../index.js'
import { escapeForDisplay, processForDisplay } from '../log.js'
import { EXIT_CODES_HELP } from './failure.js'
import { checkLeaseDir, leaseDirOption, parsePid } from './options.js'
import { Output } from './output.js'
import { alignColumns, hex, jsonLine, plural } from './text.js'

const HELP = `
A line has the probe, the address and value of its counter, how many of its sites have a breakpoint, what that means, and
who holds it as far as known. docs/counters.md explains each state.

Examples:
  uprobe counters 4242
  uprobe counters 4242 --json
${EXIT_CODES_HELP}`

/** What to do about a state; nothing is to be done about the others. */
const ADVICE: Partial<Record<CounterInfo['state'], string>> = {
  unreachable: "the kernel does not count here: counter: 'msb' does where the memory is writable (.bss)",
  claimed: 'kernel tracers are refused at these sites: uprobe release PID asks the owner to give way',
  'orphan-claim': 'the agent that claimed it is dead: uprobe repair PID --apply',
  'foreign-claim': 'no lease names this claim: find out whose it is, then uprobe repair PID --apply',
  underflow: 'somebody subtracted too much, or set bit 15 over a count: uprobe repair PID --apply',
  'leaked-count': 'a tool that counts by hand lives (gdb, old bcc), or left this behind: uprobe repair PID shows what can be done',
  'stuck-breakpoint': 'a suspicion, since perf stat and perf record are listed nowhere: if none runs, uprobe repair PID --apply',
}

function toColumns(info: CounterInfo): string[] {
  const owners = info.owners.map((owner) => `${processForDisplay(owner)} ${owner.kind}`)
  return [
    escapeForDisplay(`usdt:${info.path}:${info.provider}:${info.name}`),
    hex(info.address) ?? '-',
    info.value === null ? '-' : `value 0x${info.value.toString(16)}`,
    `${info.armedSites} armed`,
    info.state,
    owners.join(', '),
  ]
}

/** Adds the command to `program`. */
export function addCounters(program: Command): void {
  program
    .command('counters')
    .summary('show the USDT counters of a process, and who holds them')
    .description('Show every USDT counter of a process: its value, its armed sites, who holds it, and what that means.')
    .argument('<pid>', 'the id of a process', parsePid)
    .addOption(leaseDirOption())
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (pid: number, flags: { json?: true; leaseDir?: string }) => {
      checkLeaseDir(flags.leaseDir)
      const output = new Output(process.stdout)
      const found = await counters(pid, { leaseDir: flags.leaseDir })
      if (flags.json) {
        await output.lines(found.map((info) => jsonLine({ ...info, address: hex(info.address) })))
      } else {
        await output.lines(alignColumns(found.map(toColumns)))
        await output.lines(advice(found, pid))
      }
      output.check()
    })
}

/** A line for each state that somebody should do something about. */
function advice(found: readonly CounterInfo[], pid: number): string[] {
  return Object.entries(ADVICE).flatMap(([state, text]) => {
    const count = found.filter((info) => info.state === state).length
    return count === 0 ? [] : [`${plural(count, 'counter')} ${state}: ${text.replace('PID', String(pid))}`]
  })
}
