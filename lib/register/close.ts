/**
 * Closing registrations, which takes the probes out of their targets.
 *
 * A close waits for grace periods of the kernel, so it happens on a thread of its own. Where no thread can be started, because the limit of tasks is
 * reached, or none that could tell of the end, they are closed on the event loop: standing still for a moment is better than leaving breakpoints in
 * somebody else's program.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { isSystemCallError } from '../errors.js'
import type { Native } from '../native.js'

/** The calls that fail before anything is closed. */
const THREAD_START = ['pthread_create', 'eventfd']

/** How many perf events are closed before it is said how far it is: they take the kernel about a tenth of a second each. */
const EVENTS_A_REPORT = 8

/**
 * Closes perf events and links; resolves when they are out of the kernel. If one fails the others are closed all the same.
 * @param onClosed - is told how many more are out
 */
export async function closeRegistrations(native: Native, fds: readonly number[], onClosed?: (count: number) => void): Promise<void> {
  const failures: unknown[] = []
  const most = onClosed === undefined ? fds.length : EVENTS_A_REPORT
  for (let first = 0; first < fds.length; first += most) {
    const some = fds.slice(first, first + most)
    try {
      await closeSome(native, some)
    } catch (error) {
      failures.push(error)
    }
    onClosed?.(some.length)
  }
  if (failures.length > 0) throw failures[0]
}

async function closeSome(native: Native, fds: readonly number[]): Promise<void> {
  try {
    await native.closeFds(fds)
  } catch (error) {
    if (!isSystemCallError(error) || !THREAD_START.includes(error.syscall)) throw error
    await closeHere(native, fds)
  }
}

/** As the closing thread does it: all are closed, and the first failure is told. */
async function closeHere(native: Native, fds: readonly number[]): Promise<void> {
  const failures: unknown[] = []
  for (const fd of fds) {
    try {
      native.closeFd(fd)
    } catch (error) {
      failures.push(error)
    }
    await nextTurn()
  }
  if (failures.length > 0) throw failures[0]
}
