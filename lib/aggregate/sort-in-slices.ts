/**
 * Sorting without holding the event loop: ten thousand groups take `Array.sort` tens of milliseconds, since their keys are compared part by part.
 *
 * Runs that are sorted at once in well below a millisecond are merged, two and two, and the merging asks now and then whether its time is up.
 */
import type { TimeSlice } from '../elf/time-slice.js'

/** Elements of a run. */
const RUN = 64
/** The clock is read once in so many elements. */
const ELEMENTS_A_LOOK = 64

/** The elements in their order; those that are equal stay in the order in which they were. */
export async function sortInSlices<T>(elements: readonly T[], compare: (one: T, other: T) => number, slice: TimeSlice): Promise<T[]> {
  let runs: T[][] = []
  for (let start = 0; start < elements.length; start += RUN) {
    if (slice.isOver) await slice.rest()
    runs.push(elements.slice(start, start + RUN).sort(compare))
  }
  while (runs.length > 1) {
    const merged: T[][] = []
    for (let index = 0; index < runs.length; index += 2) merged.push(await merge(runs[index] ?? [], runs[index + 1] ?? [], compare, slice))
    runs = merged
  }
  return runs[0] ?? []
}

async function merge<T>(one: readonly T[], other: readonly T[], compare: (one: T, other: T) => number, slice: TimeSlice): Promise<T[]> {
  const merged: T[] = []
  let [at, otherAt] = [0, 0]
  while (at < one.length || otherAt < other.length) {
    if (merged.length % ELEMENTS_A_LOOK === 0 && slice.isOver) await slice.rest()
    const takesOne = otherAt >= other.length || (at < one.length && compare(one[at] as T, other[otherAt] as T) <= 0)
    merged.push((takesOne ? one[at++] : other[otherAt++]) as T)
  }
  return merged
}
