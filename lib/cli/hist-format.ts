/** Histograms as lines: one a bucket, with its bounds, its count and a bar. */
import { bucketBounds, type ExponentialHistogram, type HistogramBuckets } from '../index.js'

const BAR = 40

interface Row {
  readonly label: readonly [from: string, to: string]
  readonly count: number
}

/**
 * The buckets from the lowest to the highest that is not empty:
 *
 *     5 .. 8        12 |@@@@@@@@@                               |
 *
 * @param unit - of the values; times are shown in a unit that suits them
 */
export function drawHistogram(histogram: ExponentialHistogram, unit: 'number' | 'ns'): string[] {
  const { scale, zeroCount, positive, negative } = histogram
  const show = unit === 'ns' ? displayNs : displayWhole
  const rows = [...rowsOf(negative, scale, (bounds) => bounds.map((bound) => `-${show(bound)}`).reverse()).reverse()]
  const above = rowsOf(positive, scale, (bounds) => bounds.map(show))
  // Between numbers on both sides of it an empty row is a gap; beside those of one side it is none.
  if (zeroCount > 0 || (rows.length > 0 && above.length > 0)) rows.push({ label: ['0', '0'], count: zeroCount })
  rows.push(...above)
  const most = Math.max(1, ...rows.map(({ count }) => count))
  const widths = [0, 1].map((end) => Math.max(0, ...rows.map(({ label }) => (label[end] ?? '').length)))
  const countWidth = Math.max(0, ...rows.map(({ count }) => String(count).length))
  return rows.map(({ label: [from, to], count }) => {
    const bar = '@'.repeat(Math.ceil((count / most) * BAR)).padEnd(BAR)
    return `${from.padStart(widths[0] ?? 0)} .. ${to.padEnd(widths[1] ?? 0)}  ${String(count).padStart(countWidth)} |${bar}|`
  })
}

function rowsOf({ offset, bucketCounts }: HistogramBuckets, scale: number, label: (bounds: number[]) => string[]): Row[] {
  return bucketCounts.flatMap((count, position) => {
    const [above, upTo] = bucketBounds(scale, offset + position)
    // The whole numbers of the bucket. Of narrow ones near 0 there may be none.
    const [least, most] = [Math.floor(above) + 1, Math.floor(upTo)]
    if (least > most) return []
    const [from = '', to = ''] = label([least, most])
    return [{ label: [from, to], count }]
  })
}

function displayWhole(value: number): string {
  return Number.isSafeInteger(value) ? String(value) : value.toExponential(3)
}

const UNITS = [
  [1e9, 's'],
  [1e6, 'ms'],
  [1e3, 'µs'],
] as const

/** As in `1.02µs`: to three digits. */
export function displayNs(ns: number): string {
  for (const [size, name] of UNITS) if (ns >= size) return `${Number((ns / size).toPrecision(3))}${name}`
  return `${Number(ns.toPrecision(3))}ns`
}

/**
 * The sum of values of which only the sum modulo 2^64 is known; `null` if it may be another one by a multiple of that.
 * @param min - the least of the values
 * @param max - and the greatest
 */
export function exactSum(sum: bigint, count: number, min: bigint, max: bigint): bigint | null {
  // A number below 0 is signed. Of others it does not matter whether they are.
  const signed = min < 0n
  const greatest = signed && -min > max ? -min : max
  if (BigInt(count) * greatest >= 1n << (signed ? 63n : 64n)) return null
  return signed ? BigInt.asIntN(64, sum) : BigInt.asUintN(64, sum)
}

/** An average: exactly if it is a whole number; else to six digits, and to three behind the point of a large one. */
export function displayAverage(sum: bigint, count: number): string {
  const divisor = BigInt(count)
  if (sum % divisor === 0n) return String(sum / divisor)
  const average = Number(sum) / count
  if (Math.abs(average) < 1000) return String(Number(average.toPrecision(6)))
  const thousandths = ((sum < 0n ? -sum : sum) * 1000n + divisor / 2n) / divisor
  return `${sum < 0n ? '-' : ''}${thousandths / 1000n}.${String(thousandths % 1000n).padStart(3, '0')}`
}
