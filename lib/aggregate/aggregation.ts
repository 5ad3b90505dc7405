/**
 * An aggregation: what `tracer.aggregate` returns.
 *
 * It owns the probe whose programs add up (of a latency two), and what they have added. It ends with the probe: by `detach()`, when the processes are gone, or when the signal is aborted. Then the registrations are closed first, so that no
 * program runs any more, and what the maps hold is read for the last time; snapshots show it from then on.
 */
import { EventEmitter } from 'node:events'
import type { Throttled } from '../budget/member.js'
import { type SeenTime, seenFractionOf } from '../budget/seen-clock.js'
import type { ReleasedCounter } from '../counter/control.js'
import { callGuarded } from '../delivery/consumer.js'
import { follow } from '../follow.js'
import type { Logger } from '../log.js'
import { bad, boolean, onlyKnown } from '../option-checks.js'
import type { Probe } from '../probe.js'
import type { ProbeSite } from '../probe-site.js'
import type { ProbeState, ProbeStateChange } from '../probe-types.js'
import type { Groups } from './groups.js'
import { lostOf, type Pair, type PairCounts } from './pair.js'
import type { AggregationEvents, AggregationSnapshot, AggregationStats } from './snapshot.js'
import type { GroupStore, Losses } from './store.js'

/** @internal What an aggregation is made of. */
export interface AggregationParts {
  readonly start: Probe
  /** Of a latency, what else belongs to it. */
  readonly pair: Pair | null
  readonly store: GroupStore
  readonly groups: Groups
  /** Ends it when it is aborted. Its probes do not follow it, since of two each has its time to go. */
  readonly signal: AbortSignal | null
  readonly log: Logger
  readonly onEnded: (aggregation: Aggregation) => void
}

/** A running aggregation; see the module's comment. Made by `tracer.aggregate`. */
export class Aggregation extends EventEmitter<AggregationEvents> {
  readonly #parts: AggregationParts
  #startTimeMs: number
  #timeMs: number
  /** What the probe's clock showed at these two moments. What was hit in the course of the attach is in the first snapshot, and so is its time. */
  #startTime: SeenTime = { seenMs: 0, outMs: 0 }
  #time = this.#startTime
  /** Hits in all groups there ever were. */
  #aggregated = 0
  #final: Losses | null = null
  #ending: Promise<void> | null = null
  #unfollow: () => void = () => undefined
  #work: Promise<unknown> = Promise.resolve()

  /** @internal */
  constructor(parts: AggregationParts) {
    super()
    this.#parts = parts
    const { start, pair, signal } = parts
    this.#timeMs = Date.now()
    // What was hit since all sites were in counts, which is some time ago.
    const { seenMs, outMs } = start.seenTime
    this.#startTimeMs = Math.floor(this.#timeMs - seenMs - outMs)
    start.on('state', (change) => this.#onState(change))
    pair?.end.on('state', (change) => {
      if (isOver(change.state)) this.#background(() => this.#end())
      else if (change.reason === 'arrival') this.#tell({ ...change, state: this.state })
    })
    for (const probe of this.#probes) probe.on('error', (error) => this.#report(error))
    if (signal !== null) {
      const stop = new AbortController()
      stop.signal.addEventListener('abort', () => this.#background(() => this.#end()))
      this.#unfollow = follow(signal, stop)
    }
    if (this.#probes.some(({ state }) => isOver(state))) this.#background(() => this.#end())
  }

  /** The sites, with the processes in which they were looked at. Of a latency, those of both probes. */
  get sites(): readonly ProbeSite[] {
    return this.#probes.flatMap((probe) => probe.sites)
  }

  /** What was not as asked for and did not make attaching fail, as sentences. They are logged too. */
  get warnings(): readonly string[] {
    return this.#probes.flatMap((probe) => probe.warnings)
  }

  /** What the aggregation is doing. */
  get state(): ProbeState {
    return this.#parts.start.state
  }

  /** Until when a budget keeps it out of its targets, as `Date.now()` tells time; `null` while it is armed or paused. */
  get outUntilMs(): number | null {
    return this.#parts.start.outUntilMs
  }

  /** @internal What a budget takes out. */
  get throttled(): Throttled {
    return this.#parts.pair ?? this.#parts.start
  }

  /** @internal Something is not as asked for. */
  warn(warning: string): void {
    this.#parts.start.warn(warning)
  }

  /** @internal Whether it holds nothing any more. */
  get ended(): boolean {
    return this.#final !== null
  }

  /**
   * What was seen since the beginning or the last reset. Every hit that had been added when it was called is in it, as a whole, with all that is measured of it; those that are being added are waited for,
   * which takes some tens of milliseconds. After the end it is what there was at the end.
   * @param options - `reset: true` begins anew behind this snapshot: each hit is in exactly one of the snapshots that reset
   * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`
   */
  async snapshot(options: { reset?: boolean | undefined } = {}): Promise<AggregationSnapshot> {
    const reset = checkReset(options)
    return this.#inTurn(async () => {
      if (!this.ended) await this.#take(reset ? 'until reset' : 'so far')
      const { groups } = this.#parts
      const time = { seenMs: this.#time.seenMs - this.#startTime.seenMs, outMs: this.#time.outMs - this.#startTime.outMs }
      const snapshot = {
        startTimeMs: this.#startTimeMs,
        timeMs: this.#timeMs,
        seenMs: time.seenMs,
        seenFraction: seenFractionOf(time),
        groups: await groups.groups(),
        other: groups.other(),
      }
      if (reset) {
        groups.reset()
        this.#startTimeMs = this.#timeMs
        this.#startTime = this.#time
      }
      return snapshot
    })
  }

  /** The counts of all hits. While attached they are a moment old. */
  stats(): AggregationStats {
    const { start, pair, store } = this.#parts
    const { hits, filtered, seenMs, seenFraction } = start.stats()
    const seen = { seenMs, seenFraction }
    const losses = this.#final ?? store.losses()
    const known = lostOf(losses)
    if (pair === null) {
      // After the end nothing is on its way any more, so whatever is not accounted for is lost.
      const aggregated = this.ended ? this.#aggregated : hits - filtered - known
      const counts = { aggregated, unfinished: 0, abandoned: losses.unfinished, cutOff: 0, unmatched: 0, begunUnseen: 0 }
      return toStats(hits, filtered, hits - filtered - aggregated, counts, losses, seen)
    }
    return toStats(hits, filtered, known, pair.counts(losses, this.ended ? this.#aggregated : undefined), losses, seen)
  }

  /**
   * Switches off until `resume()`, as a probe (see `probe.pause()`). The two probes of a latency are taken out together: what has begun is waited for as at a detach, and what has not ended then is
   * `cutOff`. The time of the pause is in no snapshot.
   * @throws {UprobeError} as `probe.pause()`
   */
  pause(): Promise<void> {
    return this.#parts.start.pause()
  }

  /**
   * Switches on again what was paused, gave way to another tool, or could not be armed again. Does nothing if it is not paused; what is throttled comes back by itself.
   * @throws {UprobeError} as `probe.resume()`; it stays paused then
   */
  resume(): Promise<void> {
    return this.#parts.start.resume()
  }

  /** @internal The counters that it has claimed, one for each process. */
  claimedCounters(): ReleasedCounter[] {
    return this.#parts.start.claimedCounters()
  }

  /** @internal Gives its claims up for another tool, and pauses. Returns whether there were any. */
  yield(): Promise<boolean> {
    return this.#parts.start.yield()
  }

  /**
   * Detaches: nothing is left in the target or in the kernel, and snapshots and counts are final when it resolves. Idempotent.
   * @throws {UprobeError} as `probe.detach()`
   */
  detach(): Promise<void> {
    return this.#end()
  }

  /** Detaches; for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.detach()
  }

  get #probes(): Probe[] {
    const { start, pair } = this.#parts
    return pair === null ? [start] : [start, pair.end]
  }

  #onState(change: ProbeStateChange): void {
    if (!isOver(change.state)) {
      this.#tell(change)
      return
    }
    this.#background(async () => {
      try {
        await this.#end()
      } finally {
        this.#tell(change)
      }
    })
  }

  #end(): Promise<void> {
    this.#ending ??= this.#tearDown()
    return this.#ending
  }

  async #tearDown(): Promise<void> {
    const { start, pair, onEnded } = this.#parts
    this.#unfollow()
    try {
      await start.detach()
    } finally {
      try {
        await pair?.end.detach()
      } finally {
        await this.#inTurn(() => this.#closeMaps()).finally(() => onEnded(this))
      }
    }
  }

  /** Reads what is left, and closes the maps whatever comes of it. */
  async #closeMaps(): Promise<void> {
    const { pair, store } = this.#parts
    try {
      await this.#readRest()
    } finally {
      try {
        await pair?.starts.close()
      } finally {
        store.close()
      }
    }
  }

  /** The groups, and the counts also if the groups cannot be read. */
  async #readRest(): Promise<void> {
    try {
      await this.#take('rest')
    } finally {
      this.#final = this.#parts.store.losses()
    }
  }

  async #take(what: 'so far' | 'until reset' | 'rest'): Promise<void> {
    const { store, groups } = this.#parts
    const add = (key: Buffer | null, values: DataView): void => {
      this.#aggregated += groups.add(key, values)
    }
    if (what === 'rest') {
      await store.takeRest(add)
      this.#lookAtClock()
    } else {
      // A probe with a budget may come back while this is read: the time must be that of the hits.
      await store.take(add, { keep: what === 'so far', onTurn: () => this.#lookAtClock() })
    }
  }

  #lookAtClock(): void {
    this.#timeMs = Date.now()
    this.#time = this.#parts.start.seenTime
  }

  /** Reads and resets one after the other. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#work.then(work, work)
    this.#work = result.catch(() => undefined)
    return result
  }

  #tell(change: ProbeStateChange): void {
    callGuarded(() => this.emit('state', change))
  }

  #background(work: () => Promise<void>): void {
    work().catch((error: unknown) => this.#report(error))
  }

  #report(error: unknown): void {
    const failure = error instanceof Error ? error : new Error(String(error))
    this.#parts.log.error({ err: failure }, 'aggregation failed in the background')
    if (this.listenerCount('error') > 0) callGuarded(() => this.emit('error', failure))
  }
}

function toStats(
  hits: number,
  filtered: number,
  lost: number,
  { aggregated, unfinished, abandoned, cutOff, unmatched, begunUnseen }: PairCounts,
  losses: Losses,
  seen: Pick<AggregationStats, 'seenMs' | 'seenFraction'>,
): AggregationStats {
  const { unreadable, contended, start } = losses
  const reasons = { lostUnreadable: unreadable, lostContended: contended, lostStarts: start }
  return { hits, filtered, aggregated, lost, ...reasons, unfinished, abandoned, cutOff, unmatched, begunUnseen, ...seen }
}

/** Throws `ERR_UPROBE_BAD_OPTION`. */
function checkReset(options: { reset?: boolean | undefined }): boolean {
  if (typeof options !== 'object' || options === null) bad('options', 'give an object, such as { reset: true }')
  onlyKnown(options, ['reset'])
  return boolean('reset', options.reset)
}

function isOver(state: ProbeState): boolean {
  return state === 'detached' || state === 'target-exited'
}
