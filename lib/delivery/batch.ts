/**
 * A batch: the hits of one probe that one wake-up delivers. Hits are decoded when they are asked for.
 */
import { inspect } from 'node:util'
import { type ArgumentValue, INT32 } from '../capture/arguments.js'
import type { Hit } from '../capture/hit.js'
import { FIELD } from '../capture/record.js'
import type { RecordOffsets } from '../capture/record-offsets.js'

/** Where the hits of a batch come from. */
export interface HitSource {
  readonly memory: { readonly byteLength: number; readonly words: Int32Array }
  /** How the arguments of each hit are read, if it is the same for all; else none. */
  readonly formats: Uint8Array
  /** The hit of the record at `offset`. */
  hit(offset: number): Hit
  /** One argument of that hit. */
  argument(offset: number, argument: number): ArgumentValue | undefined
}

const NO_FORMATS = new Uint8Array(0)
const FLAGS_WORD = FIELD.flags / 4
const OPERANDS_WORD = FIELD.operands / 4

/** Hits of one probe, in the order in which the kernel recorded them. */
export class HitBatch implements Iterable<Hit> {
  readonly #length: number
  readonly #source: HitSource
  readonly #offsets: RecordOffsets
  // What `arg` needs where it is called millions of times: each step that leads there takes as long as reading the argument.
  readonly #words: Int32Array
  readonly #formats: Uint8Array
  readonly #firstWord: number
  readonly #distanceWords: number

  /** @internal */
  constructor(source: HitSource, offsets: RecordOffsets) {
    this.#length = offsets.length
    this.#source = source
    this.#offsets = offsets
    this.#words = source.memory.words
    this.#formats = offsets.distance > 0 ? source.formats : NO_FORMATS
    this.#firstWord = offsets.first >> 2
    this.#distanceWords = offsets.distance >> 2
  }

  /** How many hits there are. */
  get length(): number {
    return this.#length
  }

  /** Memory that the batch keeps alive, in bytes; of a large batch it may be a seventh more. */
  get byteLength(): number {
    return this.#source.memory.byteLength
  }

  /**
   * The hit at `index`.
   * @throws {RangeError} if there is none
   */
  at(index: number): Hit {
    const offset = this.#offsets.at(index)
    if (offset === undefined) return noHit(this.length, index)
    return this.#source.hit(offset)
  }

  /**
   * One argument of the hit at `index`: what `at(index).args[argument]` is, without making the hit and the array. The cheapest way to read a million of them.
   * @returns `undefined` if the site has no such argument, as `args` would give
   * @throws {RangeError} if there is no such hit
   */
  arg(index: number, argument: number): ArgumentValue | undefined {
    if (this.#formats[argument] === INT32 && index >>> 0 === index && index < this.#length) {
      const words = this.#words
      const word = this.#firstWord + Math.imul(index, this.#distanceWords)
      // Of a record that is there, so is the argument.
      if ((((words[word + FLAGS_WORD] as number) >>> argument) & 1) === 0) return words[word + OPERANDS_WORD + 2 * argument] as number
    }
    return this.otherArg(index, argument)
  }

  private otherArg(index: number, argument: number): ArgumentValue | undefined {
    const offset = this.#offsets.at(index)
    if (offset === undefined) return noHit(this.length, index)
    return this.#source.argument(offset, argument)
  }

  /** The hits from `start` up to `end`, as a batch over the same memory; the indexes are those that `slice` of an array takes. */
  slice(start?: number, end?: number): HitBatch {
    return new HitBatch(this.#source, this.#offsets.slice(start, end))
  }

  /** The hits one after another. Who calls `next()` by hand gets a hit that is made when `value` is read, each time anew. */
  [Symbol.iterator](): IterableIterator<Hit> {
    return new HitIterator(this.#source, this.#offsets)
  }
}

/** Steps through the hits of a batch in a form that the compiler sees through, as it does not through a generator. */
class HitIterator implements IterableIterator<Hit> {
  #next = 0

  constructor(
    private readonly source: HitSource,
    private readonly offsets: RecordOffsets,
  ) {}

  next(): IteratorResult<Hit, undefined> {
    const { offsets } = this
    const index = this.#next
    const done = index >= offsets.length
    if (!done) this.#next = index + 1
    return new HitStep(
      done,
      this.source,
      offsets.distance > 0 ? (offsets.first + Math.imul(index, offsets.distance)) | 0 : (offsets.at(index) ?? 0),
    ) as IteratorResult<Hit, undefined>
  }

  [Symbol.iterator](): this {
    return this
  }
}

/**
 * What {@link HitIterator.next} answers. Its hit is made when it is read, by which time it is known that there is one: then V8 keeps the hit and its arguments out of memory in a loop that does not keep them itself, which it does not
 * with a property that is either a hit or `undefined`. The fields are no `#` fields, so that comparisons see them.
 */
class HitStep {
  constructor(
    readonly done: boolean,
    private readonly source: HitSource,
    private readonly offset: number,
  ) {}

  get value(): Hit | undefined {
    return this.done ? undefined : this.source.hit(this.offset)
  }

  [inspect.custom](): object {
    const { done, value } = this
    return { done, value }
  }
}

function noHit(length: number, index: number): never {
  throw new RangeError(`a batch of ${length} hits has no hit ${index}`)
}
