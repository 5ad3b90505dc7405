/** The counts of a session by probe, as `trace` and `demo` close with them. */
import type { Probe } from '../index.js'
import { escapeForDisplay } from '../log.js'
import { plural } from './text.js'

/** Counts of all sites that one probe name stands for. */
export interface SummaryEntry {
  readonly probe: string
  readonly hits: number
  readonly filtered: number
  readonly delivered: number
  readonly lost: number
  /** With a budget: the part of the time in which hits were counted, the least of those that are added up. */
  readonly seenFraction?: number
}

/**
 * Adds up by the probe's name what was counted in several files, or for several specifications.
 * @param budget - whether there is one
 */
export function summarize(probes: readonly Probe[], budget: boolean): SummaryEntry[] {
  const byName = new Map<string, SummaryEntry>()
  for (const { probe, hits, filtered, delivered, lost, seenFraction } of probes.flatMap((p) => p.statsByName())) {
    const before: Omit<SummaryEntry, 'probe'> = byName.get(probe) ?? { hits: 0, filtered: 0, delivered: 0, lost: 0 }
    byName.set(probe, {
      probe,
      hits: before.hits + hits,
      filtered: before.filtered + filtered,
      delivered: before.delivered + delivered,
      lost: before.lost + lost,
      ...(budget && { seenFraction: Math.min(before.seenFraction ?? 1, seenFraction) }),
    })
  }
  return [...byName.values()]
}

/**
 * As in `20 hits, 20 delivered, 0 lost`; what a filter rejected is named when there is some, and with a budget the part of the time that was seen.
 * @param printed - how many of those that were delivered; told if not all were
 */
export function displayCounts(
  { hits, filtered, delivered, lost, seenFraction }: Omit<SummaryEntry, 'probe'>,
  printed: number = delivered,
): string {
  const rejected = filtered === 0 ? '' : `${filtered} filtered, `
  const shown = printed === delivered ? '' : ` (${printed} printed)`
  return `${plural(hits, 'hit')}, ${rejected}${delivered} delivered${shown}, ${lost} lost${displaySeen(seenFraction)}`
}

/** As in `, 12.5 % of the time seen`; nothing without a budget. What is not all does not read as all, nor what is not nothing as nothing. */
export function displaySeen(seenFraction: number | undefined): string {
  if (seenFraction === undefined) return ''
  return `, ${displayPercent(100 * seenFraction)} % of the time seen`
}

function displayPercent(percent: number): string {
  if (percent === 0 || percent === 100) return String(percent)
  if (percent < 0.1) return 'less than 0.1'
  return percent > 99.9 ? 'more than 99.9' : percent.toFixed(1)
}

/**
 * One line a probe.
 * @param printed - how many hits of each name were printed, where that may be fewer than were delivered
 */
export function displaySummary(entries: readonly SummaryEntry[], printed?: ReadonlyMap<string, number>): string[] {
  return entries.map((entry) => {
    const shown = printed === undefined ? undefined : (printed.get(entry.probe) ?? 0)
    return `${escapeForDisplay(entry.probe)}: ${displayCounts(entry, shown)}`
  })
}
