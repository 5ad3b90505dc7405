/**
 * Where offsets of a file are in a process, for thousands of them.
 *
 * `codeAddress` and `counterAddress` make some bigints at each answer. Addresses and offsets are below 2^53 nearly always, where numbers hold them exactly. If those of any mapping are
 * not, nothing is known here, and whoever asks has to ask the others.
 */
import type { Mapping } from './maps.js'

/** See the module's comment. */
export class OffsetTable {
  /** How many mappings there are, as far as they are known. */
  readonly length: number
  /** Of each mapping: the first offset and that behind the last one, and the distance of an address from its offset. */
  readonly #first: Float64Array
  readonly #end: Float64Array
  readonly #bias: Float64Array

  constructor(mappings: readonly Mapping[]) {
    const known = mappings.every(isExact) ? mappings : []
    this.length = known.length
    this.#first = Float64Array.from(known, ({ fileOffset }) => Number(fileOffset))
    this.#end = Float64Array.from(known, ({ start, end, fileOffset }) => Number(fileOffset + end - start))
    this.#bias = Float64Array.from(known, ({ start, fileOffset }) => Number(start) - Number(fileOffset))
  }

  /** The address of an offset in the first mapping that has it; `null` if none has, or nothing is known. */
  addressOf(fileOffset: bigint | number): number | null {
    const offset = Number(fileOffset)
    const first = this.#first
    const end = this.#end
    for (let index = 0; index < first.length; index++) {
      if (offset >= (first[index] ?? 0) && offset < (end[index] ?? 0)) return offset + (this.#bias[index] ?? 0)
    }
    return null
  }

  /** The same in the mapping with this index. */
  addressIn(index: number, fileOffset: bigint | number): number | null {
    const offset = Number(fileOffset)
    return offset >= (this.#first[index] ?? 0) && offset < (this.#end[index] ?? 0) ? offset + (this.#bias[index] ?? 0) : null
  }
}

function isExact({ start, end, fileOffset }: Mapping): boolean {
  return Number.isSafeInteger(Number(end)) && Number.isSafeInteger(Number(fileOffset + end - start))
}
