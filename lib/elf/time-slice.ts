/**
 * Long loops that leave the event loop its turn.
 *
 * Our host answers requests on the thread on which we parse. A loop over something that a file determines asks now and then whether its slice of time is
 * used up, and if so waits for the next turn. Asking reads the clock, which costs as much as several steps of such a loop: ask every hundred steps or so.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'

/** How long a loop may run at a time, in milliseconds. */
const SLICE_MS = 3

/** The time that a loop has spent since the event loop had its turn. */
export class TimeSlice {
  #startMs = performance.now()

  /** Whether it is time to {@link rest}. */
  get isOver(): boolean {
    return performance.now() - this.#startMs > SLICE_MS
  }

  /** Gives the event loop a turn. */
  async rest(): Promise<void> {
    await nextTurn()
    this.#startMs = performance.now()
  }
}
