/**
 * What all parts of a capture program agree on: registers that keep their meaning, and what lies where on the stack.
 */
import type { Arch } from './operands.js'

/** What reading the target's registers and memory depends on. */
export interface ReadingProgram {
  readonly arch: Arch
  /** Whether the program is loaded as one that may sleep: memory that is not present is then paged in instead of being unreadable. */
  readonly sleepable?: boolean
}

/** The program's context: the registers of the thread that hit the site. */
export const CTX = 6
/** In a program for a link: what the link passes at the site. */
export const COOKIE = 7
/** The counts of the site. */
export const COUNTS = 8
/** The record that is being filled. */
export const RECORD = 9
/** The frame pointer: the stack's end. */
export const FRAME = 10

/** The stack, downwards from the frame pointer. */
export const STACK = {
  /** u32 key of the map lookup. */
  key: -8,
  /** u64 address that is being read. */
  address: -16,
  /** u64 value read for the filter or a measured string. */
  value: -24,
  /** u64, not 0 if memory was not present while a record was filled. */
  absent: -32,
  /** Strings are measured here before a class of record is chosen, and read for the filter. */
  string: -32 - 256,
  /** u64 intermediate results of the filter, downwards. A program has 512 bytes (MAX_BPF_STACK, include/linux/filter.h). */
  results: -32 - 256,
  // The stack is walked when the filter is through, so it takes the place of the filter's results.
  /** u64 address of the frame that the walk has come to. */
  walkFrame: -288 - 8,
  /** u64 how many addresses the walk has found. */
  walkCount: -288 - 16,
  /** 16 bytes: the frame as it was read, or a return address alone. */
  walkPair: -288 - 32,
  /** 16 bytes: what the stack is known by; stays until the record of the hit is filled. */
  stackKey: -288 - 48,
  /** u64, not 0 if the hit is only to be marked: below all that lib/aggregate keeps (lib/aggregate/frame.ts). */
  marking: -504,
} as const

/** A string that is measured is read up to here, its NUL included. */
export const MEASURED_BYTES = 256
