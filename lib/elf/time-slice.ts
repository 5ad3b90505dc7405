/**
 * Long loops that leave the event loop its turn.
 *
 * Our host answers requests on the thread on which we parse. A loop over something that a file determines asks now and then whether its slice of time is
 * used up, and if so waits for the next turn. Asking reads the clock, which costs as much as several steps of such a loop: ask every hundred steps or so. (It is the clock of
 * `process`, since the first use of `performance` loads what takes a millisecond.)
 */

/** How long a loop may run at a time: 3 ms. */
const SLICE_NS = 3_000_000n

/** When a loop first asked in this turn of the event loop; `null` if none has. */
let turnStartNs: bigint | null = null

/**
 * The time that loops have spent since the event loop had its turn. Loops that follow each other in one turn share its slice: ten of them, each with a slice of its own, would hold the event loop ten times as
 * long.
 */
export class TimeSlice {
  constructor() {
    startOfTurn()
  }

  /** Whether it is time to {@link rest}. */
  get isOver(): boolean {
    return process.hrtime.bigint() - startOfTurn() > SLICE_NS
  }

  /** Gives the event loop a turn. */
  async rest(): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve))
    startOfTurn()
  }
}

/** When the slice of this turn began: now, if it had not begun. Asked before something that takes long and comes to no loop, so that it counts for what follows. */
export function startOfTurn(): bigint {
  if (turnStartNs === null) {
    turnStartNs = process.hrtime.bigint()
    // Before whoever rests goes on, since he asks for his turn later.
    setImmediate(() => {
      turnStartNs = null
    })
  }
  return turnStartNs
}

/** Takes all steps at once. */
export function atOnce<T>(steps: Generator<undefined, T>): T {
  for (;;) {
    const step = steps.next()
    if (step.done === true) return step.value
  }
}

/** Takes steps that are long enough for a look at the clock behind each; the event loop gets its turn meanwhile. */
export async function stepsInSlices<T>(steps: Generator<undefined, T>): Promise<T> {
  const slice = new TimeSlice()
  for (;;) {
    const step = steps.next()
    if (step.done === true) return step.value
    if (slice.isOver) await slice.rest()
  }
}

/** The clock is read once in so many elements. */
const ELEMENTS_A_LOOK = 64

/** Does something with each of some elements, or just makes them, if they are made as they are asked for; the event loop gets its turn meanwhile. */
export async function inSlices<T, R>(elements: Iterable<T>, step: (element: T) => R): Promise<R[]> {
  const results: R[] = []
  const slice = new TimeSlice()
  for (const element of elements) {
    if (results.length % ELEMENTS_A_LOOK === ELEMENTS_A_LOOK - 1 && slice.isOver) await slice.rest()
    results.push(step(element))
  }
  return results
}
