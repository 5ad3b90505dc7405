/**
 * The threads of this process, and how long each has run.
 */
import { readdirSync, readFileSync } from 'node:fs'

const TASKS = '/proc/self/task'

/** Ids of the threads with a name, which has at most 15 bytes. */
export function threadsNamed(name: string): number[] {
  return readdirSync(TASKS)
    .filter((tid) => readFileSync(`${TASKS}/${tid}/comm`, 'utf8') === `${name}\n`)
    .map(Number)
}

/** How long a thread has run so far, in nanoseconds (Documentation/scheduler/sched-stats.rst). */
export function runTimeNs(tid: number): number {
  return Number(readFileSync(`${TASKS}/${tid}/schedstat`, 'utf8').split(' ')[0])
}
