/**
 * From records to whoever wants the hits of one probe: listeners, or an async iterator.
 *
 * A probe has one kind of consumer at a time. While there are `'hit'` or `'batch'` listeners they are called at once; otherwise hits wait in a bounded queue for
 * an iterator, also before there is one. A listener may leave in the middle of a batch, as `once` does; the hits behind it then wait like any others. So each hit
 * is delivered once or counted as lost, never both.
 */
import { AsyncResource } from 'node:async_hooks'
import type { Hit } from '../capture/hit.js'
import { TimeSlice } from '../elf/time-slice.js'
import { UprobeError } from '../errors.js'
import type { HitBatch } from './batch.js'
import { HitQueue, type QueueLimits } from './queue.js'

/** What the consumer needs of its probe. */
export interface ConsumerHost {
  /** Whether there are listeners. */
  hasListeners(): boolean
  /**
   * Calls the listeners for the hits of a batch, as long as there are any.
   * @returns how many of its first hits they took
   */
  emitBatch(batch: HitBatch): number
  /** Keeps the event loop alive while somebody waits. */
  ref(): void
  unref(): void
  /** Called when the iterator is given up before the probe has ended. */
  abandon(): Promise<void>
}

/** How many hits an iterator is given before the clock is asked. */
const HITS_A_LOOK = 64

interface Waiter {
  resolve(result: IteratorResult<Hit, undefined>): void
}

/** Delivers the hits of one probe. */
export class Consumer {
  readonly #queue: HitQueue
  readonly #waiting: Waiter[] = []
  // Listeners run in the async context in which the probe was attached, whatever the native callback's is.
  readonly #context = new AsyncResource('uprobe.Probe')
  /** Stands for the open iterator. */
  #open: symbol | null = null
  #ended = false

  constructor(
    private readonly host: ConsumerHost,
    limits: QueueLimits,
  ) {
    this.#queue = new HitQueue(limits)
  }

  /** Whether an iterator is open. */
  get iterating(): boolean {
    return this.#open !== null
  }

  /**
   * Delivers a batch.
   * @returns how many of its first hits were delivered; there was no room for the rest
   */
  accept(batch: HitBatch): number {
    // A listener that was added a moment ago gets what waited before what has just come.
    this.flushToListeners()
    const taken = this.host.hasListeners() ? this.#emit(batch) : 0
    return taken + this.#keep(batch, taken)
  }

  /** Hands what waits in the queue to listeners that were added since. */
  flushToListeners(): void {
    if (this.#queue.length === 0 || !this.host.hasListeners()) return
    for (const batch of this.#queue.takeAll()) {
      // What they leave fits in again, since it came from there.
      this.#keep(batch, this.host.hasListeners() ? this.#emit(batch) : 0)
    }
  }

  /** No more hits will come: iterators end when they have taken what waits. */
  end(): void {
    this.#ended = true
    if (this.#waiting.length > 0) this.#open = null
    for (const waiter of this.#waiting.splice(0)) {
      this.host.unref()
      waiter.resolve({ done: true, value: undefined })
    }
  }

  /** Opens the iterator. */
  iterate(): AsyncIterableIterator<Hit> {
    if (this.host.hasListeners()) {
      throw new UprobeError(
        'ERR_UPROBE_BAD_OPTION',
        "The probe has 'hit' or 'batch' listeners, which take its hits. Remove them, or do not iterate.",
      )
    }
    if (this.#open !== null) {
      throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'The probe is being iterated already. Use one iterator, and share its hits.')
    }
    const self = Symbol('iterator')
    this.#open = self
    let leaving: Promise<void> | null = null
    const done: IteratorResult<Hit, undefined> = { done: true, value: undefined }
    const slice = new TimeSlice()
    let given = 0
    const iterator: AsyncIterableIterator<Hit> = {
      next: () => {
        if (this.#open !== self) return Promise.resolve(done)
        const hit = this.#queue.shift()
        if (hit !== undefined) {
          const result: IteratorResult<Hit, undefined> = { done: false, value: hit }
          // Promises that are resolved already let nothing else come in between: a full queue would hold the host's event loop until the last of its hits.
          if (++given % HITS_A_LOOK === 0 && slice.isOver) return slice.rest().then(() => result)
          return Promise.resolve(result)
        }
        if (this.#ended) {
          this.#open = null
          return Promise.resolve(done)
        }
        this.host.ref()
        return new Promise((resolve) => this.#waiting.push({ resolve }))
      },
      return: async () => {
        if (this.#open === self) {
          this.#open = null
          leaving = this.host.abandon()
        }
        await leaving
        return done
      },
      [Symbol.asyncIterator]: () => iterator,
    }
    return iterator
  }

  /** Calls the listeners; returns how many hits they took. */
  #emit(batch: HitBatch): number {
    return this.#context.runInAsyncScope(() => this.host.emitBatch(batch))
  }

  /** Gives the hits from `start` on to whoever waits in an iterator, and the others to the queue; returns how many were taken. */
  #keep(batch: HitBatch, start: number): number {
    let next = start
    while (next < batch.length) {
      const waiter = this.#waiting.shift()
      if (waiter === undefined) break
      this.host.unref()
      waiter.resolve({ done: false, value: batch.at(next++) })
    }
    if (next < batch.length) next += this.#queue.push(next === 0 ? batch : batch.slice(next, batch.length))
    return next - start
  }
}

/** Calls a listener; what it throws becomes an uncaught exception, as it would in any event, without costing other hits. */
export function callGuarded(call: () => void): void {
  try {
    call()
  } catch (error) {
    process.nextTick(() => {
      throw error
    })
  }
}
