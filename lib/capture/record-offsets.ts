/**
 * Where the records of one probe begin in a batch, in the order in which the kernel wrote them.
 *
 * Mostly all records of a batch are of one probe and of one length. Then there is no list of them: to write it, and to read it, would be a way through all of them more.
 */
export class RecordOffsets {
  /** How many records there are. */
  readonly length: number
  /** Where the first begins, and from each to the next, in bytes; both 0 if there is a list. */
  readonly first: number
  readonly distance: number
  readonly #list: Uint32Array | null

  private constructor(first: number, distance: number, length: number, list: Uint32Array | null) {
    this.first = first
    this.distance = distance
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
    return this.#list === null ? (this.first + Math.imul(index, this.distance)) | 0 : this.#list[index]
  }

  /** Those from `start` up to `end`, as `slice` of an array takes them. */
  slice(start?: number, end?: number): RecordOffsets {
    const from = indexWithin(start ?? 0, this.length)
    const to = Math.max(from, indexWithin(end ?? this.length, this.length))
    return this.#list === null
      ? RecordOffsets.regular(this.first + from * this.distance, this.distance, to - from)
      : RecordOffsets.listed(this.#list.subarray(from, to))
  }
}

/** What an index, which may be anything and count from the end, means in so many. */
function indexWithin(index: number, length: number): number {
  const whole = Math.trunc(index) || 0
  return whole < 0 ? Math.max(length + whole, 0) : Math.min(whole, length)
}
