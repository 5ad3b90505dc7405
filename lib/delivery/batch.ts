/**
 * A batch: the hits of one probe that one wake-up delivers. Hits are decoded when they are asked for.
 */
import type { Hit, RecordOffsets } from '../capture/hit.js'

/** Turns the record at `offset` of `buffer` into a hit. */
interface Decoder {
  decode(buffer: ArrayBuffer, offset: number): Hit
}

/** Hits of one probe, in the order in which the kernel recorded them. */
export class HitBatch implements Iterable<Hit> {
  readonly #buffer: ArrayBuffer
  readonly #offsets: RecordOffsets
  readonly #decoder: Decoder

  /** @internal */
  constructor(buffer: ArrayBuffer, offsets: RecordOffsets, decoder: Decoder) {
    this.#buffer = buffer
    this.#offsets = offsets
    this.#decoder = decoder
  }

  /** How many hits there are. */
  get length(): number {
    return this.#offsets.length
  }

  /** Memory that the batch keeps alive, in bytes. */
  get byteLength(): number {
    return this.#buffer.byteLength
  }

  /**
   * The hit at `index`.
   * @throws {RangeError} if there is none
   */
  at(index: number): Hit {
    const offset = this.#offsets[index]
    if (offset === undefined) throw new RangeError(`a batch of ${this.length} hits has no hit ${index}`)
    return this.#decoder.decode(this.#buffer, offset)
  }

  /** The hits from `start` up to `end`, as a batch over the same memory. */
  slice(start: number, end: number): HitBatch {
    return new HitBatch(this.#buffer, this.#offsets.subarray(start, end), this.#decoder)
  }

  [Symbol.iterator](): IterableIterator<Hit> {
    return new HitIterator(this.#buffer, this.#offsets, this.#decoder)
  }
}

/** Does what a generator would do, in a form that the compiler sees through: no object is made for a step, and the hit only if somebody keeps it. */
class HitIterator implements IterableIterator<Hit> {
  #next = 0

  constructor(
    private readonly buffer: ArrayBuffer,
    private readonly offsets: RecordOffsets,
    private readonly decoder: Decoder,
  ) {}

  next(): IteratorResult<Hit, undefined> {
    const offset = this.offsets[this.#next]
    if (offset === undefined) return { done: true, value: undefined }
    this.#next++
    return { done: false, value: this.decoder.decode(this.buffer, offset) }
  }

  [Symbol.iterator](): this {
    return this
  }
}
