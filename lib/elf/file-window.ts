/**
 * Many small pieces of a file, read by windows.
 *
 * A few bytes of code are wanted at each of ten thousand sites, which mostly lie close together and in order. A read of its own for each would be a trip to another thread each.
 */
import type { ElfFile } from './elf-file.js'

/** Small enough that it costs little where each piece is far from the one before. */
const WINDOW_BYTES = 32 * 1024

/** The part of a file that was looked at last. */
export class FileWindow {
  #start = 0
  #bytes: Uint8Array = new Uint8Array(0)

  constructor(private readonly elf: ElfFile) {}

  /** The bytes, if they are in the window; not a copy. */
  peek(fileOffset: bigint, bytes: number): Uint8Array | null {
    const at = Number(fileOffset) - this.#start
    return at >= 0 && at + bytes <= this.#bytes.length ? this.#bytes.subarray(at, at + bytes) : null
  }

  /** Whether these bytes, of which there must be some, are in the window at this place. */
  holds(fileOffset: bigint, bytes: Uint8Array): boolean {
    const at = Number(fileOffset) - this.#start
    for (let index = 0; index < bytes.length; index++) if (this.#bytes[at + index] !== bytes[index]) return false
    return bytes.length > 0
  }

  /** The byte, if it is in the window. */
  peekByte(fileOffset: bigint): number | null {
    return this.#bytes[Number(fileOffset) - this.#start] ?? null
  }

  /** The bytes, for which the window moves where they are not in it. Throws as `ElfFile.read`. */
  async read(fileOffset: bigint, bytes: number): Promise<Uint8Array> {
    const known = this.peek(fileOffset, bytes)
    if (known !== null) return known
    const left = this.elf.size - fileOffset
    if (bytes > WINDOW_BYTES || left < BigInt(bytes)) return this.elf.read(fileOffset, bytes)
    const window = await this.elf.read(fileOffset, left < BigInt(WINDOW_BYTES) ? Number(left) : WINDOW_BYTES)
    // Sizes of files, and so offsets in them, are signed 64-bit numbers; beyond 2^53 a window would not be found again, and is not kept.
    if (fileOffset <= BigInt(Number.MAX_SAFE_INTEGER) - BigInt(WINDOW_BYTES)) {
      this.#start = Number(fileOffset)
      this.#bytes = window
    }
    return window.subarray(0, bytes)
  }
}
