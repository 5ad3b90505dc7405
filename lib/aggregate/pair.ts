/**
 * The two probes of a latency, where it begins and where it ends, as one thing that is taken out and armed again: by a budget, a pause, or for another tool.
 *
 * Which is switched when, and why no latency is false for it, says paired-arming.ts. Here is what that does to the counts:
 *
 * - What had begun and not ended when the probes were taken out is `unfinished`, and `cutOff` says how many of these there are. It is known exactly: no program runs at that moment, so all that has begun and is not accounted for
 *   otherwise is cut off.
 * - Ends that were seen before beginnings were, at the attach, are not counted: it is not known of them that anything began.
 * - An end without a beginning is `unmatched` as long as the probes have not been taken out, and `begunUnseen` afterwards: what it ends may have begun while nobody looked, and nobody can tell.
 */
import type { Throttled } from '../budget/member.js'
import type { Probe } from '../probe.js'
import type { Matching } from './options.js'
import type { Starts } from './starts.js'
import type { GroupStore, Losses } from './store.js'

/** Beginnings by what became of them, and ends that have none. */
export interface PairCounts {
  /** Latencies that were added up. */
  readonly aggregated: number
  /** Beginnings without an end. */
  readonly unfinished: number
  /** Of these, those that were given up. */
  readonly abandoned: number
  /** Of these, those that had not ended when the probes were taken out. */
  readonly cutOff: number
  /** Ends without a beginning. */
  readonly unmatched: number
  /** The same, when what they end may have begun while the probes were out. */
  readonly begunUnseen: number
}

/** See the module's comment. */
export class Pair implements Throttled {
  /** Where latencies begin; `null` until it is attached. */
  start: Probe | null = null
  #cutOff = 0
  /** How many were given up before ends were ignored; `null` while they are seen. */
  #abandonedBefore: number | null = null
  /** Those that a marked beginning took the place of, while ends were ignored. */
  #displaced = 0
  /** Ends without a beginning when beginnings came to be seen. */
  #before = 0
  /** Ends without a beginning when the probes were first taken out. */
  #unmatched: number | null = null
  #trapped = 0
  #trappedBefore = { start: 0, end: 0 }

  /** @param by - how ends find their beginnings */
  constructor(
    readonly end: Probe,
    readonly starts: Starts,
    private readonly store: GroupStore,
    private readonly by: Matching['by'],
  ) {}

  /**
   * The counts at the moment.
   * @param aggregated - where that is known, and not to be found from what the kernel counts
   */
  counts(losses: Losses = this.store.losses(), aggregated = losses.ended - losses.contended): PairCounts {
    const { hits = 0, filtered = 0 } = this.start?.stats() ?? {}
    const endsAlone = Math.max(losses.unmatched - this.#before, 0)
    const unmatched = Math.min(this.#unmatched ?? endsAlone, endsAlone)
    return {
      aggregated,
      unfinished: hits - filtered - aggregated - lostOf(losses),
      abandoned: losses.unfinished - this.#displaced,
      cutOff: this.#cutOff,
      unmatched,
      begunUnseen: endsAlone - unmatched,
    }
  }

  /**
   * How many have begun and may still end. While programs run, none is missing for it: a beginning counts before it is kept, and an end when it has found it. So it is read from what counts for that alone, and not from all ends, of
   * which there may be a hundred thousand a second that have nothing to do with it.
   */
  get open(): number {
    const { unfinished, abandoned, cutOff } = this.counts()
    return unfinished - abandoned - cutOff
  }

  /** Beginnings are seen from now on, and ends were before. */
  bothSeen(): void {
    this.#before = this.store.losses().unmatched
  }

  /** From now on no end is seen. A thread may go by its end and begin anew before beginnings are ignored as well, and what it had begun is then given up for it, by no fault of its own. */
  endsIgnored(): void {
    this.#abandonedBefore = this.store.losses().unfinished
  }

  /** Both are out, and no program of either runs. */
  bothOut(): void {
    if (this.#abandonedBefore === null) return
    this.#displaced += this.store.losses().unfinished - this.#abandonedBefore
    this.#abandonedBefore = null
  }

  /** Both are out, and no program of either runs: gives up what has not ended. */
  async cut(): Promise<void> {
    this.#unmatched ??= this.store.losses().unmatched - this.#before
    await this.starts.clear()
    // Behind it: what a thread takes along that ends meanwhile is counted as given up.
    this.#cutOff += this.open
  }

  get armed(): boolean {
    return this.start?.armed === true
  }

  get out(): boolean {
    return this.start?.out === true
  }

  readonly timesCalls = true

  staysOut(untilMs: number): void {
    this.start?.staysOut(untilMs)
  }

  get unseenShare(): number {
    return Math.max(this.start?.unseenShare ?? 0, this.end.unseenShare)
  }

  /**
   * A call is paid for as a hit of a return probe, which has a trap at the entry, too: the probe that is there beside it takes no other. So of the entries and the returns since the last time the more numerous count. Of other
   * probes every hit has its own trap.
   */
  trapped(): number | null {
    const [start, end] = [this.start?.trapped() ?? null, this.end.trapped()]
    if (start === null || end === null) return null
    const more = [start - this.#trappedBefore.start, end - this.#trappedBefore.end] as const
    this.#trappedBefore = { start, end }
    this.#trapped += this.by === 'frame' ? Math.max(...more) : more[0] + more[1]
    return this.#trapped
  }

  // The probe at which latencies begin switches the other one, too, and tells of both.
  async sitOut(): Promise<void> {
    await this.start?.sitOut()
  }

  async comeBack(): Promise<void> {
    await this.start?.comeBack()
  }

  async calm(): Promise<void> {
    await this.start?.calm()
  }

  failed(error: unknown): void {
    this.start?.failed(error)
  }
}

/** Beginnings that are lost. */
export function lostOf({ unreadable, contended, start }: Losses): number {
  return unreadable + contended + start
}
