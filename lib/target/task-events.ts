/**
 * Events on living threads of processes, which tell their watcher (watches.ts) of exec and of the thread's end.
 *
 * The first on a machine takes the kernel a grace period of RCU (`account_event`, kernel/events/core.c: it lets every processor see that there are such events, and waits). So an attach opens them early, when it is not known yet who will
 * watch them, or whether it comes to that, and right behind what it has begun for the registration (register/anticipate.ts): what needs a grace period and finds one begun waits for two.
 */
import { ESRCH } from '../errno.js'
import { errnoOf } from '../errors.js'
import type { Native } from '../native.js'
import type { TargetProcess } from './process.js'

/** What is being opened, and nobody has taken yet. */
export class TaskEvents {
  readonly #opening = new Map<TargetProcess, Promise<number | null>>()
  #first: Promise<unknown> | null = null

  constructor(private readonly native: Native) {}

  /** Begins to open the event of a process, once. Those behind the first wait for it: they would wait in the kernel, and hold libuv's threads. */
  prepare(target: TargetProcess): void {
    if (this.#opening.has(target)) return
    const opening = this.#first === null ? this.#open(target) : this.#first.then(() => this.#open(target))
    this.#opening.set(target, opening)
    // Whoever takes it is told.
    const settled = opening.catch(() => undefined)
    this.#first ??= settled
  }

  /** Resolves to an event on a living thread, the caller's from here on, or to `null` if no thread lives. */
  take(target: TargetProcess): Promise<number | null> {
    const opening = this.#opening.get(target) ?? this.#open(target)
    this.#opening.delete(target)
    return opening
  }

  /** Closes the event of a process, if nobody has taken it; when it resolves, none is being opened any more. Idempotent. */
  async drop(target: TargetProcess): Promise<void> {
    const opening = this.#opening.get(target)
    this.#opening.delete(target)
    const fd = await opening?.catch(() => null)
    if (fd != null) this.native.closeFd(fd)
  }

  /** The same for all processes. */
  async close(): Promise<void> {
    for (const target of [...this.#opening.keys()]) await this.drop(target)
  }

  async #open(target: TargetProcess): Promise<number | null> {
    do {
      try {
        return await this.native.taskWatchOpen(target.tid)
      } catch (error) {
        // Else the thread ended after it was chosen.
        if (errnoOf(error) !== ESRCH) throw error
      }
    } while (target.refreshThread())
    return null
  }
}
