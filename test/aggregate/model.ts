/**
 * Histograms of 64-bit integers by the definition alone: bucket i at scale s holds v if base^i < v <= base^(i+1), with base = 2^(2^-s). Raised to the power 2^s, both sides are integers.
 */

/** Index of the bucket of a value above 0. */
export function bucketOf(value: bigint, scale: number): number {
  if (scale <= 0) return Math.floor(exponentBelow(value) / 2 ** -scale)
  return exponentBelow(value ** BigInt(2 ** scale))
}

/** The largest i with 2^i < n. */
function exponentBelow(n: bigint): number {
  return n === 1n ? -1 : (n - 1n).toString(2).length - 1
}

/** Values around the bounds of buckets at a scale: the last of one bucket, the first of the next, and their neighbours. */
export function nearBounds(scale: number, exponent: number, step: number): bigint[] {
  const above = (index: number): bigint => firstAbove(index, scale)
  const first = above(exponent * 2 ** Math.max(scale, 0) + (scale > 0 ? step % 2 ** scale : 0))
  return [first - 2n, first - 1n, first, first + 1n].filter((value) => value > 0n && value < 1n << 64n)
}

/** The smallest value that is not in bucket `index` - 1 or below, found by halving. */
function firstAbove(index: number, scale: number): bigint {
  let [low, high] = [1n, 1n << 64n]
  while (low < high) {
    const middle = (low + high) >> 1n
    if (bucketOf(middle, scale) >= index) high = middle
    else low = middle + 1n
  }
  return low
}

/** A histogram as a snapshot gives it, without its scale. */
export function histogramOf(values: readonly bigint[], scale: number): object {
  const side = (magnitudes: readonly bigint[]): object => {
    const counts = new Map<number, number>()
    for (const magnitude of magnitudes) {
      const bucket = bucketOf(magnitude, scale)
      counts.set(bucket, (counts.get(bucket) ?? 0) + 1)
    }
    if (counts.size === 0) return { offset: 0, bucketCounts: [] }
    const [first, last] = [Math.min(...counts.keys()), Math.max(...counts.keys())]
    return { offset: first, bucketCounts: Array.from({ length: last - first + 1 }, (_, index) => counts.get(first + index) ?? 0) }
  }
  return {
    scale,
    zeroCount: values.filter((value) => value === 0n).length,
    positive: side(values.filter((value) => value > 0n)),
    negative: side(values.flatMap((value) => (value < 0n ? [-value] : []))),
  }
}
