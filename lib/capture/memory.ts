/**
 * The memory of a batch of records, and the text in it.
 */

/**
 * How many strings that follow each other at the same distance are made together; so many times the distance one of them may keep in memory.
 */
const TOGETHER = 4
/** They are made together if they lie no farther apart than so many times their length: what is between them is kept as well. */
const FARTHEST = 3
/** A string from here on gains nothing by it. */
const LONG = 512

/** What a batch's records are read from. */
export class BatchMemory {
  /** All of it, as numbers of four bytes. */
  readonly words: Int32Array
  /** Bytes of it. */
  readonly byteLength: number
  #view: DataView | null = null
  #bytes: Buffer | null = null
  /** Some strings, with what is between them, and where that is. */
  #window = ''
  #windowAt = 0
  #windowEnd = 0
  /** Where the string before was. */
  #before = 0

  /** @param buffer - a whole number of 8 bytes */
  constructor(readonly buffer: ArrayBuffer) {
    this.words = new Int32Array(buffer)
    this.byteLength = buffer.byteLength
  }

  /** All of it, for what is no number of four bytes. */
  get view(): DataView {
    this.#view ??= new DataView(this.buffer)
    return this.#view
  }

  /** The number of four bytes at `at`, a multiple of 4. */
  int32(at: number): number {
    return this.words[at >> 2] as number
  }

  /** All of it, as bytes. */
  get bytes(): Buffer {
    this.#bytes ??= Buffer.from(this.buffer)
    return this.#bytes
  }

  /**
   * Reads UTF-8.
   *
   * Most text is ASCII, which is Latin-1 as well, and that is far quicker to make a string of. And to make one string of some hundred bytes is little dearer than one of a few, of which V8 then takes parts
   * without a copy: the texts of some records in a row are made together. Each part keeps the whole in memory, so the whole stays small.
   * @param at - where it begins, a multiple of 4; the memory goes on behind its end to the next
   */
  text(at: number, length: number): string {
    const distance = at - this.#before
    this.#before = at
    if (!this.#isAscii(at, length)) return this.bytes.toString('utf8', at, at + length)
    const end = at + length
    if (at < this.#windowAt || end > this.#windowEnd) {
      if (length >= LONG || distance < length || distance > FARTHEST * length) return this.bytes.toString('latin1', at, end)
      this.#windowAt = at
      this.#windowEnd = Math.min(at + TOGETHER * distance, this.byteLength)
      this.#window = this.bytes.toString('latin1', at, this.#windowEnd)
    }
    return this.#window.substring(at - this.#windowAt, end - this.#windowAt)
  }

  #isAscii(at: number, length: number): boolean {
    const { words } = this
    const end = (at + length) >> 2
    let bits = 0
    let word = at >> 2
    for (; word + 4 <= end; word += 4) bits |= (words[word] ?? 0) | (words[word + 1] ?? 0) | (words[word + 2] ?? 0) | (words[word + 3] ?? 0)
    for (; word < end; word++) bits |= words[word] ?? 0
    // Of the last word the bytes that belong to the string: the lowest, the machine being little-endian like the records.
    const rest = length & 3
    if (rest !== 0) bits |= (words[end] ?? 0) & ((1 << (8 * rest)) - 1)
    return (bits & 0x8080_8080) === 0
  }
}
