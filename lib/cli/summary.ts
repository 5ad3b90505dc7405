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
  /** Not there if hits were counted all the time; otherwise the part of it in which they were, the least of those that are added up. */
  readonly seenFraction?: number
}

/** Adds up by the probe's name what was counted in several files, or for several specifications. */
export function summarize(probes: readonly Probe[]): SummaryEntry[] {
  const byName = new Map<string, SummaryEntry>()
  for (const { probe, hits, filtered, delivered, lost, seenFraction } of probes.flatMap((p) => p.statsByName())) {
    const before: Omit<SummaryEntry, 'probe'> = byName.get(probe) ?? { hits: 0, filtered: 0, delivered: 0, lost: 0 }
    const seen = Math.min(before.seenFraction ?? 1, seenFraction)
    byName.set(probe, {
      probe,
      hits: before.hits + hits,
      filtered: before.filtered + filtered,
      delivered: before.delivered + delivered,
      lost: before.lost + lost,
      ...(seen < 1 && { seenFraction: seen }),
    })
  }
  return [...byName.values()]
}

/** As in `20 hits, 20 delivered, 0 lost`; what a filter rejected is named when there is some, and the part of the time that was seen when it was not all. */
export function displayCounts({ hits, filtered, delivered, lost, seenFraction }: Omit<SummaryEntry, 'probe'>): string {
  const rejected = filtered === 0 ? '' : `${filtered} filtered, `
  return `${plural(hits, 'hit')}, ${rejected}${delivered} delivered, ${lost} lost${displaySeen(seenFraction)}`
}

/** As in `, 12.5 % of the time seen`; nothing if that was all. */
export function displaySeen(seenFraction = 1): string {
  return seenFraction < 1 ? `, ${(100 * seenFraction).toFixed(1)} % of the time seen` : ''
}

/** One line a probe. */
export function displaySummary(entries: readonly SummaryEntry[]): string[] {
  return entries.map((entry) => `${escapeForDisplay(entry.probe)}: ${displayCounts(entry)}`)
}
