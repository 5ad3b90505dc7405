/**
 * Counts of several probes over one and the same time. They are attached and detached one after another, and what one of them saw alone would look as if there had been more of it than of the others.
 */
import type { NamedStats } from '../index.js'
import { type Consume, untilAllEnd } from './session.js'

/** What is counted of one name in one file. */
export type CommonCounts = Pick<NamedStats, 'probe' | 'path' | 'hits' | 'filtered' | 'seenFraction'>

/** The time from when all are attached until it is to end. */
export class CommonTime {
  #before: readonly NamedStats[] = []
  #after: readonly NamedStats[] = []

  /** Lasts until the probes have ended. */
  readonly pass: Consume = async (probes, { signal }) => {
    const look = (): NamedStats[] => probes.flatMap((probe) => probe.statsByName())
    this.#before = look()
    const atEnd = (): void => {
      this.#after = look()
    }
    if (signal.aborted) atEnd()
    else signal.addEventListener('abort', atEnd, { once: true })
    await untilAllEnd(probes)
  }

  /** What was counted in it, when it is over. */
  counts(): CommonCounts[] {
    return this.#after.map(({ probe, path, hits, filtered, seenFraction }, index) => {
      const before = this.#before[index]
      return { probe, path, hits: hits - (before?.hits ?? 0), filtered: filtered - (before?.filtered ?? 0), seenFraction }
    })
  }
}
