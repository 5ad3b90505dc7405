import assert from 'node:assert/strict'
import test from 'node:test'
import { displayAverage } from '../../lib/cli/hist-format.js'

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
