/**
 * Thousands of groups are put together without holding the event loop, and in their order.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { Groups } from '../../lib/aggregate/groups.js'
import { layoutGroups } from '../../lib/aggregate/layout.js'
import { checkAggregateOptions } from '../../lib/aggregate/options.js'
import { sortInSlices } from '../../lib/aggregate/sort-in-slices.js'
import { bindOperands, functionArguments } from '../../lib/capture/operands.js'
import { TimeSlice } from '../../lib/elf/time-slice.js'

const GROUPS = 10_000

test('ten thousand groups with histograms leave the event loop many turns, and have their order', async () => {
  const { question } = checkAggregateOptions('uprobe:/x:f', { histogram: 'arg0', by: 'arg1', scale: 2, maxGroups: GROUPS })
  const arch = process.arch === 'arm64' ? 'arm64' : 'x64'
  const shape = { operands: bindOperands(functionArguments(arch), 0n, new Map()), strings: [], stringLimit: 64 }
  const layout = layoutGroups(question, [{ shape, probe: 'uprobe:f' }])
  const groups = new Groups(layout, GROUPS)
  const values = new DataView(new ArrayBuffer(layout.bytes))
  const at = layout.histogram?.at ?? 0
  for (let number = GROUPS - 1; number >= 0; number--) {
    const key = Buffer.alloc(layout.keyBytes)
    key.writeUInt32LE(number)
    for (let bucket = 1; bucket < 200; bucket++) values.setUint32(at + 8 * bucket, 1 + (number % 3), true)
    groups.add(key, values)
  }
  let turns = 0
  let over = false
  const count = (): void => {
    turns++
    if (!over) setImmediate(count)
  }
  setImmediate(count)
  const found = await groups.groups()
  over = true
  // Nobody makes two million counts within two slices of 3 ms.
  assert.ok(turns >= 2, `the event loop had ${turns} turns`)
  const ordered = Array.from({ length: GROUPS }, (_, number) => number).sort((one, other) => (other % 3) - (one % 3) || one - other)
  assert.deepEqual(
    found.map(({ count: hits }) => hits),
    ordered.map((number) => 199 * (1 + (number % 3))),
  )
  const keys = found.map(({ key }) => Number(key[0]))
  assert.equal(new Set(keys).size, GROUPS)
  assert.ok(found.every(({ count: hits }, index) => hits !== found[index + 1]?.count || (keys[index] ?? 0) < (keys[index + 1] ?? 0)))
})

test('sorting in slices sorts as an array does, equal elements in the order in which they were', async () => {
  const elements = fc.array(fc.tuple(fc.nat(20), fc.nat()), { maxLength: 1000, size: 'max' })
  await fc.assert(
    fc.asyncProperty(elements, async (given) => {
      const compare = ([one]: [number, number], [other]: [number, number]): number => one - other
      assert.deepEqual(await sortInSlices(given, compare, new TimeSlice()), [...given].sort(compare))
    }),
  )
})
