/**
 * What the parts of an aggregating program keep where, beside what every capture program does (capture/frame.ts).
 *
 * The key of a group is built where strings are read for the filter: when it is, the filter has been decided. What follows is below the filter's intermediate results.
 */
import { STACK } from '../capture/frame.js'

/** The key of the group, upwards. */
export const KEY = STACK.string
/** Longest key, in bytes: what lies between its start and the fields above. */
export const MAX_KEY_BYTES = 256

/** The most values that one hit is measured by. */
export const MAX_VALUES = 4

const BELOW = STACK.results - 8 * 16

/** Further words of the stack. */
export const SCRATCH = {
  /** u64 each: what is measured. */
  values: BELOW - 8 * MAX_VALUES,
  /** u64 through which numbers go that the verifier is to forget. */
  forget: BELOW - 8 * MAX_VALUES - 8,
  /** u64 key of the thread or the argument that matches two probes, and what belongs to it: where the call began, or the process. */
  match: BELOW - 8 * MAX_VALUES - 24,
  /** u64 the moment of the hit. */
  now: BELOW - 8 * MAX_VALUES - 32,
  /** u32 how many beginnings were given up. It begins in the middle of a word, so that the verifier forgets it. */
  count: BELOW - 8 * MAX_VALUES - 40 + 4,
  /** Where the leaving of the generation is counted: a pointer. */
  turn: BELOW - 8 * MAX_VALUES - 48,
} as const

/** Which of the two sets of groups is added to. */
export const GENERATION = 7
/** The values of the group. */
export const GROUP = 9
