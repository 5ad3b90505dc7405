/**
 * The memory of a batch of records, and the text in it.
 */

/** Up to here a string is made as a part of a longer one. */
const WINDOW = 1024
/** A string from here on gains nothing by it. */
const LONG = 512

/** What a batch's records are read from. */
export class BatchMemory {
  readonly view: DataView
  /** Bytes of it. */
  readonly byteLength: number
  #bytes: Buffer | null = null
  #words: Int32Array = NO_WORDS
  #window = ''
  #windowAt = 0
  #windowEnd = 0

  /** @param buffer - a whole number of 8 bytes */
  constructor(readonly buffer: ArrayBuffer) {
    this.view = new DataView(buffer)
    this.byteLength = buffer.byteLength
  }

  /** All of it, as bytes. */
  get bytes(): Buffer {
    this.#bytes ??= Buffer.from(this.buffer)
    return this.#bytes
  }

  /**
   * Reads UTF-8.
   *
   * Most text is ASCII, which is Latin-1 as well, and that is far quicker to make a string of. And making one string of a kilobyte is little dearer than one of a few bytes, of which V8 then
   * takes parts without a copy: the texts of some records in a row are made together. A part keeps the whole in memory, so the whole stays small.
   * @param at - where it begins, a multiple of 4; the memory goes on behind its end to the next
   */
  text(at: number, length: number): string {
    if (length >= LONG || !this.#isAscii(at, length)) return this.bytes.toString('utf8', at, at + length)
    if (at < this.#windowAt || at + length > this.#windowEnd) this.#moveWindow(at)
    return this.#window.substring(at - this.#windowAt, at - this.#windowAt + length)
  }

  #moveWindow(at: number): void {
    this.#windowAt = at
    this.#windowEnd = Math.min(at + WINDOW, this.byteLength)
    this.#window = this.bytes.toString('latin1', at, this.#windowEnd)
  }

  #isAscii(at: number, length: number): boolean {
    if (this.#words === NO_WORDS) this.#words = new Int32Array(this.buffer)
    const words = this.#words
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

const NO_WORDS = new Int32Array(0)
