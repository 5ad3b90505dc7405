/**
 * What a program sees of a probe's sites.
 */
import type { SiteTarget } from './counter/site-facts.js'

/** One instruction of one file that a probe resolves to. */
export interface ProbeSite {
  /** Resolved name without the path, as `usdt:postgresql:query__start` or `uprobe:malloc`. */
  readonly probe: string
  /** The file, as the target knows it. */
  readonly path: string
  /** Offset of the instruction in the file. */
  readonly fileOffset: bigint
  /** Offset of the counter in the file; `null` if the probe has none. */
  readonly refCtrOffset: bigint | null
  /** Operands as the note stores them; `null` for functions. */
  readonly args: string | null
  /** The processes in which the site was looked at after attaching. */
  readonly targets: readonly SiteTarget[]
}
