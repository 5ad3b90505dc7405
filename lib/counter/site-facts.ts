/**
 * What is known of sites: in their file before they are registered, and in a process afterwards.
 */
import type { FileIdentity } from '../target/maps.js'
import type { CounterMap } from './read.js'

/**
 * What is known of a site in one process.
 * - `armed`: the breakpoint is in, and its counter, if it has one, is raised;
 * - `not-mapped`: the process does not map the code yet; the kernel arms it when it does;
 * - `unverified`: the memory of the process may not be read;
 * - `not-armed`: something is wrong; an error or warning says what.
 */
export type ArmedState = 'armed' | 'not-mapped' | 'unverified' | 'not-armed'

/** A site in one process. */
export interface SiteTarget {
  readonly pid: number
  readonly state: ArmedState
  /** Address of the instruction; `null` if it is not mapped. */
  readonly address: bigint | null
  /** The counter as read after attaching, 16 bits unsigned; `null` if the probe has none or it could not be read. */
  readonly counter: number | null
}

/** What the file has at each of some sites. */
export interface OriginalBytes {
  /** The bytes that a breakpoint replaces; only for the sites that it was made for. */
  get(fileOffset: bigint): Uint8Array | undefined
}

/** What the file has at the sites, and which sites share a counter. */
export interface FileFacts {
  readonly identity: FileIdentity
  readonly path: string
  readonly originals: OriginalBytes
  /** The counters of the probe's sites, by their virtual address in the file. */
  readonly counters: CounterMap
}
