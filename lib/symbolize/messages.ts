/** What the event loop and the symbolizing thread say to each other. */
import type { StackFrame } from './frame.js'

/** A stack whose addresses are to be explained. */
export interface SymbolizeRequest {
  /** Process id in our pid namespace; `null` if we cannot see the process there. */
  readonly pid: number | null
  /** When the hit was, CLOCK_MONOTONIC in nanoseconds. */
  readonly timeNs: bigint
  /** Innermost first. */
  readonly addresses: readonly bigint[]
  /** What the first address is known to be; `null` for a return probe, whose first address is wherever the function returns to. */
  readonly site: { readonly path: string; readonly fileOffset: bigint } | null
}

/** To the thread. Each message is answered with its number. */
export type Question = { readonly id: number } & (
  | { readonly kind: 'see'; readonly pid: number }
  | { readonly kind: 'symbolize'; readonly requests: readonly SymbolizeRequest[] }
)

/** From the thread: frames a request, none for `see`; or what it lacks to answer, as descriptors or memory. */
export type Answer = { readonly id: number } & (
  | { readonly frames: readonly (readonly StackFrame[])[]; readonly shortage: null }
  | { readonly frames: null; readonly shortage: string }
)
