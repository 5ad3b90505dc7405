/**
 * What a file has at its sites, where breakpoints are put over it.
 *
 * Most probes are on the same instruction, so its bytes are kept once, and those of the other sites beside.
 */
import { BREAKPOINT_BYTES } from '../counter/read.js'
import type { OriginalBytes } from '../counter/verify.js'
import type { FileWindow } from '../elf/file-window.js'

/** See the module's comment. */
export class OriginalCode implements OriginalBytes {
  #common: Uint8Array = new Uint8Array(0)
  readonly #others = new Map<bigint, Uint8Array>()

  constructor(private readonly window: FileWindow) {}

  /** The bytes at a site, which {@link get} knows from then on. A promise where they have to be read. */
  read(fileOffset: bigint): Uint8Array | Promise<Uint8Array> {
    return this.window.holds(fileOffset, this.#common) ? this.#common : this.#read(fileOffset)
  }

  get(fileOffset: bigint): Uint8Array {
    return this.#others.get(fileOffset) ?? this.#common
  }

  async #read(fileOffset: bigint): Promise<Uint8Array> {
    const bytes = await this.window.read(fileOffset, BREAKPOINT_BYTES)
    if (this.#common.length === 0) this.#common = Uint8Array.from(bytes)
    if (bytes.every((byte, index) => byte === this.#common[index])) return this.#common
    const own = Uint8Array.from(bytes)
    this.#others.set(fileOffset, own)
    return own
  }
}
