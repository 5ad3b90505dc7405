/**
 * Medians and quartiles: what is said of repeated measurements on a machine that does other things as well.
 */

/** What is left of a series of measurements. */
export interface Summary {
  readonly median: number
  readonly lowerQuartile: number
  readonly upperQuartile: number
}

/** Summarises at least one value. */
export function summarise(values: readonly number[]): Summary {
  const sorted = [...values].sort((a, b) => a - b)
  return { median: quantile(sorted, 0.5), lowerQuartile: quantile(sorted, 0.25), upperQuartile: quantile(sorted, 0.75) }
}

/** Interpolates between the two values that are nearest to the place `fraction` of the way through. */
function quantile(sorted: readonly number[], fraction: number): number {
  const place = (sorted.length - 1) * fraction
  const below = sorted[Math.floor(place)]
  const above = sorted[Math.ceil(place)]
  if (below === undefined || above === undefined) throw new RangeError('nothing was measured')
  return below + (above - below) * (place - Math.floor(place))
}

/** The median with `digits` decimals. */
export function showMedian({ median }: Summary, digits = 0): string {
  return median.toFixed(digits)
}

/** The quartiles, between which half of the measurements lie: the noise. */
export function showQuartiles({ lowerQuartile, upperQuartile }: Summary, digits = 0): string {
  return `${lowerQuartile.toFixed(digits)} to ${upperQuartile.toFixed(digits)}`
}

/** Divides round by round, so that what slowed a whole round down cancels out. */
export function ratios(values: readonly number[], references: readonly number[]): number[] {
  if (values.length !== references.length) throw new RangeError(`${values.length} values cannot be paired with ${references.length}`)
  return values.map((value, round) => value / (references[round] ?? Number.NaN))
}

/** How many percent the values are less than the references, if they are less in more than three quarters of the rounds; else `null`. */
export function percentLess(values: readonly number[], references: readonly number[]): number | null {
  const ratio = summarise(ratios(values, references))
  return ratio.upperQuartile >= 1 ? null : Math.round((1 - ratio.median) * 100)
}

/** The distance of the quartiles, in percent of the median. */
export function spreadPercent({ median, lowerQuartile, upperQuartile }: Summary): number {
  return ((upperQuartile - lowerQuartile) / median) * 100
}
