/**
 * The threads of this process.
 */
import { readdirSync, readFileSync } from 'node:fs'

const TASKS = '/proc/self/task'

/** Ids of the threads with a name, which has at most 15 bytes. */
export function threadsNamed(name: string): number[] {
  const isNamed = (tid: string): boolean => {
    try {
      return readFileSync(`${TASKS}/${tid}/comm`, 'utf8') === `${name}\n`
    } catch {
      // A thread that ended since the listing.
      return false
    }
  }
  return readdirSync(TASKS).filter(isNamed).map(Number)
}
