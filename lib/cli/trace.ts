/** `uprobe trace`: prints hits as they come, and closes with the counts. */
import { type Command, Option } from 'commander'
import type { AttachOptions } from '../index.js'
import { EXIT_CODES_HELP } from './failure.js'
import { FoldedStacks } from './folded.js'
import { HitFormat } from './hit-format.js'
import { mergeByTime } from './merge.js'
import {
  type BudgetFlags,
  budgetCpuOption,
  budgetHitsOption,
  budgetOf,
  collectArgumentNumbers,
  counterOption,
  durationOption,
  filterOption,
  maxSitesOption,
  parseHits,
  pidOption,
} from './options.js'
import { Output } from './output.js'
import { type Consume, runSession } from './session.js'
import { displaySummary, type SummaryEntry, summarize } from './summary.js'
import { jsonLine } from './text.js'

const HELP = `
Standard error gets a line that begins with "attached" once every site is armed. SIGINT (Ctrl-C) and SIGTERM detach and
end the trace with its counts: hits are executions while attached, delivered those that were printed or ready to be,
lost those that the reader was too slow for.

Examples:
  uprobe trace usdt:python:gc__start -p 4242
  uprobe trace usdt:/usr/lib/postgresql/15/bin/postgres:postgresql:query__start --str 0
  uprobe trace uprobe:malloc uretprobe:malloc -p 4242 -n 100
  uprobe trace usdt:ruby:array__create -p 4242 --filter 'arg0 > 1000' --json
  uprobe trace usdt:postgresql:query__start --str 0 -p 4242 --filter 'str(arg0).startsWith("select")'
  uprobe trace uprobe:malloc -p 4242 --folded -d 10 | flamegraph.pl > malloc.svg
${EXIT_CODES_HELP}`

interface TraceFlags extends BudgetFlags {
  pid?: number[]
  counter?: 'kernel' | 'msb'
  str?: number[]
  filter?: string
  maxSites?: number
  stack?: true
  folded?: true
  hits?: number
  duration?: number
  json?: true
}

function attachOptions({ pid, counter, str, filter, maxSites, stack, folded }: TraceFlags): AttachOptions {
  return {
    ...(pid && { pid }),
    ...(counter && { counter }),
    ...(str && { strings: str }),
    ...(filter !== undefined && { filter }),
    ...(maxSites !== undefined && { maxSites }),
    stack: (stack ?? folded) === true,
  }
}

/**
 * Prints hits until the probes end, or `limit` are printed.
 * @param counts - takes how many of each name were
 */
function printHits(output: Output, format: HitFormat, limit: number, stack: boolean, counts: Map<string, number>): Consume {
  return async (probes, stop) => {
    let printed = 0
    for await (const hit of mergeByTime(probes)) {
      if (printed === limit || output.gone) continue
      const keepsUp = output.line(stack ? format.lineWithStack(hit, await hit.symbolize()) : format.line(hit))
      counts.set(hit.probe, (counts.get(hit.probe) ?? 0) + 1)
      if (++printed === limit) stop.request('enough')
      if (!keepsUp) await output.ready()
    }
  }
}

/** Collects the stacks of hits until the probes end, or of `limit` hits. */
function foldHits(stacks: FoldedStacks, limit: number): Consume {
  return async (probes, stop) => {
    let folded = 0
    for await (const hit of mergeByTime(probes)) {
      if (folded === limit) continue
      await stacks.add(hit)
      if (++folded === limit) stop.request('enough')
    }
  }
}

/** Prints folded stacks alone on standard output, where a flame graph tool may read them, and the counts beside. */
async function printFolded(output: Output, stacks: FoldedStacks, summary: readonly SummaryEntry[]): Promise<void> {
  for (const line of displaySummary(summary)) process.stderr.write(`${line}\n`)
  await output.lines(stacks.lines())
}

/** Adds the command to `program`. */
export function addTrace(program: Command): void {
  program
    .command('trace')
    .summary('print the hits of probes')
    .description('Print each hit of the probes, until interrupted.')
    .argument('<spec...>', 'probes, as in usdt:PROVIDER:NAME')
    .addOption(pidOption())
    .addOption(counterOption())
    .option('--str <n>', 'read argument N (from 0) as a string; may be repeated', collectArgumentNumbers)
    .addOption(filterOption())
    .addOption(maxSitesOption())
    .option('--stack', 'print the stack of each hit, by frame pointers')
    .addOption(
      new Option('--folded', 'print no hits, and at the end their stacks for a flame graph, with counts').conflicts(['json', 'stack']),
    )
    .option('-n, --hits <hits>', 'stop after this many hits', parseHits)
    .addOption(durationOption())
    .addOption(budgetCpuOption())
    .addOption(budgetHitsOption())
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (specs: string[], flags: TraceFlags) => {
      const json = flags.json ?? false
      const output = new Output(process.stdout)
      const limit = flags.hits ?? Number.POSITIVE_INFINITY
      const tracing = budgetOf(flags)
      const stacks = flags.folded ? new FoldedStacks() : null
      const printed = new Map<string, number>()
      const probes = await runSession(
        { specs, attach: attachOptions(flags), durationMs: flags.duration, json, output, tracing, printsHits: stacks === null },
        stacks === null ? printHits(output, new HitFormat(json), limit, flags.stack ?? false, printed) : foldHits(stacks, limit),
      )
      const summary = summarize(probes, tracing.budget !== undefined)
      if (stacks !== null) {
        await printFolded(output, stacks, summary)
        output.check()
        return
      }
      await output.lines(json ? [jsonLine({ summary })] : displaySummary(summary, flags.hits === undefined ? undefined : printed))
      output.check()
    })
}
