/**
 * What became of the hits of a probe, by slot: hits = filtered + delivered + lost, exactly, once no program runs any more and the ring is drained.
 */
import type { BatchRecords } from './capture/hit.js'
import type { RecordOffsets } from './capture/record-offsets.js'
import type { NamedStats, ProbeStats } from './probe-types.js'
import { type KernelCounts, type SiteCounts, zeros } from './register/stats.js'
import { NO_GROUP, type SlotGroups } from './site-names.js'

/** See the module's comment. */
export class Tally {
  // Counted at each hit, which is a nanosecond sooner done than in an array.
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
    const counts = this.#kernelCounts()
    const hits = sum(counts.hits)
    const filtered = sum(counts.filtered)
    const lostRing = sum(counts.lostRing)
    const lostQueue = sum(this.#lostQueue)
    const delivered = this.countOnly ? hits - filtered : sum(this.#delivered)
    // After the end nothing is on its way any more, so whatever is not accounted for is lost.
    const lost = this.#final === null ? lostRing + lostQueue : hits - filtered - delivered
    return { hits, filtered, delivered, lost, lostRing, lostQueue }
  }

  /**
   * The same for groups of slots, at one moment. There may be ten thousand, so that little is made or called for each but what is returned.
   * @param time - the same for all
   */
  ofGroups({ groupOf, names, paths }: SlotGroups, { seenMs, seenFraction }: Omit<ProbeStats, keyof Counted>): NamedStats[] {
    const counts = this.#kernelCounts()
    const sums = (bySlot: Counts): Counts => (groupOf === null ? bySlot : sumsOf(bySlot, groupOf, names.length))
    const [allHits, allFiltered, allLostRing] = [sums(counts.hits), sums(counts.filtered), sums(counts.lostRing)]
    const [allTaken, allLostQueue] = [sums(this.#delivered), sums(this.#lostQueue)]
    const { countOnly } = this
    const isFinal = this.#final !== null
    const result: NamedStats[] = []
    for (let group = 0; group < names.length; group++) {
      const probe = names[group] ?? ''
      const path = paths[group] ?? ''
      const hits = allHits[group] ?? 0
      const filtered = allFiltered[group] ?? 0
      const lostRing = allLostRing[group] ?? 0
      const lostQueue = allLostQueue[group] ?? 0
      const delivered = countOnly ? hits - filtered : (allTaken[group] ?? 0)
      const lost = isFinal ? hits - filtered - delivered : lostRing + lostQueue
      result.push({ probe, path, hits, filtered, delivered, lost, lostRing, lostQueue, seenMs, seenFraction })
    }
    return result
  }

  #kernelCounts(): KernelCounts {
    return this.#final ?? this.counts.read()
  }
}

type Counts = readonly number[] | Float64Array

/** The sums of groups of slots. */
function sumsOf(bySlot: Counts, groupOf: Int32Array, groups: number): number[] {
  const sums = zeros(groups)
  for (let slot = 0; slot < groupOf.length; slot++) {
    const group = groupOf[slot] ?? NO_GROUP
    if (group !== NO_GROUP) sums[group] = (sums[group] ?? 0) + (bySlot[slot] ?? 0)
  }
  return sums
}

function sum(counts: Counts): number {
  let total = 0
  for (let slot = 0; slot < counts.length; slot++) total += counts[slot] ?? 0
  return total
}

/** Counts of hits, as of {@link ProbeStats}. */
export type Counted = Omit<ProbeStats, 'seenMs' | 'seenFraction'>
