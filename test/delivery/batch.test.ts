/**
 * What a batch gives: hits, and single arguments without them.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { inspect } from 'node:util'
import fc from 'fast-check'
import { HitDecoder } from '../../lib/capture/hit.js'
import { BatchMemory } from '../../lib/capture/memory.js'
import { bindOperands, parseOperands } from '../../lib/capture/operands.js'
import { RecordOffsets } from '../../lib/capture/record-offsets.js'
import type { CaptureShape } from '../../lib/capture/shape.js'
import { HitBatch } from '../../lib/delivery/batch.js'
import { alikeRecords, sortRecords } from '../../lib/delivery/sort.js'
import { batchOf, type RecordContent } from '../capture/records.js'

const LIMIT = 6
/** Numbers of every kind, a string, and an operand that cannot be read at all. */
const SHAPE = {
  operands: bindOperands(parseOperands('-4@%edi 4@%esi 8@%rdx -1@%cl 8f@%rax 8@%r8 8f@%xmm0', 'x64'), 0n, new Map()),
  strings: [5],
  stringLimit: LIMIT,
}
/** As long as the other, and read in another way. */
const OTHER = {
  operands: bindOperands(parseOperands('8@%rdi -4@%esi 2@%dx 8@%rcx -2@%ax 8@%r8 -8@%r9', 'x64'), 0n, new Map()),
  strings: [5],
  stringLimit: LIMIT,
}
const site = { probe: 'usdt:t:probe', path: '/bin/t', fileOffset: 0n, refCtrOffset: null, args: null, targets: [] }

function hitsOf(contents: readonly RecordContent[], shapes: readonly CaptureShape[] = [SHAPE, SHAPE], listed?: RecordOffsets): HitBatch {
  const memory = new BatchMemory(batchOf(SHAPE, contents))
  const records = new HitDecoder(
    shapes.map((shape) => ({ shape })),
    () => site,
  ).open(memory)
  const offsets = listed ?? alikeRecords(memory, memory.byteLength / contents.length)
  return new HitBatch(records, offsets)
}

const content: fc.Arbitrary<RecordContent> = fc.record({
  slot: fc.nat(1),
  values: fc.array(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), { minLength: 7, maxLength: 7 }),
  unreadable: fc.subarray([0, 1, 2, 3, 4]),
  strings: fc
    .oneof(
      fc.string({ maxLength: LIMIT }).map((text) => ({ bytes: Buffer.from(text.replaceAll('\0', '')).subarray(0, LIMIT) })),
      fc.constant({ bytes: Buffer.from('longer'), returned: LIMIT + 2 }),
      fc.constant({ bytes: Buffer.alloc(0), returned: -14 }),
    )
    .map((text) => ({ 5: text })),
})

test('gives one argument of a hit as the hit itself gives it', () => {
  fc.assert(
    fc.property(fc.array(content, { minLength: 1, maxLength: 12 }), fc.constantFrom([SHAPE, SHAPE], [SHAPE, OTHER]), (contents, shapes) => {
      const batch = hitsOf(contents, shapes)
      const asked = contents.map((_, index) => Array.from({ length: 8 }, (_, argument) => batch.arg(index, argument)))
      // From a batch of its own, so that nothing that is remembered hides a difference.
      assert.deepEqual(
        asked,
        [...hitsOf(contents, shapes)].map(({ args }) => [...args, undefined]),
      )
      const half = contents.length >> 1
      const ends = batch.slice(half)
      const askedOfEnds = asked.slice(half).map((_, index) => Array.from({ length: 8 }, (_, argument) => ends.arg(index, argument)))
      assert.deepEqual(askedOfEnds, asked.slice(half))
      const listed = new Uint32Array(contents.map((_, index) => 8 + index * (batch.byteLength / contents.length)))
      const one = hitsOf(contents, shapes, RecordOffsets.listed(listed))
      assert.deepEqual(
        asked,
        contents.map((_, index) => Array.from({ length: 8 }, (_, argument) => one.arg(index, argument))),
      )
    }),
  )
})

test('has no hit and no argument of one where there is none', () => {
  const batch = hitsOf([{}, {}])
  for (const index of [-1, 2, 0.5, Number.NaN]) {
    assert.throws(() => batch.at(index), RangeError)
    assert.throws(() => batch.arg(index, 0), RangeError)
  }
  for (const argument of [-1, 7, 0.5]) assert.equal(batch.arg(1, argument), undefined)
})

test('a loop gives the hits that their indexes give, of sites with any number of arguments, of parts, and of records that are listed', () => {
  const shapes = [0, 1, 2, 3, 4].map((count) => ({
    operands: bindOperands(parseOperands('-4@%edi 4@%esi 8@%rdx -1@%cl'.split(' ', count).join(' '), 'x64'), 0n, new Map()),
    strings: [],
    stringLimit: LIMIT,
  }))
  const longest = shapes[4]
  assert.ok(longest)
  const contents = Array.from({ length: 23 }, (_, index) => ({
    slot: (index * 3) % 5,
    values: [1n, 2n, 3n, 4n].map((value) => value + 10n * BigInt(index)),
    unreadable: index % 4 === 0 ? [1] : [],
  }))
  const expected = contents.map(({ slot, values: [first = 0n, second = 0n, third = 0n, fourth = 0n], unreadable }) =>
    [
      Number(first),
      unreadable.length > 0 ? { unreadable: `0x${second.toString(16)}` } : Number(second),
      third,
      Number(BigInt.asIntN(8, fourth)),
    ].slice(0, slot),
  )
  const memory = new BatchMemory(batchOf(longest, contents))
  const decoder = new HitDecoder(
    shapes.map((shape) => ({ shape })),
    () => site,
  )
  for (const offsets of [alikeRecords(memory, memory.byteLength / contents.length), sortRecords(memory).get(0)]) {
    assert.ok(offsets)
    const batch = new HitBatch(decoder.open(memory), offsets)
    for (const [start, end] of [
      [0, 23],
      [5, 17],
      [22, 23],
      [9, 9],
    ]) {
      const part = batch.slice(start, end)
      assert.deepEqual(
        Array.from(part, ({ args }) => args),
        expected.slice(start, end),
      )
      assert.deepEqual(
        Array.from(part, (_, index) => part.at(index).args),
        expected.slice(start, end),
      )
    }
  }
})

test('a step of an iterator stays what it is when others follow, and shows its hit', () => {
  const steps = hitsOf([{ values: [1n] }, { values: [2n] }])[Symbol.iterator]()
  const [first, second, end, after] = [steps.next(), steps.next(), steps.next(), steps.next()]
  assert.deepEqual(
    [first, second].map(({ done, value }) => [done, value?.args[0]]),
    [
      [false, 1],
      [false, 2],
    ],
  )
  assert.deepEqual([end.done, end.value, after.done, after.value], [true, undefined, true, undefined])
  assert.notDeepEqual(first, second)
  assert.match(inspect(first), /done: false,\s+value: \{.*args: \[ 1, /s)
  assert.equal(inspect(end), '{ done: true, value: undefined }')
})
