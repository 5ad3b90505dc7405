/**
 * From records to whoever wants the hits of one probe: listeners, or an async iterator.
 *
 * A probe has one kind of consumer at a time. While there are `'hit'` or `'batch'` listeners they are called at once; otherwise hits wait in a bounded queue for
 * an iterator, also before there is one. So each hit is delivered once or counted as lost, never both.
 */
import { AsyncResource } from 'node:async_hooks'
import type { Hit } from '../capture/hit.js'
import { UprobeError } from '../errors.js'
import type { HitBatch } from './batch.js'
import { HitQueue, type QueueLimits } from './queue.js'

/** What the consumer needs of its probe. */
export interface ConsumerHost {
  /** Calls the listeners for a batch, and whether there are any. */
  emitBatch(batch: HitBatch): void
  hasListeners(): boolean
  /** Keeps the event loop alive while somebody waits. */
  ref(): void
  unref(): void
  /** Called when the iterator is given up before the probe has ended. */
  abandon(): Promise<void>
}

interface Waiter {
  resolve(result: IteratorResult<Hit, undefined>): void
}

/** Delivers the hits of one probe. */
export class Consumer {
  readonly #queue: HitQueue
  readonly #waiting: Waiter[] = []
  // Listeners run in the async context in which the probe was attached, whatever the native callback's is.
  readonly #context = new AsyncResource('uprobe.Probe')
  #iterating = false
  #ended = false

  constructor(
    private readonly host: ConsumerHost,
    limits: QueueLimits,
  ) {
    this.#queue = new HitQueue(limits)
  }

  /** Whether an iterator is open. */
  get iterating(): boolean {
    return this.#iterating
  }

  /**
   * Delivers a batch.
   * @returns how many of its first hits were delivered; there was no room for the rest
   */
  accept(batch: HitBatch): number {
    if (this.host.hasListeners()) {
      this.#emit(batch)
      return batch.length
    }
    let direct = 0
    for (let waiter = this.#waiting[0]; waiter !== undefined && direct < batch.length; waiter = this.#waiting[0]) {
      this.#waiting.shift()
      this.host.unref()
      waiter.resolve({ done: false, value: batch.at(direct++) })
    }
    if (direct === batch.length) return direct
    return direct + this.#queue.push(direct === 0 ? batch : batch.slice(direct, batch.length))
  }

  /** Hands what waits in the queue to listeners that were added since. */
  flushToListeners(): void {
    if (!this.host.hasListeners()) return
    for (const batch of this.#queue.takeAll()) this.#emit(batch)
  }

  /** No more hits will come: iterators end when they have taken what waits. */
  end(): void {
    this.#ended = true
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
    if (this.#iterating) {
      throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'The probe is being iterated already. Use one iterator, and share its hits.')
    }
    this.#iterating = true
    let closed = false
    const done: IteratorResult<Hit, undefined> = { done: true, value: undefined }
    const iterator: AsyncIterableIterator<Hit> = {
      next: () => {
        if (closed) return Promise.resolve(done)
        const hit = this.#queue.shift()
        if (hit !== undefined) return Promise.resolve({ done: false, value: hit })
        if (this.#ended) return Promise.resolve(done)
        this.host.ref()
        return new Promise((resolve) => this.#waiting.push({ resolve }))
      },
      return: async () => {
        if (!closed) {
          closed = true
          this.#iterating = false
          await this.host.abandon()
        }
        return done
      },
      [Symbol.asyncIterator]: () => iterator,
    }
    return iterator
  }

  #emit(batch: HitBatch): void {
    this.#context.runInAsyncScope(() => this.host.emitBatch(batch))
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
