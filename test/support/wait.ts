/**
 * Waiting for a condition, never for a time.
 */
import { setTimeout as delay } from 'node:timers/promises'

const PATIENCE_MS = 60_000
const POLL_MS = 2

/**
 * Waits until `condition` gives a value other than `undefined` or `false`, and returns it.
 * @param what - named in the error after a minute, which means that it will never hold: emulated machines that share a processor take seconds for what takes milliseconds elsewhere
 */
export async function waitFor<T>(what: string, condition: () => T | undefined | false | Promise<T | undefined | false>): Promise<T> {
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    const value = await condition()
    if (value !== undefined && value !== false) return value
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`)
    await delay(POLL_MS)
  }
}

/** Lets the event loop turn `turns` times. */
export async function turns(turns: number): Promise<void> {
  for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate)
}

/** Counts how often the event loop turns from now on, until it is told to `stop`. */
export function countTurns(): { readonly turns: number; stop(): void } {
  let turns = 0
  let timer = setImmediate(function next() {
    turns++
    timer = setImmediate(next)
  })
  return {
    get turns() {
      return turns
    },
    stop: () => clearImmediate(timer),
  }
}
