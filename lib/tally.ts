/**
 * What became of the hits of a probe, by slot: hits = filtered + delivered + lost, exactly, once no program runs any more and the ring is drained.
 */
import type { BatchRecords } from './capture/hit.js'
import type { RecordOffsets } from './capture/record-offsets.js'
import type { NamedStats, ProbeStats } from './probe-types.js'
import type { KernelCounts, SiteCounts } from './register/stats.js'

/** The group of a slot that is in none. */
export const NO_GROUP = -1

/** What slots have in common whose counts are added up. */
export type GroupName = Pick<NamedStats, 'probe' | 'path'>

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
    const counts = this.#kernelCounts()
    const hits = sum(counts.hits)
    const filtered = sum(counts.filtered)
    const lostRing = sum(counts.lostRing)
    const lostQueue = sum(this.#lostQueue)
    const delivered = this.#deliveredOf(hits, filtered, sum(this.#delivered))
    return { hits, filtered, delivered, lost: this.#lostOf(hits, filtered, delivered, lostRing + lostQueue), lostRing, lostQueue }
  }

  /**
   * The counts of some groups of slots, at one moment. There may be ten thousand, so that nothing is made for each but what is returned.
   * @param groupOf - the group of each slot, or {@link NO_GROUP}
   * @param names - of the groups
   * @param time - the same for all
   */
  ofGroups(groupOf: Int32Array, names: readonly GroupName[], { seenMs, seenFraction }: Omit<ProbeStats, keyof Counted>): NamedStats[] {
    const counts = this.#kernelCounts()
    // Groups are numbered in the order of their slots: as many as there are slots, and each slot is a group.
    const apart = names.length === groupOf.length
    const sums = (bySlot: Float64Array): Float64Array => (apart ? bySlot : sumsOf(bySlot, groupOf, names.length))
    const [allHits, allFiltered, allLostRing] = [sums(counts.hits), sums(counts.filtered), sums(counts.lostRing)]
    const [allTaken, allLostQueue] = [sums(this.#delivered), sums(this.#lostQueue)]
    const result: NamedStats[] = []
    for (let group = 0; group < names.length; group++) {
      const { probe, path } = names[group] ?? { probe: '', path: '' }
      const hits = allHits[group] ?? 0
      const filtered = allFiltered[group] ?? 0
      const lostRing = allLostRing[group] ?? 0
      const lostQueue = allLostQueue[group] ?? 0
      const delivered = this.#deliveredOf(hits, filtered, allTaken[group] ?? 0)
      const lost = this.#lostOf(hits, filtered, delivered, lostRing + lostQueue)
      result.push({ probe, path, hits, filtered, delivered, lost, lostRing, lostQueue, seenMs, seenFraction })
    }
    return result
  }

  #kernelCounts(): KernelCounts {
    return this.#final ?? this.counts.read()
  }

  #deliveredOf(hits: number, filtered: number, taken: number): number {
    return this.countOnly ? hits - filtered : taken
  }

  /** After the end nothing is on its way any more, so whatever is not accounted for is lost. */
  #lostOf(hits: number, filtered: number, delivered: number, known: number): number {
    return this.#final === null ? known : hits - filtered - delivered
  }
}

/** The sums of groups of slots. */
function sumsOf(bySlot: Float64Array, groupOf: Int32Array, groups: number): Float64Array {
  const sums = new Float64Array(groups)
  for (let slot = 0; slot < groupOf.length; slot++) {
    const group = groupOf[slot] ?? NO_GROUP
    if (group !== NO_GROUP) sums[group] = (sums[group] ?? 0) + (bySlot[slot] ?? 0)
  }
  return sums
}

function sum(counts: Float64Array): number {
  let total = 0
  for (let slot = 0; slot < counts.length; slot++) total += counts[slot] ?? 0
  return total
}

/** Counts of hits, as of {@link ProbeStats}. */
export type Counted = Omit<ProbeStats, 'seenMs' | 'seenFraction'>
