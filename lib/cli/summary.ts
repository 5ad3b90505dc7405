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
}

/** Adds up by the probe's name what was counted in several files, or for several specifications. */
export function summarize(probes: readonly Probe[]): SummaryEntry[] {
  const byName = new Map<string, SummaryEntry>()
  for (const { probe, hits, filtered, delivered, lost } of probes.flatMap((p) => p.statsByName())) {
    const before = byName.get(probe) ?? { hits: 0, filtered: 0, delivered: 0, lost: 0 }
    byName.set(probe, {
      probe,
      hits: before.hits + hits,
      filtered: before.filtered + filtered,
      delivered: before.delivered + delivered,
      lost: before.lost + lost,
    })
  }
  return [...byName.values()]
}

/** As in `20 hits, 20 delivered, 0 lost`; what a filter rejected is named when there is some. */
export function displayCounts({ hits, filtered, delivered, lost }: Omit<SummaryEntry, 'probe'>): string {
  const rejected = filtered === 0 ? '' : `${filtered} filtered, `
  return `${plural(hits, 'hit')}, ${rejected}${delivered} delivered, ${lost} lost`
}

/** One line a probe. */
export function displaySummary(entries: readonly SummaryEntry[]): string[] {
  return entries.map((entry) => `${escapeForDisplay(entry.probe)}: ${displayCounts(entry)}`)
}
