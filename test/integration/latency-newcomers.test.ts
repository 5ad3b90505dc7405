/**
 * Latencies between claimed probes, in processes that come later: there things begin before the counter is set that their ends need, and no end is taken for that of another for it.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import test, { type TestContext } from 'node:test'
import { ProcessClaim } from '../../lib/counter/process-claim.js'
import type { Aggregation, AggregationStats } from '../../lib/index.js'
import { NOTHING_ELSE } from '../aggregate/counts.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const CLAIMED = 0x8000

interface Late {
  readonly aggregation: Aggregation
  /** There when the probes were attached. */
  readonly first: Target
  readonly late: Target
  /** The counter of t:end is set in the one that came late, and the aggregation has told so. `early` is done as soon as it is set. */
  endClaimed(early?: () => Promise<void>): Promise<void>
  run(target: Target, ...commands: readonly string[]): Promise<void>
}

/** A latency with a process that has come late, where things begin and no end is seen yet. */
async function comeLate(t: TestContext, from: string, match: string): Promise<Late> {
  const program = buildTarget(t, 'mixed')
  const first = await Target.start(t, program)
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const spec = { from: from.replace(':', `:${program}:`), to: `usdt:${program}:t:end`, match }
  const aggregation = await tracer.aggregate(spec, { counter: 'msb', by: 'arg0' })
  const arrivals: Array<readonly [number | undefined, boolean]> = []
  aggregation.on('error', (error) => arrivals.push([0, error === null]))
  aggregation.on('state', ({ reason, pid, mayHaveMissed }) => {
    if (reason === 'arrival') arrivals.push([pid, mayHaveMissed])
  })
  let open: (early: () => Promise<void>) => void = () => undefined
  const opened = new Promise<() => Promise<void>>((resolve) => {
    open = resolve
  })
  const { set } = ProcessClaim.prototype
  t.mock.method(ProcessClaim.prototype, 'set', async function (this: ProcessClaim, ...parameters: Parameters<typeof set>) {
    const isEnd = this.counters.some(({ counter }) => counter.name === 'end')
    const early = isEnd ? await opened : null
    await set.call(this, ...parameters)
    await early?.()
  })
  const late = await Target.start(t, program)
  const value = (name: string): number => counterValue(late.pid, program, gatedNote(program, `t:${name}`).refCtrOffset)
  if (from.startsWith('usdt')) await waitFor('the beginnings to be claimed', () => arrivals.length === 1)
  assert.deepEqual([value('begin'), value('end')], [from.startsWith('usdt') ? CLAIMED : 0, 0])
  return {
    aggregation,
    first,
    late,
    endClaimed: async (early = async () => undefined) => {
      const before = arrivals.length
      open(early)
      await waitFor('the ends to be claimed', () => arrivals.length > before)
      assert.equal(value('end'), CLAIMED)
      assert.deepEqual(
        arrivals,
        arrivals.map(() => [late.pid, true]),
      )
    },
    run: async (target, ...commands) => {
      for (const command of commands) assert.equal(await target.ask(command), 'done')
    },
  }
}

async function assertSeen(aggregation: Aggregation, groups: Record<string, number>, expected: Partial<AggregationStats>): Promise<void> {
  await aggregation.detach()
  const snapshot = await aggregation.snapshot()
  assert.deepEqual(Object.fromEntries(snapshot.groups.map(({ key, count }) => [String(key[0]), count])), groups)
  const { seenMs, ...counts } = aggregation.stats()
  assert.ok(seenMs > 0)
  assert.deepEqual(counts, { hits: 0, aggregated: 0, seenFraction: 1, ...NOTHING_ELSE, ...expected })
}

for (const from of ['uprobe:f_begin', 'usdt:t:begin']) {
  test(`in a thread, what began before ends were seen in its process ends nothing (${from})`, GCC, async (t) => {
    const { aggregation, first, late, endClaimed, run } = await comeLate(t, from, 'thread')
    await run(first, 'begin 10')
    await run(late, 'begin 1', 'begin 2', 'end 2')
    await endClaimed()
    // The first of these comes upon what began as number 2.
    await run(late, 'begin 3', 'end 3', 'end 1', 'begin 4', 'end 4')
    await run(first, 'end 10')
    await assertSeen(aggregation, { 3: 1, 4: 1, 10: 1 }, { hits: 5, aggregated: 3, unfinished: 2, abandoned: 1, unmatched: 1 })
  })

  test(`by an argument, what began before ends were seen in its process ends nothing (${from})`, GCC, async (t) => {
    const { aggregation, first, late, endClaimed, run } = await comeLate(t, from, 'arg0')
    await run(first, 'begin 1')
    await run(late, 'begin 1', 'begin 2', 'end 2')
    await endClaimed()
    await run(late, 'begin 3', 'end 3', 'end 1', 'end 2', 'begin 2', 'end 2')
    await run(first, 'end 1')
    await assertSeen(aggregation, { 1: 1, 2: 1, 3: 1 }, { hits: 5, aggregated: 3, unfinished: 2, abandoned: 2, unmatched: 2 })
  })
}

test(
  'where processes have other numbers in the kernel than here, what is open anywhere ends nothing when one comes late',
  GCC,
  async (t) => {
    const { readlinkSync } = fs
    t.mock.method(fs, 'readlinkSync', (path: string) => (path === '/proc/self/ns/pid' ? 'pid:[4026531837]' : readlinkSync(path)))
    const { aggregation, first, late, endClaimed, run } = await comeLate(t, 'uprobe:f_begin', 'thread')
    await run(first, 'begin 10')
    await run(late, 'begin 1', 'begin 2', 'end 2')
    await endClaimed()
    await run(late, 'end 1', 'begin 3', 'end 3')
    await run(first, 'end 10', 'begin 11', 'end 11')
    await assertSeen(aggregation, { 3: 1, 11: 1 }, { hits: 5, aggregated: 2, unfinished: 3, abandoned: 2, unmatched: 2 })
  },
)

test('what began before ends were seen ends nothing, either, in the moment in which the counter is set', GCC, async (t) => {
  const { aggregation, late, endClaimed, run } = await comeLate(t, 'uprobe:f_begin', 'thread')
  await run(late, 'begin 1', 'begin 2', 'end 2')
  await endClaimed(() => run(late, 'end 1'))
  await run(late, 'begin 3', 'end 3')
  await assertSeen(aggregation, { 3: 1 }, { hits: 3, aggregated: 1, unfinished: 2, abandoned: 1, unmatched: 1 })
})

test('a child that is born with the bits does not come late', GCC, async (t) => {
  const program = buildTarget(t, 'mixed')
  const target = await Target.start(t, program)
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const spec = { from: `uprobe:${program}:f_begin`, to: `usdt:${program}:t:end` }
  const aggregation = await tracer.aggregate(spec, { counter: 'msb', by: 'arg0' })
  const arrivals: unknown[] = []
  aggregation.on('state', ({ state, reason, pid, mayHaveMissed }) => arrivals.push([state, reason, pid, mayHaveMissed]))
  let open: () => void = () => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  const { writeLease } = ProcessClaim.prototype
  t.mock.method(ProcessClaim.prototype, 'writeLease', async function (this: ProcessClaim) {
    await opened
    await writeLease.call(this)
  })
  const child = await target.askNumber('fork')
  assert.equal(await target.ask('begin 1'), 'done')
  open()
  await waitFor('the child to be claimed', () => arrivals.length === 1)
  assert.deepEqual(arrivals, [['attached', 'arrival', child, false]])
  assert.equal(await target.ask('end 1'), 'done')
  assert.equal(await target.ask('leave'), 'done')
  await assertSeen(aggregation, { 1: 1 }, { hits: 1, aggregated: 1 })
})
