import assert from 'node:assert/strict'
import test from 'node:test'
import { displayAverage, drawHistogram, exactSum } from '../../lib/cli/hist-format.js'

for (const [sum, count, shown] of [
  [36n, 9, '4'],
  [-36n, 9, '-4'],
  [140_737_488_355_329n, 1, '140737488355329'],
  [(1n << 63n) * 3n, 3, '9223372036854775808'],
  [1n, 3, '0.333333'],
  [-1n, 80_000, '-0.0000125'],
  [1999n, 2, '999.5'],
  [12_345_679n, 2, '6172839.500'],
  [-12_345_679n, 3, '-4115226.333'],
  [9_007_199_254_740_993n * 7n + 6n, 7, '9007199254740993.857'],
] as const) {
  test(`the average of ${count} values that are ${sum} together is ${shown}`, () => assert.equal(displayAverage(sum, count), shown))
}

for (const [what, values, exact] of [
  ['small ones', [1n, 2n, 3n], true],
  ['signed ones', [-3n, 1n, -1n], true],
  ['-1 as unsigned, once', [2n ** 64n - 1n], true],
  ['-1 as unsigned, twice', [2n ** 64n - 1n, 2n ** 64n - 1n], false],
  ['positive ones that are more than 2^63 together', [2n ** 62n, 2n ** 62n, 2n ** 62n], true],
  ['positive ones that are 2^64 together', [2n ** 63n, 2n ** 63n], false],
  ['signed ones up to 2^63', [-(2n ** 62n), 2n ** 61n], false],
  ['the least number', [-(2n ** 63n)], false],
  ['signed ones just below 2^63', [-(2n ** 62n) + 1n, -(2n ** 62n) + 1n], true],
] as const) {
  test(`the sum of ${what} is ${exact ? 'known from what it is modulo 2^64' : 'not known'}`, () => {
    const all = [...values].sort((a, b) => (a < b ? -1 : 1))
    const sum = all.reduce((whole, value) => whole + value, 0n)
    for (const kept of [BigInt.asIntN(64, sum), BigInt.asUintN(64, sum)])
      assert.equal(exactSum(kept, all.length, all[0] ?? 0n, all.at(-1) ?? 0n), exact ? sum : null)
  })
}

for (const [what, negative, zeroCount, positive, labels] of [
  ['only numbers below 0', [1], 0, [], ['-1 .. -1']],
  ['only numbers above 0', [], 0, [1], ['1 .. 1']],
  ['0 and numbers below', [1], 2, [], ['-1 .. -1', ' 0 .. 0']],
  ['numbers on both sides', [1], 0, [1], ['-1 .. -1', ' 0 .. 0', ' 1 .. 1']],
] as const) {
  test(`a row for 0 is drawn where it says something: ${what}`, () => {
    const buckets = (bucketCounts: readonly number[]) => ({ offset: -1, bucketCounts: [...bucketCounts] })
    const rows = drawHistogram({ scale: 0, zeroCount, positive: buckets(positive), negative: buckets(negative) }, 'number')
    assert.deepEqual(
      rows.map((row) => row.replace(/ +\d+ \|.*$/, '')),
      labels,
    )
  })
}
