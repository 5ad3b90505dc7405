/**
 * One thing after the other, and what somebody waits for first.
 *
 * A server that forks a process for each request tells of more newcomers than can be looked at, and each is a piece of work. Whoever pauses a probe must not wait for them: *commands* come
 * before *chores*, and a chore that takes long is told to stop when a command comes. None is begun before the one before it has ended, so that none finds the other's work half done.
 */

import { setImmediate as nextTurn } from 'node:timers/promises'

/** See the module's comment. */
export class Turns {
  readonly #commands: Array<() => Promise<void>> = []
  readonly #chores: Array<() => Promise<void>> = []
  /** Of the chore that is being done. */
  #interrupt: AbortController | null = null
  #working = false

  /** Something that is waited for: after the commands before it, and before all chores that were not begun. */
  command<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue(this.#commands, work)
    this.#interrupt?.abort()
    return result
  }

  /**
   * Something that is not.
   * @param work - is given a signal that says that a command waits; what it then leaves undone is its own to be taken up again
   */
  chore(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    return this.#queue(this.#chores, async () => {
      const interrupt = new AbortController()
      this.#interrupt = interrupt
      try {
        await work(interrupt.signal)
      } finally {
        this.#interrupt = null
      }
    })
  }

  #queue<T>(queue: Array<() => Promise<void>>, work: () => Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      queue.push(() => work().then(resolve, reject))
      if (!this.#working) void this.#work()
    })
  }

  /** Does not reject. */
  async #work(): Promise<void> {
    this.#working = true
    for (;;) {
      // Whoever has waited for a command, or is about to ask for one, comes before the next chore.
      if (this.#commands.length === 0 && this.#chores.length > 0) await nextTurn()
      const next = this.#commands.shift() ?? this.#chores.shift()
      if (next === undefined) break
      await next()
    }
    this.#working = false
  }
}
