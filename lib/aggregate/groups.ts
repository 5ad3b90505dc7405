/**
 * The groups of one aggregation in JavaScript: what the kernel has counted so far, added up over CPUs and generations.
 *
 * Counts are numbers, exact to 2^53, so that thousands of buckets are quickly added; sums and extremes are integers of 64 bits and more.
 */
import type { ArgumentValue } from '../capture/arguments.js'
import { TimeSlice } from '../elf/time-slice.js'
import { FIRST_INDEX } from './buckets.js'
import { decodeKey } from './key-code.js'
import type { GroupLayout, HistogramLayout, Measure } from './layout.js'
import type { AggregateGroup, Aggregates, ExponentialHistogram, HistogramBuckets } from './snapshot.js'
import { sortInSlices } from './sort-in-slices.js'
import { readCount } from './store.js'

/** The clock is read once in so many groups. */
const GROUPS_A_LOOK = 16

/** What is known of one group. */
class Group {
  count = 0
  sum = 0n
  min: bigint | null = null
  max: bigint | null = null
  readonly buckets: Float64Array

  constructor(
    private readonly layout: GroupLayout,
    readonly key: Buffer,
  ) {
    const { histogram } = layout
    this.buckets = new Float64Array(histogram === null ? 0 : 1 + histogram.positives + histogram.negatives)
  }

  /** Adds what one CPU has counted; returns how many hits that are. */
  add(view: DataView, at: number): number {
    const { countAt, histogram, measures } = this.layout
    let added = countAt === null ? 0 : readCount(view, at + countAt)
    if (histogram !== null) {
      for (let index = 0; index < this.buckets.length; index++) {
        const count = readCount(view, at + histogram.at + 8 * index)
        this.buckets[index] = (this.buckets[index] ?? 0) + count
        added += count
      }
    }
    this.count += added
    if (added === 0) return 0
    for (const measure of measures) {
      if (measure.kind === 'sum')
        this.sum += measure.signed ? view.getBigInt64(at + measure.at, true) : view.getBigUint64(at + measure.at, true)
      if (measure.kind === 'min') this.min = lesser(this.min, readExtreme(view, at, measure))
      if (measure.kind === 'max') this.max = greater(this.max, readExtreme(view, at, measure))
    }
    return added
  }

  /** Adds another group. */
  merge(other: Group): void {
    this.count += other.count
    this.sum += other.sum
    if (other.min !== null) this.min = lesser(this.min, other.min)
    if (other.max !== null) this.max = greater(this.max, other.max)
    for (const [index, count] of other.buckets.entries()) this.buckets[index] = (this.buckets[index] ?? 0) + count
  }

  aggregates(): Aggregates {
    const { histogram, measures } = this.layout
    return {
      count: this.count,
      sum: measures.some(({ kind }) => kind === 'sum') ? this.sum : null,
      min: this.min,
      max: this.max,
      histogram: histogram === null ? null : toHistogram(histogram, this.buckets),
    }
  }
}

/** All groups of one aggregation since the last reset. */
export class Groups {
  #groups = new Map<string, Group>()
  #other: Group
  /** Those that are in the generation that is being added. */
  readonly #present = new Set<string>()
  /** Whether some hits had no group: then any key that has none may be theirs. */
  #full = false

  /** @param maxGroups - how many there may be; 0 without a key */
  constructor(
    private readonly layout: GroupLayout,
    private readonly maxGroups: number,
  ) {
    this.#other = new Group(layout, Buffer.alloc(0))
  }

  /** Adds what all CPUs have counted for a key, or, behind all keys of a generation, without one; returns how many hits that are. */
  add(key: Buffer | null, view: DataView): number {
    const group = key === null ? this.#other : this.#groupOf(key)
    let added = 0
    for (let at = 0; at < view.byteLength; at += this.layout.bytes) added += group.add(view, at)
    if (key === null && this.layout.keyBytes > 0) this.#endGeneration(added > 0)
    return added
  }

  /** Forgets everything. */
  reset(): void {
    this.#groups = new Map()
    this.#full = false
    this.#other = new Group(this.layout, Buffer.alloc(0))
  }

  /** Those with most hits first, and of those with as many the lower key. The event loop gets its turn meanwhile; nothing may be added before it has resolved. */
  async groups(): Promise<AggregateGroup[]> {
    if (this.layout.keyBytes === 0) return [{ key: [], ...this.#other.aggregates() }]
    const slice = new TimeSlice()
    const groups: AggregateGroup[] = []
    for (const group of this.#groups.values()) {
      if (groups.length % GROUPS_A_LOOK === 0 && slice.isOver) await slice.rest()
      if (group.count === 0) continue
      groups.push({ key: decodeKey(this.layout, group.key), ...group.aggregates() })
    }
    return sortInSlices(groups, (one, other) => other.count - one.count || compareKeys(one.key, other.key), slice)
  }

  /** What has no group of its own. */
  other(): Aggregates | null {
    return this.layout.keyBytes === 0 || this.#other.count === 0 ? null : this.#other.aggregates()
  }

  /**
   * Where hits had no place in a generation, they may be of any group that had none there either. Groups keep their places (store.ts), but one that came first while these were being kept may be
   * without. What would be shown of it would be a part, so it is counted as a whole with those that have no group.
   */
  #endGeneration(anyWithout: boolean): void {
    if (anyWithout) {
      this.#full = true
      for (const [text, group] of this.#groups) {
        if (this.#present.has(text)) continue
        this.#other.merge(group)
        this.#groups.delete(text)
      }
    }
    this.#present.clear()
  }

  #groupOf(key: Buffer): Group {
    const text = key.toString('latin1')
    this.#present.add(text)
    const known = this.#groups.get(text)
    if (known !== undefined) return known
    // The kernel bounds the groups of one generation; over several there may be more.
    if (this.#full || this.#groups.size >= this.maxGroups) {
      this.#full = true
      return this.#other
    }
    const group = new Group(this.layout, Buffer.from(key))
    this.#groups.set(text, group)
    return group
  }
}

/** Numbers in their order, everything else as text. */
function compareKeys(one: readonly ArgumentValue[], other: readonly ArgumentValue[]): number {
  for (const [index, part] of one.entries()) {
    const against = other[index]
    if (isNumber(part) && isNumber(against)) {
      if (part !== against) return part < against ? -1 : 1
    } else {
      const [text, otherText] = [textOf(part), textOf(against)]
      if (text !== otherText) return text < otherText ? -1 : 1
    }
  }
  return 0
}

function textOf(part: ArgumentValue | undefined): string {
  return typeof part === 'object' ? JSON.stringify(part) : String(part)
}

function isNumber(value: unknown): value is number | bigint {
  return typeof value === 'number' || typeof value === 'bigint'
}

function readExtreme(view: DataView, at: number, { kind, at: offset, signed }: Measure): bigint {
  const stored = view.getBigUint64(at + offset, true)
  const ordered = kind === 'min' ? BigInt.asUintN(64, ~stored) : stored
  return signed ? BigInt.asIntN(64, ordered ^ (1n << 63n)) : ordered
}

function lesser(one: bigint | null, other: bigint): bigint {
  return one === null || other < one ? other : one
}

function greater(one: bigint | null, other: bigint): bigint {
  return one === null || other > one ? other : one
}

function toHistogram({ scale, positives, negatives }: HistogramLayout, buckets: Float64Array): ExponentialHistogram {
  return {
    scale,
    zeroCount: buckets[0] ?? 0,
    positive: toBuckets(buckets.subarray(1, 1 + positives)),
    negative: toBuckets(buckets.subarray(1 + positives, 1 + positives + negatives)),
  }
}

/** From the first bucket that is not empty to the last. In plain loops, which go through the thousands of buckets of thousands of groups in a tenth of the time of an iterator. */
function toBuckets(counts: Float64Array): HistogramBuckets {
  let first = 0
  while (first < counts.length && counts[first] === 0) first++
  if (first === counts.length) return { offset: 0, bucketCounts: [] }
  let last = counts.length - 1
  while (counts[last] === 0) last--
  const bucketCounts: number[] = []
  for (let index = first; index <= last; index++) bucketCounts.push(counts[index] ?? 0)
  return { offset: FIRST_INDEX + first, bucketCounts }
}
