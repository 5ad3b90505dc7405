/**
 * What became of the hits of a probe, by slot: hits = filtered + delivered + lost, exactly, once no program runs any more and the ring is drained.
 */
import type { BatchRecords } from './capture/hit.js'
import type { RecordOffsets } from './capture/record-offsets.js'
import type { ProbeStats } from './probe-types.js'
import type { KernelCounts, SiteCounts } from './register/stats.js'

/** See the module's comment. */
export class Tally {
  readonly #delivered: Float64Array
  readonly #lostQueue: Float64Array
  #final: KernelCounts | null = null

  /**
   * @param counts - what the kernel counts, read while it is not closed
   * @param countOnly - hits are not delivered one by one: all that are not filtered count as delivered
   */
  constructor(
    private readonly counts: SiteCounts,
    slots: number,
    private readonly countOnly: boolean,
  ) {
    this.#delivered = new Float64Array(slots)
    this.#lostQueue = new Float64Array(slots)
  }

  /** Counts records of which the first `taken` were delivered, and for the others of which there was no room. */
  add(records: BatchRecords, offsets: RecordOffsets, taken: number): void {
    records.countSlots(offsets, 0, taken, this.#delivered)
    records.countSlots(offsets, taken, offsets.length, this.#lostQueue)
  }

  /** Reads the kernel's counts for the last time. */
  finish(): void {
    this.#final = this.counts.read()
  }

  /** Executions of all sites. */
  get hits(): number {
    return this.#kernelCounts().hits.reduce((sum, hits) => sum + hits, 0)
  }

  /** The counts of all slots together. */
  all(): Counted {
    return this.#sum(this.#kernelCounts(), this.#delivered.keys())
  }

  /** The counts of each of some groups of slots, at one moment. */
  of(groups: readonly (readonly number[])[]): Counted[] {
    const counts = this.#kernelCounts()
    return groups.map((slots) => this.#sum(counts, slots))
  }

  #kernelCounts(): KernelCounts {
    return this.#final ?? this.counts.read()
  }

  #sum(counts: KernelCounts, slots: Iterable<number>): Counted {
    let hits = 0
    let filtered = 0
    let delivered = 0
    let lostRing = 0
    let lostQueue = 0
    for (const slot of slots) {
      hits += counts.hits[slot] ?? 0
      filtered += counts.filtered[slot] ?? 0
      lostRing += counts.lostRing[slot] ?? 0
      delivered += this.#delivered[slot] ?? 0
      lostQueue += this.#lostQueue[slot] ?? 0
    }
    if (this.countOnly) delivered = hits - filtered
    // After the end nothing is on its way any more, so whatever is not accounted for is lost.
    const lost = this.#final === null ? lostRing + lostQueue : hits - filtered - delivered
    return { hits, filtered, delivered, lost, lostRing, lostQueue }
  }
}

/** Counts of hits, as of {@link ProbeStats}. */
export type Counted = Omit<ProbeStats, 'seenMs' | 'seenFraction'>
