/**
 * Which records of a batch are whose, whatever their sizes and however they are mixed.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { BatchMemory } from '../../lib/capture/memory.js'
import { bindOperands, parseOperands } from '../../lib/capture/operands.js'
import type { RecordOffsets } from '../../lib/capture/record-offsets.js'
import type { CaptureShape } from '../../lib/capture/shape.js'
import { alikeRecords, firstProbeId, sortRecords } from '../../lib/delivery/sort.js'
import { batchOf } from '../capture/records.js'

/** Records of 48 bytes, and of 56, 64 and 8 more for each further operand; and one whose length is no multiple of 8. */
const SHAPES: readonly CaptureShape[] = [...['', '8@%rdi', '-4@%esi 4@%edi'].map((args) => shapeOf(args, [])), shapeOf('8@%rdi', [0])]

function shapeOf(args: string, strings: readonly number[]): CaptureShape {
  return { operands: bindOperands(parseOperands(args, 'x64'), 0n, new Map()), strings, stringLimit: 3 }
}

function join(parts: readonly ArrayBuffer[]): ArrayBuffer {
  const all = Buffer.concat(parts.map((part) => Buffer.from(part)))
  return all.buffer.slice(all.byteOffset, all.byteOffset + all.length) as ArrayBuffer
}

const listOf = (offsets: RecordOffsets) => Array.from({ length: offsets.length }, (_, index) => offsets.at(index))

const listsOf = (sorted: ReadonlyMap<number, RecordOffsets>) => new Map([...sorted].map(([id, offsets]) => [id, listOf(offsets)]))

test('finds every record, in order, under its probe', () => {
  const record = fc.record({ probeId: fc.constantFrom(1, 2, 7, 0xffff_ffff), shape: fc.constantFrom(...SHAPES) })
  fc.assert(
    fc.property(fc.array(record), (records) => {
      const parts = records.map(({ probeId, shape }) => batchOf(shape, [{ probeId }]))
      const expected = new Map<number, number[]>()
      let at = 0
      records.forEach(({ probeId }, index) => {
        expected.set(probeId, [...(expected.get(probeId) ?? []), at + 8])
        at += parts[index]?.byteLength ?? 0
      })
      assert.deepEqual(listsOf(sortRecords(new BatchMemory(join(parts)))), expected)
    }),
  )
})

/** An index for `slice`, which takes anything. */
const CUT = fc.oneof(fc.integer({ min: -50, max: 50 }), fc.constantFrom(Infinity, -Infinity, Number.NaN, 1.5, -1.5))

test('takes records that are alike as they are found one by one', () => {
  fc.assert(
    fc.property(fc.constantFrom(...SHAPES), fc.integer({ min: 1, max: 40 }), fc.array(CUT, { maxLength: 2 }), (shape, count, cuts) => {
      const batch = new BatchMemory(
        batchOf(
          shape,
          Array.from({ length: count }, () => ({ probeId: 7 })),
        ),
      )
      const distance = batch.byteLength / count
      const known = alikeRecords(batch, distance)
      const found = sortRecords(batch)
      assert.equal(firstProbeId(batch), 7)
      assert.deepEqual(listsOf(new Map([[7, known]])), listsOf(found))
      for (const offsets of [known, found.get(7)]) {
        assert.ok(offsets !== undefined)
        assert.deepEqual(listOf(offsets.slice(...cuts)), listOf(offsets).slice(...cuts))
        for (const none of [-1, count, 0.5, Number.NaN]) assert.equal(offsets.at(none), undefined)
      }
    }),
  )
})
