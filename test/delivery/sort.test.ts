/**
 * Which records of a batch are whose, whatever their sizes and however they are mixed.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { bindOperands, parseOperands } from '../../lib/capture/operands.js'
import type { CaptureShape } from '../../lib/capture/shape.js'
import { sortRecords } from '../../lib/delivery/sort.js'
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
      assert.deepEqual(new Map([...sortRecords(join(parts))].map(([id, offsets]) => [id, [...offsets]])), expected)
    }),
  )
})
