/**
 * What the benchmarks last found (bench/results.json), and docs/performance.md and its picture, which are made from it.
 *
 * The results are kept beside the document so that one benchmark can be run anew without the others, and so that a program can read them.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { READELF_THERE_MS, TEXT_THERE_NS } from './bounds.js'
import { replacePart } from './document.js'
import { table } from './markdown.js'
import type { Report } from './report.js'
import { drawBars } from './svg.js'

const ROOT = join(__dirname, '..', '..')
const RESULTS = join(ROOT, 'bench', 'results.json')
const DOCUMENT = join(ROOT, 'docs', 'performance.md')
const PICTURE = join(ROOT, 'docs', 'performance.svg')

/** A report, and when and where it was made. */
export interface Result {
  readonly report: Report
  readonly machine: string
  /** YYYY-MM-DD */
  readonly date: string
}

/** By the name of the benchmark. */
export type Results = Readonly<Record<string, Result>>

/** Adds results to those that are kept, and writes the document and the picture. `order`: the benchmarks as the document has them. */
export function keep(results: Results, order: readonly string[]): void {
  const all: Results = { ...(existsSync(RESULTS) ? (JSON.parse(readFileSync(RESULTS, 'utf8')) as Results) : {}), ...results }
  const ordered = order.flatMap((name): Array<[string, Result]> => {
    const result = all[name]
    return result === undefined ? [] : [[name, result]]
  })
  writeFileSync(RESULTS, `${JSON.stringify(Object.fromEntries(ordered), null, 2)}\n`)
  let document = readFileSync(DOCUMENT, 'utf8')
  document = replacePart(document, 'summary', summaryOf(ordered))
  for (const [name, result] of ordered)
    document = replacePart(document, name, `${result.report.markdown}\n\n*${result.machine}. ${result.date}.*`)
  writeFileSync(DOCUMENT, document)
  const groups = ordered.flatMap(([, { report }]) => report.chart ?? [])
  if (groups.length > 0) writeFileSync(PICTURE, drawBars(CAPTION, groups))
}

const CAPTION = {
  title: 'What a hit costs the traced program',
  subtitle: 'All tracers on one target in turn, medians; the line at the end of a bar spans half of the rounds',
  axis: 'nanoseconds a hit, less is better',
}

/** What a reader wants to know first. */
export function summaryOf(results: ReadonlyArray<readonly [string, Result]>): string {
  const reports = results.map(([, { report }]) => report)
  const goals = reports.flatMap((report) => report.goals ?? [])
  const rows = goals.map(({ what, goal, measured, spread, floor, scaled = '', verdict }) => [
    what,
    goal,
    measured,
    spread,
    floor,
    scaled,
    verdict,
  ])
  const behind = reports.flatMap((report) => report.behind ?? [])
  const noise = reports.flatMap((report) => report.noise ?? [])
  const machines = [...new Set(results.map(([, { machine }]) => machine))]
  return [
    table(['goal', 'bound', 'measured', 'half of the rounds', 'C or Node alone', "at the bounds' speed", 'met'], rows),
    '"Met" says *yes* if the median keeps the bound, *within the spread* if only the better quartile does. "C or Node alone" is what the same takes on this machine without the package: a program in C that traces the same way, or the least that Node does for it. Where that is beyond the bound, the machine is not the one on which the bound was set.',
    `"At the bounds' speed" is what the figure would be where others take what they took on the machine on which the bounds were set: \`readelf -n\` of 10,000 notes ${READELF_THERE_MS.thousands} ms and of Node ${READELF_THERE_MS.node} ms, and a string of some 60 bytes ${TEXT_THERE_NS} ns in Node itself. It does not count for "met".`,
    '![What a hit costs the traced program](performance.svg)',
    `**Where others are ahead:** ${behind.length === 0 ? 'nowhere, in what was measured.' : behind.join(' ')}`,
    `**Machine:** ${machines.join('; ')}. **Noise:** ${noise.length === 0 ? 'see the quartiles.' : noise.join(' ')}`,
  ].join('\n\n')
}
