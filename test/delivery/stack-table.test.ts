/**
 * What a probe keeps of its stacks: bounded in number and in addresses, the youngest of those that come with every hit.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import { BatchMemory } from '../../lib/capture/memory.js'
import { RecordOffsets } from '../../lib/capture/record-offsets.js'
import { STACK_FIELD, STACK_KEY_BYTES } from '../../lib/capture/stack-code.js'
import { StackTable } from '../../lib/delivery/stack-table.js'
import { loadNative } from '../../lib/native.js'
import { needs } from '../support/needs.js'

const SINK = 7

async function newTable(t: TestContext, depth: number): Promise<StackTable> {
  const table = await StackTable.open(loadNative(), SINK, depth, () => undefined)
  t.after(() => table.close())
  return table
}

/** Sends the stack with a number, as the capture program would. */
function send(table: StackTable, number: number, addresses: number, kept = false): void {
  const buffer = new ArrayBuffer(STACK_FIELD.addresses + 8 * addresses)
  const view = new DataView(buffer)
  view.setUint32(STACK_FIELD.pid, 1, true)
  view.setUint32(STACK_FIELD.sinkId, SINK, true)
  view.setUint32(STACK_FIELD.count, addresses, true)
  view.setUint32(STACK_FIELD.kept, kept ? 1 : 0, true)
  view.setBigUint64(STACK_FIELD.key, BigInt(number), true)
  for (let index = 0; index < addresses; index++) view.setBigUint64(STACK_FIELD.addresses + 8 * index, BigInt(number + index), true)
  table.receive(new BatchMemory(buffer), RecordOffsets.listed(Uint32Array.of(0)))
}

/** Whether a hit finds the stack with a number, and has its addresses. */
function has(table: StackTable, number: number): boolean {
  const view = new DataView(new ArrayBuffer(STACK_KEY_BYTES))
  view.setBigUint64(0, BigInt(number), true)
  const stack = table.at(view, 0)
  if (stack !== null) assert.equal(stack.addresses[0], BigInt(number))
  return stack !== null
}

test('stacks that come with every hit are kept up to a million addresses, and the youngest of them', needs(), async (t) => {
  const table = await newTable(t, 512)
  send(table, 1, 512, true)
  for (let number = 2; number < 2050; number++) send(table, number, 512)
  assert.deepEqual(
    [1, 2, 3, 2049].map((number) => has(table, number)),
    [true, true, true, true],
  )
  // The second comes once more, so the third is the oldest now.
  send(table, 2, 512)
  send(table, 2050, 1)
  assert.deepEqual(
    [1, 2, 3, 4, 2049, 2050].map((number) => has(table, number)),
    [true, true, false, true, true, true],
  )
  // Of those that are kept for good the addresses do not count here.
  send(table, 2, 512, true)
  send(table, 2051, 512)
  assert.deepEqual(
    [1, 2, 4, 2051].map((number) => has(table, number)),
    [true, true, true, true],
  )
  send(table, 2052, 512)
  assert.deepEqual(
    [1, 2, 4, 5, 2052].map((number) => has(table, number)),
    [true, true, false, true, true],
  )
})

test('the deeper stacks may be, the fewer the kernel notes', needs(), async (t) => {
  const tables = await Promise.all([2, 127, 128, 256, 512].map((depth) => newTable(t, depth)))
  const noted = tables.map(({ program: { seenFd } }) => {
    return Number(/^max_entries:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${seenFd}`, 'utf8'))?.[1])
  })
  assert.deepEqual(noted, [16_384, 16_384, 16_384, 8192, 4096])
})
