/**
 * Long loops that leave the event loop its turn.
 *
 * Our host answers requests on the thread on which we parse. A loop over something that a file determines asks now and then whether its slice of time is
 * used up, and if so waits for the next turn. Asking reads the clock, which costs as much as several steps of such a loop: ask every hundred steps or so. (It is the clock of
 * `process`, since the first use of `performance` loads what takes a millisecond.)
 */

/** How long a loop may run at a time: 3 ms. */
const SLICE_NS = 3_000_000n

/** The time that a loop has spent since the event loop had its turn. */
export class TimeSlice {
  #startNs = process.hrtime.bigint()

  /** Whether it is time to {@link rest}. */
  get isOver(): boolean {
    return process.hrtime.bigint() - this.#startNs > SLICE_NS
  }

  /** Gives the event loop a turn. */
  async rest(): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve))
    this.#startNs = process.hrtime.bigint()
  }
}
