/**
 * Where offsets of a file are in a process, for thousands of them.
 *
 * `codeAddress` and `counterAddress` make some bigints at each answer. Addresses and offsets are below 2^53 nearly always, where numbers hold them exactly. If those of any mapping are
 * not, nothing is known here, and whoever asks has to ask the others.
 */
import type { Mapping } from './maps.js'

interface Span {
  readonly first: number
  readonly end: number
  /** The distance of an address from its offset. */
  readonly bias: number
}

/** See the module's comment. */
export class OffsetTable {
  readonly #spans: readonly Span[]

  constructor(mappings: readonly Mapping[]) {
    this.#spans = mappings.every(isExact) ? mappings.map(spanOf) : []
  }

  /** How many mappings there are, as far as they are known. */
  get length(): number {
    return this.#spans.length
  }

  /** The address of an offset in the first mapping that has it; `null` if none has, or nothing is known. */
  addressOf(fileOffset: bigint): number | null {
    const offset = Number(fileOffset)
    for (let index = 0; index < this.#spans.length; index++) {
      const address = this.#addressIn(index, offset)
      if (address !== null) return address
    }
    return null
  }

  /** The same in the mapping with this index. */
  addressIn(index: number, fileOffset: bigint): number | null {
    return this.#addressIn(index, Number(fileOffset))
  }

  #addressIn(index: number, offset: number): number | null {
    const span = this.#spans[index]
    return span !== undefined && offset >= span.first && offset < span.end ? offset + span.bias : null
  }
}

function isExact({ start, end, fileOffset }: Mapping): boolean {
  return Number.isSafeInteger(Number(end)) && Number.isSafeInteger(Number(fileOffset + end - start))
}

function spanOf({ start, end, fileOffset }: Mapping): Span {
  const first = Number(fileOffset)
  return { first, end: Number(fileOffset + end - start), bias: Number(start) - first }
}
