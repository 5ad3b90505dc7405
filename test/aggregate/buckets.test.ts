/**
 * The constants that the code in the kernel compares with, against the definition.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { bucketBounds, FIRST_INDEX, LEAST_SCALE, MOST_SCALE, mantissaBounds, positionCount } from '../../lib/aggregate/buckets.js'
import { bucketOf, nearBounds } from './model.js'

const scales = fc.integer({ min: LEAST_SCALE, max: MOST_SCALE })
const values = fc.oneof(
  fc.bigInt(1n, (1n << 64n) - 1n),
  fc.bigInt(1n, 1000n),
  fc.integer({ min: 0, max: 63 }).map((exponent) => 1n << BigInt(exponent)),
)

/** As the programs compute it. */
function position(value: bigint, scale: number): number {
  if (scale <= 0) return ((value - 1n === 0n ? 0 : (value - 1n).toString(2).length) + 2 ** -scale - 1) >> -scale
  const exponent = value.toString(2).length - 1
  const aligned = value << BigInt(63 - exponent)
  return exponent * 2 ** scale + mantissaBounds(scale).filter((bound) => bound < aligned).length
}

test('the position of a value is its bucket by the definition, counted from that of 1', () => {
  fc.assert(
    fc.property(scales, values, (scale, value) => position(value, scale) + FIRST_INDEX === bucketOf(value, scale)),
    { numRuns: 2000 },
  )
})

test('also on both sides of the bounds of buckets', () => {
  const place = fc.record({ scale: scales, exponent: fc.integer({ min: 0, max: 63 }), step: fc.nat(31) })
  fc.assert(
    fc.property(place, ({ scale, exponent, step }) => {
      for (const value of nearBounds(scale, exponent, step))
        assert.equal(position(value, scale) + FIRST_INDEX, bucketOf(value, scale), `${value} at ${scale}`)
    }),
    { numRuns: 500 },
  )
})

test('there are as many positions as the largest values need', () => {
  for (let scale = LEAST_SCALE; scale <= MOST_SCALE; scale++) {
    assert.equal(positionCount(scale, 64), position((1n << 64n) - 1n, scale) + 1)
    assert.equal(positionCount(scale, 63), position(1n << 63n, scale) + 1)
  }
})

test('bounds are powers of the base', () => {
  assert.deepEqual(bucketBounds(0, 3), [8, 16])
  assert.deepEqual(bucketBounds(-1, 1), [4, 16])
  assert.deepEqual(bucketBounds(1, 2), [2, 2 ** 1.5])
})
