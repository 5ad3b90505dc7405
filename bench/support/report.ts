/**
 * What a benchmark has to say: a section in Markdown, what became of its goals, and bars for the picture.
 *
 * A benchmark runs in a process of its own and hands its report over as JSON, so everything here is plain data. One that has no goals and no bars may return its section alone.
 */
import type { Summary } from './statistics.js'

/** How a run is made. */
export interface Settings {
  /** Few rounds: to try whether it works. The figures are not worth keeping. */
  readonly quick: boolean
  /** How long it is to last, where that can be chosen. */
  readonly seconds?: number | undefined
}

/** Whether a goal is met: by the median, by the better quartile at least, or by neither. */
export type Verdict = 'yes' | 'within the spread' | 'no'

/** A goal that this project has set itself, and what was measured. */
export interface GoalResult {
  readonly what: string
  /** As a reader sees it, such as `at most 0.85`. */
  readonly goal: string
  readonly measured: string
  /** Half of the rounds, or what else says how sure the figure is. */
  readonly spread: string
  /** See {@link Limit.floor}; empty if there is none. */
  readonly floor: string
  /** The figure as it would be there, by {@link Limit.yardstick}; empty if there is none, and missing in results from before it was told. */
  readonly scaled?: string
  readonly verdict: Verdict
}

/** One bar of the picture. */
export interface Bar {
  readonly label: string
  /** Whose it is: this package, another tracer, or plain C. */
  readonly by: 'uprobe' | 'peer' | 'C'
  readonly value: Summary
}

/** Bars that are compared with each other. */
export interface BarGroup {
  readonly title: string
  readonly bars: readonly Bar[]
}

/** What a benchmark returns. */
export interface Report {
  /** A heading of the second level, and what belongs below it. */
  readonly markdown: string
  readonly goals?: readonly GoalResult[]
  readonly chart?: readonly BarGroup[]
  /** Sentences that say where another tracer is ahead. */
  readonly behind?: readonly string[]
  /** How much the machine was disturbed meanwhile, in words. */
  readonly noise?: string
}

/** A benchmark. */
export type Benchmark = (settings: Settings) => Promise<string | Report>

/** A goal of the form "at most `limit`", or "at least" where more is better. */
export interface Limit {
  readonly what: string
  readonly limit: number
  readonly unit?: string
  readonly digits?: number
  readonly better?: 'less' | 'more'
  /** What the same takes without this package, on this machine and in this run: nobody gets below it. */
  readonly floor?: Summary | undefined
  /** Of a bound that is a time: something that is no part of this package, and tells how fast a machine is. */
  readonly yardstick?: Yardstick | undefined
}

/** What one and the same thing took on the machine on which the bounds were set, and what it takes here, in one unit. */
export interface Yardstick {
  readonly there: number
  readonly here: number
}

/** Holds what was measured against a goal. */
export function judge({ what, limit, unit = '', digits = 2, better = 'less', floor, yardstick }: Limit, measured: Summary): GoalResult {
  const holds = (value: number): boolean => (better === 'less' ? value <= limit : value >= limit)
  const show = (value: number): string => `${grouped(value, digits)}${unit === '' ? '' : ` ${unit}`}`
  const best = better === 'less' ? measured.lowerQuartile : measured.upperQuartile
  return {
    what,
    goal: `${better === 'less' ? 'at most' : 'at least'} ${show(limit)}`,
    measured: show(measured.median),
    spread: `${grouped(measured.lowerQuartile, digits)} to ${grouped(measured.upperQuartile, digits)}`,
    floor: floor === undefined ? '' : show(floor.median),
    scaled: yardstick === undefined ? '' : show((measured.median * yardstick.there) / yardstick.here),
    verdict: holds(measured.median) ? 'yes' : holds(best) ? 'within the spread' : 'no',
  }
}

/** A number with its thousands apart. */
export function grouped(value: number, digits = 0): string {
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits })
}
