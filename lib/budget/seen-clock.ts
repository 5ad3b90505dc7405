/**
 * How much of the time a probe saw its sites.
 *
 * While a budget keeps a probe out of its targets nothing is counted, so what it counts is true of a part of the time only. This is that part.
 */

/**
 * What the time is counted as: `seen`, the hits are counted; `out`, they are not, although they are wanted: a budget is kept, coming back was refused, or another tool was given way to; `apart`, nobody wants to
 * know: not attached yet or any more, or paused by the user.
 */
export type SeenState = 'seen' | 'out' | 'apart'

/** Time that was to be seen, in milliseconds. */
export interface SeenTime {
  /** Of it, the time in which hits were counted. */
  readonly seenMs: number
  /** And the time in which they were not. */
  readonly outMs: number
}

/** The share of the time that was seen, from 0 to 1. Where there was none to be seen, nothing was missed: 1. */
export function seenFractionOf({ seenMs, outMs }: SeenTime): number {
  return outMs === 0 ? 1 : seenMs / (seenMs + outMs)
}

/** The clock of one probe. */
export class SeenClock {
  readonly #ms = { seen: 0, out: 0, apart: 0 }
  #state: SeenState = 'apart'
  #since: number

  /** @param now - a monotonic clock, in milliseconds */
  constructor(private readonly now: () => number = () => performance.now()) {
    this.#since = now()
  }

  /** From now on time is counted as `state`. */
  turn(state: SeenState): void {
    this.#settle()
    this.#state = state
  }

  /** What time is counted as. */
  get state(): SeenState {
    return this.#state
  }

  /** Time that was to be seen so far. */
  get time(): SeenTime {
    this.#settle()
    return { seenMs: this.#ms.seen, outMs: this.#ms.out }
  }

  /** Time that was seen so far. */
  get seenMs(): number {
    return this.time.seenMs
  }

  /** The share of it in all time that was to be seen, from 0 to 1. */
  get seenFraction(): number {
    return seenFractionOf(this.time)
  }

  #settle(): void {
    const now = this.now()
    this.#ms[this.#state] += now - this.#since
    this.#since = now
  }
}
