/**
 * The hits of one probe that wait for its iterator.
 *
 * A queue keeps whole batches, not hits: what the kernel wrote stays one buffer, and hits are decoded when they are taken. It has a bound in hits and one in
 * bytes, because a batch keeps its buffer in memory; what does not fit is refused, and counted as lost by the caller.
 */
import type { Hit } from '../capture/hit.js'
import type { HitBatch } from './batch.js'

/** Bounds of a queue. */
export interface QueueLimits {
  /** Hits that may wait. */
  readonly hits: number
  /** Bytes of batches that may wait. */
  readonly bytes: number
}

interface Entry {
  readonly batch: HitBatch
  /** The batch is used up to here. */
  next: number
}

/** A bounded queue of hits, in the order of arrival. */
export class HitQueue {
  readonly #entries: Entry[] = []
  #head = 0
  #hits = 0
  #bytes = 0

  constructor(private readonly limits: QueueLimits) {}

  /** Hits that wait. */
  get length(): number {
    return this.#hits
  }

  /**
   * Appends a batch as far as there is room.
   * @returns how many of its first hits were taken
   */
  push(batch: HitBatch): number {
    // One batch is always let in by its bytes, so that a bound smaller than a batch does not refuse everything.
    const room = this.#hits > 0 && this.#bytes + batch.byteLength > this.limits.bytes ? 0 : this.limits.hits - this.#hits
    const taken = Math.min(batch.length, Math.max(room, 0))
    if (taken === 0) return 0
    const kept = taken === batch.length ? batch : batch.slice(0, taken)
    this.#entries.push({ batch: kept, next: 0 })
    this.#hits += taken
    this.#bytes += kept.byteLength
    return taken
  }

  /** Takes the oldest hit. */
  shift(): Hit | undefined {
    const entry = this.#entries[this.#head]
    if (entry === undefined) return undefined
    const hit = entry.batch.at(entry.next++)
    this.#hits--
    if (entry.next === entry.batch.length) this.#drop(entry)
    return hit
  }

  /** Takes everything, as batches. */
  takeAll(): HitBatch[] {
    const batches = this.#entries.slice(this.#head).map(({ batch, next }) => (next === 0 ? batch : batch.slice(next, batch.length)))
    this.clear()
    return batches
  }

  /** Drops everything; returns how many hits that were. */
  clear(): number {
    const dropped = this.#hits
    this.#entries.length = 0
    this.#head = 0
    this.#hits = 0
    this.#bytes = 0
    return dropped
  }

  #drop(entry: Entry): void {
    this.#bytes -= entry.batch.byteLength
    this.#head++
    // Entries that are used up are removed in bulk, so that taking stays constant in time.
    if (this.#head >= 64 && this.#head * 2 >= this.#entries.length) {
      this.#entries.splice(0, this.#head)
      this.#head = 0
    }
  }
}
