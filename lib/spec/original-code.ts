/**
 * What a file has at its sites, where breakpoints are put over it.
 *
 * Most probes are on the same instruction, so its bytes are kept once, and those of the other sites beside.
 */
import { BREAKPOINT_BYTES } from '../counter/read.js'
import type { OriginalBytes } from '../counter/site-facts.js'
import type { FileWindow } from '../elf/file-window.js'

/** See the module's comment. */
export class OriginalCode implements OriginalBytes {
  #common: Uint8Array = new Uint8Array(0)
  readonly #others = new Map<bigint, Uint8Array>()

  constructor(private readonly window: FileWindow) {}

  /** Learns the bytes at a site, which {@link get} knows from then on. A promise where they have to be read. */
  learn(fileOffset: bigint): Promise<void> | undefined {
    return this.window.holds(fileOffset, this.#common) ? undefined : this.#read(fileOffset)
  }

  get(fileOffset: bigint): Uint8Array {
    return (this.#others.size === 0 ? undefined : this.#others.get(fileOffset)) ?? this.#common
  }

  async #read(fileOffset: bigint): Promise<void> {
    const bytes = await this.window.read(fileOffset, BREAKPOINT_BYTES)
    if (this.#common.length === 0) this.#common = Uint8Array.from(bytes)
    if (bytes.some((byte, index) => byte !== this.#common[index])) this.#others.set(fileOffset, Uint8Array.from(bytes))
  }
}
