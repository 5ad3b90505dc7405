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

/** Closes perf events and links; resolves when they are out of the kernel. If one fails the others are closed all the same. */
export async function closeRegistrations(native: Native, fds: readonly number[]): Promise<void> {
  if (fds.length === 0) return
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
