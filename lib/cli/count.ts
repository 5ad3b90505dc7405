/** `uprobe count`: counts hits in the kernel, delivers none, and prints the counts at the end. */
import type { Command } from 'commander'
import type { AttachOptions } from '../index.js'
import { escapeForDisplay } from '../log.js'
import { type Answer, countsToJson, displayCounts, displayKey, keyToJson, runAggregations } from './aggregate.js'
import { type CommonCounts, CommonTime } from './common-time.js'
import { EXIT_CODES_HELP } from './failure.js'
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
  pidOption,
} from './options.js'
import { Output } from './output.js'
import { runSession, type SessionSettings } from './session.js'
import { displaySeen } from './summary.js'
import { alignColumns, jsonLine } from './text.js'

const HELP = `
Standard error gets a line that begins with "attached" once every site is armed. The counts are printed at the end: when
interrupted (SIGINT, SIGTERM), after -d, or when the processes have exited. A line has probe, file and hits.

Examples:
  uprobe count 'usdt:postgresql:*' -p 4242 -d 10
  uprobe count uprobe:/lib/x86_64-linux-gnu/libc.so.6:malloc -d 1 --json
  uprobe count uprobe:malloc -p 4242 --filter 'arg0 >= 4096'
  uprobe count usdt:postgresql:query__start -p 4242 --by 'str(arg0)' --by pid
${EXIT_CODES_HELP}`

interface CountFlags extends BudgetFlags {
  pid?: number[]
  counter?: 'kernel' | 'msb'
  filter?: string
  maxSites?: number
  by?: string[]
  duration?: number
  json?: true
}

interface Row {
  readonly probe: string
  readonly path: string
  readonly hits: number
  /** With a filter: hits that it rejected, which are not among `hits`. */
  readonly filtered?: number
  /** With a budget: the part of the time in which hits were counted. */
  readonly seenFraction?: number
}

/** One row for each probe in each file, with the hits that the filter let through. */
function toRows(counts: readonly CommonCounts[], filter: boolean, budget: boolean): Row[] {
  return counts.map(({ probe, path, hits, filtered, seenFraction }) => ({
    probe,
    path,
    hits: hits - filtered,
    ...(filter && { filtered }),
    ...(budget && { seenFraction }),
  }))
}

function toText(rows: readonly Row[]): string[] {
  return alignColumns(
    rows.map(({ probe, path, hits, filtered, seenFraction }) => [
      escapeForDisplay(probe),
      escapeForDisplay(path),
      `${hits}${filtered === undefined ? '' : ` (${filtered} filtered)`}${displaySeen(seenFraction)}`,
    ]),
  )
}

/** Counts by groups: the group with most hits first. */
async function countGroups(
  settings: SessionSettings,
  specs: readonly string[],
  options: Pick<AttachOptions, 'pid' | 'counter' | 'filter' | 'maxSites'>,
  by: readonly string[],
): Promise<string[]> {
  const answers = await runAggregations(settings, specs, { ...options, count: true, by })
  if (!settings.json) return answers.flatMap((answer) => groupsToText(answer, by))
  return [...answers.flatMap((answer) => groupsToJson(answer, by)), { summary: answers.map(countsToJson) }].map(jsonLine)
}

function groupsToJson({ name, snapshot: { groups, other } }: Answer, by: readonly string[]): object[] {
  const rows = groups.map(({ key, count }) => ({ spec: name, key: keyToJson(by, key), hits: count }))
  return other === null ? rows : [...rows, { spec: name, key: null, hits: other.count }]
}

function groupsToText(answer: Answer, by: readonly string[]): string[] {
  const { groups, other } = answer.snapshot
  const rows = groups.map(({ key, count }) => [`  ${displayKey(by, key)}`, String(count)])
  const rest = other === null ? [] : [['  other', String(other.count)]]
  return [`${escapeForDisplay(answer.name)}: ${displayCounts(answer)}`, ...alignColumns([...rows, ...rest])]
}

/** Adds the command to `program`. */
export function addCount(program: Command): void {
  program
    .command('count')
    .summary('count the hits of probes')
    .description('Count the hits of the probes, until interrupted.')
    .argument('<spec...>', 'probes, as in usdt:PROVIDER:NAME')
    .addOption(pidOption())
    .addOption(counterOption())
    .addOption(filterOption())
    .addOption(maxSitesOption())
    .addOption(byOption())
    .addOption(durationOption())
    .addOption(budgetCpuOption())
    .addOption(budgetHitsOption())
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (specs: string[], flags: CountFlags) => {
      const json = flags.json ?? false
      const output = new Output(process.stdout)
      const { pid, counter, filter, maxSites, by, duration: durationMs } = flags
      const options = {
        ...(pid && { pid }),
        ...(counter && { counter }),
        ...(filter !== undefined && { filter }),
        ...(maxSites !== undefined && { maxSites }),
      }
      const tracing = budgetOf(flags)
      if (by !== undefined) {
        await output.lines(await countGroups({ durationMs, json, output, tracing }, specs, options, by))
      } else {
        const attach = { ...options, countOnly: true }
        const time = new CommonTime()
        await runSession({ specs, attach, durationMs, json, output, tracing }, time.pass)
        const rows = toRows(time.counts(), filter !== undefined, tracing.budget !== undefined)
        await output.lines(json ? rows.map((row) => jsonLine(row)) : toText(rows))
      }
      output.check()
    })
}
