/**
 * What became of the hits of a probe, by slot: hits = filtered + delivered + lost, exactly, once no program runs any more and the ring is drained.
 */
import type { BatchRecords } from './capture/hit.js'
import type { RecordOffsets } from './capture/record-offsets.js'
import type { ProbeStats } from './probe-types.js'
import type { KernelCounts, SiteCounts } from './register/stats.js'

/** The group of a slot that is in none. */
export const NO_GROUP = -1
/** Sums of a group. */
const FIELDS = 5

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
    return sum(this.#kernelCounts().hits)
  }

  /** The counts of all slots together. */
  all(): Counted {
    const { hits, filtered, lostRing } = this.#kernelCounts()
    return this.#settle(sum(hits), sum(filtered), sum(lostRing), sum(this.#delivered), sum(this.#lostQueue))
  }

  /**
   * Tells the counts of each of some groups of slots, at one moment, in one pass over the slots.
   * @param groupOf - the group of each slot, or {@link NO_GROUP}
   * @param tell - is told of each group, by its number
   */
  ofGroups(groupOf: Int32Array, groups: number, tell: (group: number, counted: Counted) => void): void {
    const { hits, filtered, lostRing } = this.#kernelCounts()
    const [delivered, lostQueue] = [this.#delivered, this.#lostQueue]
    const sums = new Float64Array(groups * FIELDS)
    for (let slot = 0; slot < groupOf.length; slot++) {
      const group = groupOf[slot] ?? NO_GROUP
      if (group === NO_GROUP) continue
      const at = group * FIELDS
      sums[at] = (sums[at] ?? 0) + (hits[slot] ?? 0)
      sums[at + 1] = (sums[at + 1] ?? 0) + (filtered[slot] ?? 0)
      sums[at + 2] = (sums[at + 2] ?? 0) + (lostRing[slot] ?? 0)
      sums[at + 3] = (sums[at + 3] ?? 0) + (delivered[slot] ?? 0)
      sums[at + 4] = (sums[at + 4] ?? 0) + (lostQueue[slot] ?? 0)
    }
    for (let group = 0; group < groups; group++) {
      const at = group * FIELDS
      tell(group, this.#settle(sums[at] ?? 0, sums[at + 1] ?? 0, sums[at + 2] ?? 0, sums[at + 3] ?? 0, sums[at + 4] ?? 0))
    }
  }

  #kernelCounts(): KernelCounts {
    return this.#final ?? this.counts.read()
  }

  #settle(hits: number, filtered: number, lostRing: number, taken: number, lostQueue: number): Counted {
    const delivered = this.countOnly ? hits - filtered : taken
    // After the end nothing is on its way any more, so whatever is not accounted for is lost.
    const lost = this.#final === null ? lostRing + lostQueue : hits - filtered - delivered
    return { hits, filtered, delivered, lost, lostRing, lostQueue }
  }
}

function sum(counts: Float64Array): number {
  let total = 0
  for (let slot = 0; slot < counts.length; slot++) total += counts[slot] ?? 0
  return total
}

/** Counts of hits, as of {@link ProbeStats}. */
export type Counted = Omit<ProbeStats, 'seenMs' | 'seenFraction'>
