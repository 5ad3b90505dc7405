/**
 * How groups are added up over generations, each of which has room for so many.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { Groups } from '../../lib/aggregate/groups.js'
import { layoutGroups } from '../../lib/aggregate/layout.js'
import { checkAggregateOptions } from '../../lib/aggregate/options.js'
import { bindOperands, parseOperands } from '../../lib/capture/operands.js'

const MAX_GROUPS = 3

function layoutOf() {
  const operands = bindOperands(parseOperands('8@%rdi', 'x64'), 0n, new Map())
  return layoutGroups(checkAggregateOptions('usdt:t:x', { count: true, by: 'arg0' }).question, [
    { probe: 'usdt:t:x', shape: { operands, strings: [], stringLimit: 64 } },
  ])
}

/** Values of one CPU: nothing but a count. */
function counted(bytes: number, at: number | null, count: number): DataView {
  const view = new DataView(new ArrayBuffer(bytes))
  view.setBigUint64(at ?? 0, BigInt(count), true)
  return view
}

/** Hits by key in the order in which they came; of a generation, the first keys have a place. `kept` are those that had one before. */
const generations = fc.array(fc.record({ hits: fc.array(fc.nat(6), { maxLength: 20 }), kept: fc.boolean() }), { maxLength: 6 })

test('what is shown of a group is all of it; what is not is among the others', async () => {
  const layout = layoutOf()
  await fc.assert(
    fc.asyncProperty(generations, async (all) => {
      const groups = new Groups(layout, MAX_GROUPS)
      const executed = new Map<number, number>()
      let before = new Set<number>()
      for (const { hits, kept } of all) {
        const inKernel = new Map<number, number>(kept ? [...before].map((key) => [key, 0]) : [])
        let others = 0
        for (const key of hits) {
          executed.set(key, (executed.get(key) ?? 0) + 1)
          if (inKernel.has(key) || inKernel.size < MAX_GROUPS) inKernel.set(key, (inKernel.get(key) ?? 0) + 1)
          else others++
        }
        for (const [key, count] of inKernel) {
          const bytes = Buffer.alloc(layout.keyBytes)
          bytes.writeBigUInt64LE(BigInt(key), 0)
          groups.add(bytes, counted(layout.bytes, layout.countAt, count))
        }
        groups.add(null, counted(layout.bytes, layout.countAt, others))
        before = new Set(inKernel.keys())
      }
      const shown = await groups.groups()
      assert.ok(shown.length <= MAX_GROUPS)
      let sum = groups.other()?.count ?? 0
      for (const { key, count } of shown) {
        assert.equal(count, executed.get(Number(key[0])) ?? 0)
        sum += count
      }
      assert.equal(
        sum,
        all.reduce((total, { hits }) => total + hits.length, 0),
      )
    }),
  )
})
