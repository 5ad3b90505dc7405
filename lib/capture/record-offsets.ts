/**
 * Where the records of one probe begin in a batch, in the order in which the kernel wrote them.
 *
 * Mostly all records of a batch are of one probe and of one length. Then there is no list of them: to write it, and to read it, would be a way through all of them more.
 */
export class RecordOffsets {
  /** How many records there are. */
  readonly length: number
  readonly #first: number
  readonly #distance: number
  readonly #list: Uint32Array | null

  private constructor(first: number, distance: number, length: number, list: Uint32Array | null) {
    this.#first = first
    this.#distance = distance
    this.length = length
    this.#list = list
  }

  /** Records at one distance from each other. */
  static regular(first: number, distance: number, length: number): RecordOffsets {
    return new RecordOffsets(first, distance, length, null)
  }

  /** Records anywhere. */
  static listed(offsets: Uint32Array): RecordOffsets {
    return new RecordOffsets(0, 0, offsets.length, offsets)
  }

  /** Where the record at `index` begins; `undefined` if there is none. */
  at(index: number): number | undefined {
    // What is no whole number is no index either.
    if (index >>> 0 !== index || index >= this.length) return undefined
    return this.#list === null ? (this.#first + Math.imul(index, this.#distance)) | 0 : this.#list[index]
  }

  /** Those from `start` up to `end`, which exist. */
  slice(start: number, end: number): RecordOffsets {
    return this.#list === null
      ? RecordOffsets.regular(this.#first + start * this.#distance, this.#distance, end - start)
      : RecordOffsets.listed(this.#list.subarray(start, end))
  }
}
