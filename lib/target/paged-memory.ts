/**
 * The memory of a process at many places, read by whole pages.
 *
 * Ten thousand counters of two bytes lie on five pages, and a system call for each of them costs as much as for a page. What was read once is not read again: this is how the
 * memory was a moment ago, at a slightly different moment for each page. Whoever finds something odd in it looks at the process itself.
 */
import type { TargetProcess } from './process.js'

/** The smallest page of the supported machines: a piece of this size is mapped as a whole or not at all. */
const PAGE_BYTES = 4096

/** See the module's comment. */
export class PagedMemory {
  readonly #pages = new Map<number, Buffer | null>()
  #lastNumber = -1
  #last: Buffer | null = null

  constructor(private readonly target: Pick<TargetProcess, 'readMemory'>) {}

  /** The 16-bit number at an address; `null` if it cannot be read. Both supported architectures are little-endian. */
  u16(address: bigint | number): number | null {
    const at = Number(address)
    const within = offsetInPage(at)
    if (within === PAGE_BYTES - 1) return this.target.readMemory(BigInt(address), 2)?.readUInt16LE(0) ?? null
    return this.#page(at - within)?.readUInt16LE(within) ?? null
  }

  /** Whether the memory at an address begins with the first `count` of `bytes`; `null` if it cannot be read. */
  equals(address: bigint | number, bytes: Uint8Array, count: number): boolean | null {
    const at = Number(address)
    const within = offsetInPage(at)
    if (within + count > PAGE_BYTES) return this.target.readMemory(BigInt(address), count)?.equals(bytes.subarray(0, count)) ?? null
    const page = this.#page(at - within)
    if (page === null) return null
    for (let index = 0; index < count; index++) if (page[within + index] !== bytes[index]) return false
    return true
  }

  /** @param start - a number, as programs are below 2^48 unless they ask for more (Documentation/arch/x86/x86_64/5level-paging.rst), and beyond 2^53 every page still begins at one */
  #page(start: number): Buffer | null {
    if (start === this.#lastNumber) return this.#last
    let page = this.#pages.get(start)
    if (page === undefined) {
      page = this.target.readMemory(BigInt(start), PAGE_BYTES)
      this.#pages.set(start, page)
    }
    this.#lastNumber = start
    this.#last = page
    return page
  }
}

/** `at % PAGE_BYTES`, which of a number beyond 2^31 is a function of the C library that goes through its bits. Exact, a page being a power of two. */
function offsetInPage(at: number): number {
  return at - Math.floor(at / PAGE_BYTES) * PAGE_BYTES
}
