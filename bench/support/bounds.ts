/**
 * The machine on which the bounds of the goals were set: what others took there, as a measure of how fast it was.
 */

/** Milliseconds that `readelf -n` took, of Node and of a program with 10,000 probes. */
export const READELF_THERE_MS = { node: 19, thousands: 23 }
/** Nanoseconds that a string of some 60 bytes took in Node. */
export const TEXT_THERE_NS = 50
