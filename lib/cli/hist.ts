/** `uprobe hist`: the distribution of an argument, or of the time between two probes, made in the kernel and drawn at the end. */
import { type Command, InvalidArgumentError } from 'commander'
import type { AggregateOptions, AggregateSpec, Aggregates } from '../index.js'
import { escapeForDisplay } from '../log.js'
import { type Answer, countsToJson, displayCounts, displayKey, keyToJson, runAggregations } from './aggregate.js'
import { EXIT_CODES_HELP } from './failure.js'
import { displayAverage, displayNs, drawHistogram, exactSum } from './hist-format.js'
import {
  type BudgetFlags,
  budgetCpuOption,
  budgetHitsOption,
  budgetOf,
  byOption,
  counterOption,
  durationOption,
  filterOption,
  maxSitesOption,
  parseMeasured,
  parseScale,
  pidOption,
} from './options.js'
import { Output } from './output.js'
import { jsonInteger, jsonLine } from './text.js'

const HELP = `
Standard error gets a line that begins with "attached" once every site is armed. The histograms are drawn at the end: when
interrupted (SIGINT, SIGTERM), after -d, or when the processes have exited. Bounds of a bucket are included.

Examples:
  uprobe hist uprobe:malloc --arg 0 -p 4242 -d 10
  uprobe hist uretprobe:read --arg 'retval - 0' --by 'comm' -p 4242
  uprobe hist uprobe:fsync --latency -p 4242 --scale 2
  uprobe hist usdt:postgresql:query__start --to usdt:postgresql:query__done -p 4242
${EXIT_CODES_HELP}`

interface HistFlags extends BudgetFlags {
  arg?: string
  latency?: true
  to?: string
  match?: string
  by?: string[]
  scale?: number
  pid?: number[]
  counter?: 'kernel' | 'msb'
  filter?: string
  maxSites?: number
  duration?: number
  json?: true
}

function specsOf(specs: readonly string[], { to, match, arg }: HistFlags): AggregateSpec[] {
  if (to === undefined) {
    if (match !== undefined) throw new InvalidArgumentError('--match says how the ends of --to find their beginnings; give --to.')
    return [...specs]
  }
  if (arg !== undefined) throw new InvalidArgumentError('Between two probes the time is measured; leave --arg out.')
  return specs.map((from) => ({ from, to, ...(match !== undefined && { match }) }))
}

function optionsOf(flags: HistFlags): AggregateOptions {
  const { arg, latency, to, by, scale, pid, counter, filter, maxSites } = flags
  const timed = latency === true || to !== undefined
  if (timed && arg !== undefined) throw new InvalidArgumentError('Give --arg or --latency, not both.')
  const measured = timed ? 'latency' : (arg ?? 'arg0')
  return {
    ...{ histogram: measured, sum: measured, min: measured, max: measured },
    ...(by && { by }),
    ...(scale !== undefined && { scale }),
    ...(pid && { pid }),
    ...(counter && { counter }),
    ...(filter !== undefined && { filter }),
    ...(maxSites !== undefined && { maxSites }),
  }
}

function toJson(answer: Answer, by: readonly string[]): object[] {
  const { groups, other } = answer.snapshot
  const row = (key: object | null, { count, sum, min, max, histogram }: Aggregates): object => ({
    spec: answer.name,
    key,
    count,
    sum: sum === null ? null : jsonInteger(sum),
    min: min === null ? null : jsonInteger(min),
    max: max === null ? null : jsonInteger(max),
    histogram,
  })
  return [...groups.map((group) => row(keyToJson(by, group.key), group)), ...(other === null ? [] : [row(null, other)])]
}

function toText(answer: Answer, by: readonly string[], unit: 'number' | 'ns'): string[] {
  const { groups, other } = answer.snapshot
  const show = (value: bigint): string => (unit === 'ns' ? displayNs(Number(value)) : String(value))
  const draw = (title: string, { count, sum, min, max, histogram }: Aggregates): string[] => {
    if (count === 0 || histogram === null || sum === null || min === null || max === null) return []
    const exact = exactSum(sum, count, min, max)
    const averageOf = (whole: bigint): string => (unit === 'ns' ? displayNs(Number(whole) / count) : displayAverage(whole, count))
    const average = exact === null ? 'unknown (the sum may have wrapped modulo 2^64)' : averageOf(exact)
    return [`${title}count ${count}, average ${average}, least ${show(min)}, most ${show(max)}`, ...drawHistogram(histogram, unit), '']
  }
  return [
    `${escapeForDisplay(answer.name)}: ${displayCounts(answer)}`,
    ...groups.flatMap((group) => draw(by.length === 0 ? '' : `${displayKey(by, group.key)}: `, group)),
    ...(other === null ? [] : draw('other: ', other)),
  ]
}

/** Adds the command to `program`. */
export function addHist(program: Command): void {
  program
    .command('hist')
    .summary('draw the distribution of an argument or a latency')
    .description('Draw the distribution of an argument of the probes, or of the time that calls take, made in the kernel.')
    .argument('<spec...>', 'probes, as in usdt:PROVIDER:NAME')
    .option('--arg <n>', "the argument, from 0, or an expression such as 'arg1 >> 10'; by default argument 0", parseMeasured)
    .option('--latency', 'the time from the call to the return of each function')
    .option('--to <spec>', 'the time from each probe to this one')
    .option('--match <how>', "with --to: 'thread' (default), or an argument that both probes have, such as arg0")
    .addOption(byOption())
    .option('--scale <n>', '2^n buckets for each power of two, from -5 to 5; by default 0', parseScale)
    .addOption(pidOption())
    .addOption(counterOption())
    .addOption(filterOption())
    .addOption(maxSitesOption())
    .addOption(durationOption())
    .addOption(budgetCpuOption())
    .addOption(budgetHitsOption())
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (specs: string[], flags: HistFlags) => {
      const json = flags.json ?? false
      const output = new Output(process.stdout)
      const { by = [], duration: durationMs } = flags
      const unit = flags.latency === true || flags.to !== undefined ? 'ns' : 'number'
      const settings = { durationMs, json, output, tracing: budgetOf(flags) }
      const answers = await runAggregations(settings, specsOf(specs, flags), optionsOf(flags))
      await output.lines(
        json
          ? [...answers.flatMap((answer) => toJson(answer, by)), { summary: answers.map(countsToJson) }].map(jsonLine)
          : answers.flatMap((answer) => toText(answer, by, unit)),
      )
      output.check()
    })
}
