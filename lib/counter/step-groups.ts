/**
 * How many counters are decided and stored in one step.
 *
 * What has to be one step is one counter's deciding and storing. Counters are taken in groups all the same, since a few are then switched at one stroke; but not all of ten thousand, since
 * the kernel keeps the locks of a file in a list that it walks for each of them (`posix_lock_inode`, fs/locks.c), and our host wants its event loop to turn.
 */

/** The most counters of which one step is made, where there are no more. */
const SMALL = 128
/** How many are of more. With ten thousand locks in the list, those of one counter take half a millisecond, and twice as long at its end. */
const GROUP = 1

/** Divides counters into those that are of one step, in their order. */
export function inSteps<T>(counters: readonly T[]): T[][] {
  const groups: T[][] = []
  const most = counters.length > SMALL ? GROUP : SMALL
  for (let first = 0; first < counters.length; first += most) groups.push(counters.slice(first, first + most))
  return groups
}
