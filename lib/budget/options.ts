/**
 * What a probe, or all probes of a tracer together, may cost: the option `budget`.
 */
import { bad, onlyKnown } from '../option-checks.js'

/** What hits may cost on average; with both, the one that is reached first counts. */
export interface Budget {
  /**
   * CPU time that hits may take from the programs that are traced, in percent of one CPU, as `top` counts: 5 is 50 ms in a second. From 0.01 to 100,000. What a hit costs is
   * measured in this process when it is first needed; see docs/guide.md.
   */
  cpuPercent?: number | undefined
  /** Hits a second, from 1 to 10^9. Of the latency of a function calls, and of that between two probes the hits of both. */
  hitsPerSecond?: number | undefined
}

/** Checks the option. Throws `ERR_UPROBE_BAD_OPTION`. */
export function checkBudget(value: unknown): Budget | null {
  if (value === undefined) return null
  if (typeof value !== 'object' || value === null) bad('budget', 'give an object, such as { cpuPercent: 5 }')
  onlyKnown(value, ['cpuPercent', 'hitsPerSecond'], 'budget.')
  const { cpuPercent, hitsPerSecond }: { cpuPercent?: unknown; hitsPerSecond?: unknown } = value
  const budget = {
    cpuPercent: between('budget.cpuPercent', cpuPercent, 0.01, 100_000),
    hitsPerSecond: between('budget.hitsPerSecond', hitsPerSecond, 1, 1e9),
  }
  if (budget.cpuPercent === undefined && budget.hitsPerSecond === undefined) bad('budget', 'give cpuPercent, hitsPerSecond, or both')
  return budget
}

function between(name: string, value: unknown, least: number, most: number): number | undefined {
  if (value === undefined) return undefined
  if (typeof value !== 'number' || !(value >= least && value <= most)) bad(name, `give a number from ${least} to ${most}`)
  return value
}

/**
 * How long a hit is paid for: the time, in milliseconds, in which the budget allows for one hit.
 * @param hitCostNs - CPU time that a hit costs the target
 */
export function msPerHit({ cpuPercent, hitsPerSecond }: Budget, hitCostNs: number): number {
  const byCpu = cpuPercent === undefined ? 0 : hitCostNs / 1e6 / (cpuPercent / 100)
  const byHits = hitsPerSecond === undefined ? 0 : 1000 / hitsPerSecond
  return Math.max(byCpu, byHits)
}
