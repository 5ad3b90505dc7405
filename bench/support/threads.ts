/**
 * The threads of this process.
 */
import { readdirSync, readFileSync } from 'node:fs'

const TASKS = '/proc/self/task'

/** Ids of the threads with a name, which has at most 15 bytes. */
export function threadsNamed(name: string): number[] {
  return readdirSync(TASKS)
    .filter((tid) => readFileSync(`${TASKS}/${tid}/comm`, 'utf8') === `${name}\n`)
    .map(Number)
}
