/**
 * Buckets of histograms, as OpenTelemetry's exponential histograms have them (data model, "ExponentialHistogram").
 *
 * At scale s the base is 2^(2^-s), and bucket i holds the values v with base^i < v <= base^(i+1); values of 0 are counted by themselves, negative ones in buckets of their own, by their absolute value. Scale 0
 * has a bucket for each power of two, every step up halves the buckets, every step down joins two.
 *
 * The values here are integers of 64 bits. A bucket whose bounds are irrational holds the integers between them, exactly: v > 2^(e + j/2^s) is asked as v·2^(63-e) > floor(2^(63 + j/2^s)), both sides integers.
 * The smallest value above 0 is 1, in bucket -1 at every scale; `position` counts from there.
 */

/** Coarsest scale: 32 powers of two in a bucket. */
export const LEAST_SCALE = -5
/** Finest scale: 32 buckets in a power of two, each 2.2 % wide. One more, and a value of a per-CPU map could not hold them (PCPU_MIN_UNIT_SIZE, 32 KiB). */
export const MOST_SCALE = 5

/** Index of the bucket at position 0, that of the value 1. */
export const FIRST_INDEX = -1

/** How many positions there are for the values from 1 to 2^bits. */
export function positionCount(scale: number, bits: 63 | 64): number {
  return scale > 0 ? bits * 2 ** scale + 1 : ((bits + 2 ** -scale - 1) >> -scale) + 1
}

/**
 * The bounds within a power of two: floor(2^(63 + j/2^s)) for j from 0 to 2^s - 1.
 * @param scale - above 0
 */
export function mantissaBounds(scale: number): bigint[] {
  return Array.from({ length: 2 ** scale }, (_, j) => {
    // floor(sqrt(floor(x))) = floor(sqrt(x)), so the 2^s-th root may be drawn in steps.
    let root = 1n << BigInt(63 * 2 ** scale + j)
    for (let step = 0; step < scale; step++) root = squareRoot(root)
    return root
  })
}

/** floor(sqrt(n)), by Newton's steps from above. */
function squareRoot(n: bigint): bigint {
  let root = 1n << BigInt((n.toString(2).length + 1) >> 1)
  for (;;) {
    const next = (root + n / root) >> 1n
    if (next >= root) return root
    root = next
  }
}

/**
 * The bounds of a bucket, as numbers: its values are above the first, up to the second.
 * @param index - of the bucket, as OpenTelemetry counts
 */
export function bucketBounds(scale: number, index: number): [above: number, upTo: number] {
  return [2 ** (index * 2 ** -scale), 2 ** ((index + 1) * 2 ** -scale)]
}
