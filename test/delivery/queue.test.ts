import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import type { Hit } from '../../lib/capture/hit.js'
import { RecordOffsets } from '../../lib/capture/record-offsets.js'
import { HitBatch } from '../../lib/delivery/batch.js'
import { HitQueue } from '../../lib/delivery/queue.js'

/** A batch whose hits are just their offsets. */
function batchOf(offsets: readonly number[], bytes = 64): HitBatch {
  return new HitBatch(
    {
      memory: { byteLength: bytes, words: new Int32Array(16) },
      formats: new Uint8Array(0),
      hit: (offset) => offset as unknown as Hit,
      argument: (offset) => offset,
    },
    RecordOffsets.listed(Uint32Array.from(offsets)),
  )
}

describe('a queue of hits', () => {
  it('gives hits back in order, across batches, and forgets none', () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(fc.nat(5), fc.constant('take' as const))), (steps) => {
        const queue = new HitQueue({ hits: 1000, bytes: 1 << 20 })
        const expected: number[] = []
        let next = 0
        for (const step of steps) {
          if (step === 'take') {
            assert.equal(queue.shift(), expected.shift())
          } else {
            const offsets = Array.from({ length: step }, () => next++)
            assert.equal(queue.push(batchOf(offsets)), step)
            expected.push(...offsets)
          }
          assert.equal(queue.length, expected.length)
        }
        assert.deepEqual(
          queue.takeAll().flatMap((batch) => [...batch]),
          expected,
        )
        assert.equal(queue.length, 0)
      }),
    )
  })

  it('takes the first hits of a batch that does not fit whole', () => {
    const queue = new HitQueue({ hits: 3, bytes: 1 << 20 })
    assert.equal(queue.push(batchOf([1, 2])), 2)
    assert.equal(queue.push(batchOf([3, 4, 5])), 1)
    assert.equal(queue.push(batchOf([6])), 0)
    assert.deepEqual([queue.shift(), queue.shift(), queue.shift(), queue.shift()], [1, 2, 3, undefined])
  })

  it('has a bound in bytes, and lets one batch in whatever its size', () => {
    const queue = new HitQueue({ hits: 1000, bytes: 100 })
    assert.equal(queue.push(batchOf([1], 500)), 1)
    assert.equal(queue.push(batchOf([2], 10)), 0)
    assert.equal(queue.shift(), 1)
    assert.equal(queue.push(batchOf([3], 10)), 1)
  })
})
