/** `uprobe trace`: prints hits as they come, and closes with the counts. */
import type { Command } from 'commander'
import type { AttachOptions } from '../index.js'
import { EXIT_CODES_HELP } from './failure.js'
import { HitFormat } from './hit-format.js'
import { mergeByTime } from './merge.js'
import { collectArgumentNumbers, collectPids, counterOption, filterOption, parseDurationMs, parseHits } from './options.js'
import { Output } from './output.js'
import { type Consume, runSession } from './session.js'
import { displaySummary, summarize } from './summary.js'
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
${EXIT_CODES_HELP}`

interface TraceFlags {
  pid?: number[]
  counter?: 'kernel' | 'msb'
  str?: number[]
  filter?: string
  hits?: number
  duration?: number
  json?: true
}

function attachOptions({ pid, counter, str, filter }: TraceFlags): AttachOptions {
  return { ...(pid && { pid }), ...(counter && { counter }), ...(str && { strings: str }), ...(filter !== undefined && { filter }) }
}

/** Prints hits until the probes end, or `limit` are printed. */
function printHits(output: Output, format: HitFormat, limit: number): Consume {
  return async (probes, stop) => {
    let printed = 0
    for await (const hit of mergeByTime(probes)) {
      if (printed === limit || output.gone) continue
      const keepsUp = output.line(format.line(hit))
      if (++printed === limit) stop.request('enough')
      if (!keepsUp) await output.ready()
    }
  }
}

/** Adds the command to `program`. */
export function addTrace(program: Command): void {
  program
    .command('trace')
    .summary('print the hits of probes')
    .description('Print each hit of the probes, until interrupted.')
    .argument('<spec...>', 'probes, as in usdt:PROVIDER:NAME')
    .option('-p, --pid <pid>', 'the process to trace; may be repeated. Without it, every process that maps PATH', collectPids)
    .addOption(counterOption())
    .option('--str <n>', 'read argument N (from 0) as a string; may be repeated', collectArgumentNumbers)
    .addOption(filterOption())
    .option('-n, --hits <hits>', 'stop after this many hits', parseHits)
    .option('-d, --duration <seconds>', 'stop after this time', parseDurationMs)
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (specs: string[], flags: TraceFlags) => {
      const json = flags.json ?? false
      const output = new Output(process.stdout)
      const probes = await runSession(
        { specs, attach: attachOptions(flags), durationMs: flags.duration, json, output },
        printHits(output, new HitFormat(json), flags.hits ?? Number.POSITIVE_INFINITY),
      )
      const summary = summarize(probes)
      await output.lines(json ? [jsonLine({ summary })] : displaySummary(summary))
      output.check()
    })
}
