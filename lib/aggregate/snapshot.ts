/**
 * What a program sees of an aggregation.
 */
import type { ArgumentValue } from '../capture/arguments.js'
import type { ProbeStateChange } from '../probe-types.js'

/** Buckets of one sign, one after another: element i counts bucket `offset + i`. */
export interface HistogramBuckets {
  readonly offset: number
  readonly bucketCounts: readonly number[]
}

/**
 * A base-2 exponential histogram as OpenTelemetry has it: with base = 2^(2^-scale), bucket i counts the values above base^i and up to base^(i+1). Field for field an `ExponentialHistogramDataPoint`, but for sum, min and
 * max, which are measured if they are asked for.
 */
export interface ExponentialHistogram {
  readonly scale: number
  readonly zeroCount: number
  readonly positive: HistogramBuckets
  /** Negative values by their absolute value. */
  readonly negative: HistogramBuckets
}

/** What was measured. What was not asked for is `null`, and so are extremes of nothing. */
export interface Aggregates {
  readonly count: number
  readonly sum: bigint | null
  readonly min: bigint | null
  readonly max: bigint | null
  readonly histogram: ExponentialHistogram | null
}

/** The hits that have one key. */
export interface AggregateGroup extends Aggregates {
  /** In the order of `by`; empty without. */
  readonly key: readonly ArgumentValue[]
}

/** What an aggregation has seen. */
export interface AggregationSnapshot {
  /** Since when, in milliseconds since 1970: the beginning, or the last reset. */
  readonly startTimeMs: number
  /** Until when. */
  readonly timeMs: number
  /** Of this time, that in which hits were counted, in milliseconds; so `count / seenMs` is how often there were hits, also with a budget. Of a latency, that in which its beginnings were; what has begun then may have ended later. */
  readonly seenMs: number
  /**
   * `seenMs` as a share of the time: 1, unless a budget took the probe out for parts of it, it could not be armed again (`refused`), or it gave way to another tool (`yield`). `count / seenFraction` is
   * an estimate of how many there were; sums are estimated likewise, extremes are those of what was seen. 0 if nothing was.
   */
  readonly seenFraction: number
  /** Those with most hits first, and of those with as many the lower key. Without `by` there is always one. */
  readonly groups: readonly AggregateGroup[]
  /** The hits whose groups did not fit any more; `null` if there are none. */
  readonly other: Aggregates | null
}

/**
 * Counts of an aggregation. hits = filtered + aggregated + lost + unfinished holds exactly once it is detached. Of a latency, the hits are those of the probe it begins at.
 */
export interface AggregationStats {
  /** Executions of the sites, counted in the kernel. */
  readonly hits: number
  /** Hits that the filter rejected. */
  readonly filtered: number
  /** Hits that are in some group, or in `other`. */
  readonly aggregated: number
  /** All others: the next three, and after the end whatever else is missing. */
  readonly lost: number
  /** Hits whose measured value could not be read. */
  readonly lostUnreadable: number
  /** Hits whose group was changed by others without pause. Where a hit may change several extremes, one of them may show it all the same. */
  readonly lostContended: number
  /** Latency: beginnings that had to go for want of room. */
  readonly lostStarts: number
  /** Latency: beginnings without an end: given up, or not ended yet. */
  readonly unfinished: number
  /** Latency: those of `unfinished` that were given up, since their call was left, their thread is over, or their end may have been missed, in a process that came late or whose leader thread has exited (docs/limits.md). A thread that is over while the probes are taken out may move from here to `cutOff`. */
  readonly abandoned: number
  /** Latency: those of `unfinished` that had not ended when the probes were taken out: by a budget, a pause, or for another tool. Of these it is known only that they took longer than they were watched. */
  readonly cutOff: number
  /** Latency: ends without a beginning that was kept. They are no part of `hits`. */
  readonly unmatched: number
  /** Latency: ends without a beginning after the probes had been taken out, so that it may have been while nobody looked. They are part neither of `hits` nor of `unmatched`. */
  readonly begunUnseen: number
  /** Time in which hits were counted, in milliseconds, since the attach and not since a reset. */
  readonly seenMs: number
  /** `seenMs` as a share of the time since the attach, as of a probe. */
  readonly seenFraction: number
}

/** Events of an `Aggregation`. */
export interface AggregationEvents {
  /** The state changed, or a process went away. */
  state: [change: ProbeStateChange]
  /** Something failed in the background; the aggregation goes on as far as it can. */
  error: [error: Error]
}
