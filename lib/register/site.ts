/**
 * A site as it is registered: one instruction of one file, with what the kernel must know of it.
 */
import type { CaptureShape } from '../capture/shape.js'

/** One instruction address that a probe resolves to. */
export interface Site {
  /** Index in the probe's statistics map, and among its sites. */
  readonly slot: number
  /** Resolved name without the path, as `usdt:postgresql:query__start`. */
  readonly probe: string
  /** Virtual address of the instruction in the file. */
  readonly vaddr: bigint
  /** Offset of the instruction in the file. */
  readonly fileOffset: bigint
  /** Virtual address of the counter in the file; `null` if the probe has none. */
  readonly counterVaddr: bigint | null
  /** Offset of the counter in the file; `null` if the probe has none, or it has no place in the file (as in `.bss`). */
  readonly counterOffset: bigint | null
  /** Offset of the counter in the file that the kernel is to count on; `null` if the probe has none, or the package claims it instead. */
  readonly refCtrOffset: bigint | null
  /** Operands as the note stores them; `null` for functions. */
  readonly args: string | null
  /** What is recorded at a hit. */
  readonly shape: CaptureShape
}

/** How a site is named in messages. */
export function describeSite(site: Pick<Site, 'probe' | 'fileOffset'>, path: string): string {
  return `${site.probe} at ${path}:0x${site.fileOffset.toString(16)}`
}
