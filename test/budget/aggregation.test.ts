/**
 * Budgets of aggregations: what the target keeps of its speed, and that what was counted is exact for the part of the time that was seen.
 *
 * Not for guests: what is hit as often as it can be needs a processor of its own speed.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { GroupStore } from '../../lib/aggregate/store.js'
import { Governor } from '../../lib/budget/governor.js'
import { hitCost } from '../../lib/budget/hit-cost.js'
import { type AggregateOptions, type AggregateSpec, type Aggregation, type AggregationSnapshot, Tracer } from '../../lib/index.js'
import { loadNative } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { newTracer, refused } from '../support/tracing.js'
import { turns, waitFor } from '../support/wait.js'
import { PROMISE, SpeedTrial } from './speed-trial.js'

const GCC = needs({ programs: ['gcc'] })
const HOT = 'usdt:t:hot'
const PAIR = { from: 'usdt:t:begin', to: 'usdt:t:end' }

/** Time is counted as seen exactly while the probe is armed. */
async function seesTime(aggregation: Aggregation): Promise<boolean> {
  const { seenMs } = aggregation.stats()
  await turns(1)
  return aggregation.stats().seenMs > seenMs
}

/** Waits until a throttled aggregation has been armed again `times` times. */
async function cycles(aggregation: Aggregation, times: number): Promise<void> {
  for (let cycle = 0; cycle < times; cycle++) {
    await waitFor('the aggregation to be out', async () => !(await seesTime(aggregation)))
    await waitFor('the aggregation to be armed again', () => seesTime(aggregation))
  }
}

function countIn({ groups, other }: AggregationSnapshot): number {
  return groups.reduce((sum, { count }) => sum + count, other?.count ?? 0)
}

/** After the end: every hit is accounted for, and what snapshots have shown is all that was aggregated. */
function assertBalanced(aggregation: Aggregation, snapshots: readonly AggregationSnapshot[]): void {
  const { hits, filtered, aggregated, lost, unfinished, cutOff, unmatched } = aggregation.stats()
  assert.equal(hits, filtered + aggregated + lost + unfinished)
  // Of a latency, what was under way at the attach and at the end of a loop that is never left otherwise: nothing.
  assert.deepEqual([lost, unfinished, unmatched], [0, cutOff, 0])
  assert.equal(
    snapshots.reduce((sum, snapshot) => sum + countIn(snapshot), 0),
    aggregated,
  )
}

const WAYS: readonly {
  name: string
  command: string
  spec: AggregateSpec
  whose: 'its own' | "the tracer's"
  options: AggregateOptions
}[] = [
  {
    name: 'a histogram',
    command: 'call',
    spec: 'uprobe:f_hot',
    whose: 'its own',
    options: { histogram: 'arg0', min: 'arg0', max: 'arg0', sum: 'arg0', scale: 2 },
  },
  { name: 'groups', command: 'call', spec: 'uprobe:f_hot', whose: "the tracer's", options: { by: ['arg0 % 8', 'comm'] } },
  { name: 'groups by a string', command: 'gated', spec: HOT, whose: 'its own', options: { by: 'str(arg1)', stringLimit: 240 } },
  { name: 'a sum of a claimed probe', command: 'gated', spec: HOT, whose: "the tracer's", options: { sum: 'arg0', counter: 'msb' } },
  { name: 'how long calls take', command: 'call', spec: 'uprobe:f_hot', whose: 'its own', options: { histogram: 'latency', by: 'comm' } },
  {
    name: 'how long calls take, by perf events',
    command: 'call',
    spec: 'uprobe:f_hot',
    whose: 'its own',
    options: { max: 'latency', registration: 'perf' },
  },
  { name: 'the time between two probes, by thread', command: 'paired', spec: PAIR, whose: 'its own', options: {} },
  {
    name: 'the time between two claimed probes, by an argument',
    command: 'paired',
    spec: { ...PAIR, match: 'arg0' },
    whose: "the tracer's",
    options: { counter: 'msb' },
  },
]

for (const { name, command, spec, whose, options } of WAYS) {
  test(`a target keeps the speed that a budget promises: ${name}, ${whose}`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const leaseDir = leaseDirectory()
    const budget = { cpuPercent: 100 * PROMISE }
    const free = newTracer(t, { leaseDir })
    const bounded = whose === 'its own' ? free : newTracer(t, { leaseDir, budget })
    const trial = new SpeedTrial(target, command)
    await trial.run(async (load, measure) => {
      const tracer = load === 'free' ? free : bounded
      const own = load === 'budgeted' && whose === 'its own' ? { budget } : {}
      const aggregation = await tracer.aggregate(spec, { pid: target.pid, ...options, ...own })
      await measure()
      if (load === 'budgeted') {
        assert.equal(aggregation.state, 'throttled')
        assert.ok(aggregation.stats().seenFraction < 0.9)
      }
      await aggregation.detach()
      assertBalanced(aggregation, [await aggregation.snapshot()])
    })
    t.diagnostic(`${trial.left.free.toFixed(5)} is left without a budget, ${trial.left.budgeted.toFixed(3)} with one`)
    trial.assertKept()
  })
}

test('an aggregation that is over its budget says so once, tells what part it saw, and says when it is over', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const aggregation = await newTracer(t).aggregate('uprobe:f_hot', { pid: target.pid, by: 'arg0 % 2', budget: { hitsPerSecond: 2000 } })
  const reasons: string[] = []
  aggregation.on('state', ({ state, reason }) => reasons.push(`${state} ${reason}`))
  const whole = await aggregation.snapshot()
  assert.equal(whole.seenFraction, 1)
  assert.ok(whole.seenMs > 0)
  await target.ask('pace 20000')
  await cycles(aggregation, 4)
  const executed = await target.askNumber('stop')
  const part = await aggregation.snapshot({ reset: true })
  assert.deepEqual([aggregation.state, reasons], ['throttled', ['throttled over-budget']])
  assert.ok(part.seenFraction > 0 && part.seenFraction < 1)
  assert.ok(part.seenMs < part.timeMs - part.startTimeMs)
  assert.ok(countIn(part) < executed, `${countIn(part)} of ${executed}`)
  await waitFor('the aggregation to keep its budget', () => aggregation.state === 'attached')
  assert.deepEqual(reasons, ['throttled over-budget', 'attached within-budget'])
  const rest = await aggregation.snapshot({ reset: true })
  assert.equal(await target.askNumber('calls 1 10'), 10)
  // A snapshot tells of its own time, and the counts of all of it.
  const last = await aggregation.snapshot({ reset: true })
  assert.deepEqual([countIn(last), last.seenFraction], [10, 1])
  assert.ok(aggregation.stats().seenFraction < 1)
  await aggregation.detach()
  assertBalanced(aggregation, [part, rest, last])
  const { seenFraction } = await aggregation.snapshot()
  assert.equal(seenFraction, 1)
  assert.equal(reasons.at(-1), 'detached detach')
})

test('no hit is missing or counted twice, and no time, whatever the moment of a reset', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const aggregation = await newTracer(t).aggregate('uprobe:f_hot', {
    pid: target.pid,
    by: 'arg0 % 5',
    sum: '1',
    filter: 'arg0 % 3 != 0',
    budget: { hitsPerSecond: 4000 },
  })
  await target.ask('pace 20000')
  let over = false
  const through = cycles(aggregation, 8).finally(() => {
    over = true
  })
  const snapshots: AggregationSnapshot[] = []
  while (!over) {
    snapshots.push(await aggregation.snapshot({ reset: true }))
    await delay(snapshots.length % 20)
  }
  await through
  await aggregation.detach()
  await target.ask('stop')
  snapshots.push(await aggregation.snapshot())
  const { filtered, seenMs, seenFraction } = aggregation.stats()
  assert.ok(filtered > 0 && seenFraction < 1)
  assertBalanced(aggregation, snapshots)
  const seen = snapshots.reduce((sum, snapshot) => sum + snapshot.seenMs, 0)
  assert.ok(Math.abs(seen - seenMs) < 1e-3, `${seen} ms in all, and ${seenMs} ms were seen`)
  // Some of them lie in a time in which nothing was seen, and some in one in which all was.
  assert.ok(snapshots.some((snapshot) => snapshot.seenFraction === 0) && snapshots.some((snapshot) => snapshot.seenFraction > 0))
  for (const snapshot of snapshots) {
    for (const { count, sum } of snapshot.groups) assert.equal(sum, BigInt(count))
  }
})

test('the time of a snapshot is that of its hits, however long it takes to read them', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const aggregation = await newTracer(t).aggregate('uprobe:f_hot', { pid: target.pid, by: 'tid' })
  const { take } = GroupStore.prototype
  let seenMs = 0
  t.mock.method(GroupStore.prototype, 'take').mock.mockImplementationOnce(async function (this: GroupStore, callback, turn) {
    const onTurn = (): void => {
      turn?.onTurn?.()
      seenMs = aggregation.stats().seenMs
    }
    await take.call(this, callback, { ...turn, onTurn })
    await waitFor('time to pass', () => aggregation.stats().seenMs > seenMs + 50)
  })
  const first = await aggregation.snapshot({ reset: true })
  assert.ok(first.seenMs > 0 && first.seenMs <= seenMs, `${first.seenMs} ms, and it was no more than ${seenMs} ms`)
  const second = await aggregation.snapshot()
  assert.ok(second.seenMs > 50 && second.timeMs - second.startTimeMs >= 50)
})

test('from a part of the time follows how many hits there were', GCC, async (t) => {
  const RATE = 20_000
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const aggregation = await newTracer(t).aggregate('uprobe:f_hot', { pid: target.pid, count: true, budget: { hitsPerSecond: 2000 } })
  const start = performance.now()
  await target.ask(`pace ${RATE}`)
  await aggregation.snapshot({ reset: true })
  const uncounted = (performance.now() - start) * (RATE / 1000)
  await cycles(aggregation, 20)
  const snapshot = await aggregation.snapshot()
  const executed = (await target.askNumber('stop')) - uncounted
  const elapsedMs = performance.now() - start
  const estimate = countIn(snapshot) / snapshot.seenFraction
  const rate = countIn(snapshot) / snapshot.seenMs
  t.diagnostic(`${Math.round(estimate)} estimated of ${Math.round(executed)}, ${snapshot.seenFraction.toFixed(3)} of the time seen`)
  assert.ok(snapshot.seenFraction < 0.5)
  // The hits come in heaps where the machine is busy, so that a part of the time is not exactly a part of the hits.
  assert.ok(estimate > executed / 2 && estimate < executed * 2, `${estimate} estimated of ${executed}`)
  assert.ok(rate > executed / elapsedMs / 2 && rate < (executed / elapsedMs) * 2, `${rate} a millisecond`)
})

test('what is added to groups is paid for as a record is, and what is added to one group as a count', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const prices: number[] = []
  t.mock.method(Governor.prototype, 'add', (_probe: unknown, _budget: unknown, hitCostNs: number) => prices.push(hitCostNs))
  const tracer = newTracer(t)
  const asked: readonly AggregateOptions[] = [{ sum: 'arg0' }, { by: 'arg0' }, { by: ['arg0', 'str(arg1)'] }]
  for (const options of asked) await tracer.aggregate(HOT, { pid: target.pid, ...options, budget: { cpuPercent: 5 } })
  const kinds = [
    { strings: 0, stringLimit: 64, stack: false, countOnly: true },
    { strings: 0, stringLimit: 64, stack: false, countOnly: false },
    { strings: 1, stringLimit: 64, stack: false, countOnly: false },
  ]
  // What was measured once in this process is known.
  const known = kinds.map((kind) => hitCost(loadNative(), { probe: 'usdt', ...kind }, () => assert.fail('it was not measured')))
  assert.deepEqual(
    prices,
    (await Promise.all(known)).map(({ ns }) => ns),
  )
})

test('a budget of the tracer takes out the aggregation that is hit most, and leaves the others alone', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const quietTarget = await Target.start(t, buildTarget(t, 'func'))
  const tracer = newTracer(t, { budget: { hitsPerSecond: 1000 } })
  const hot = await tracer.aggregate('uprobe:f_hot', { pid: target.pid, histogram: 'arg0' })
  const quiet = await tracer.aggregate('uprobe:f_add', { pid: quietTarget.pid, by: 'comm' })
  const reasons: string[] = []
  quiet.on('state', ({ reason }) => reasons.push(reason))
  await target.ask('pace 20000')
  const ADDED = 4
  for (let added = 1; added <= ADDED; added++) {
    await cycles(hot, 1)
    await quietTarget.ask('add 1')
    assert.equal(quiet.stats().hits, added)
  }
  await target.ask('stop')
  assert.deepEqual([hot.state, reasons], ['throttled', []])
  await quiet.detach()
  const snapshot = await quiet.snapshot()
  assert.deepEqual([countIn(snapshot), snapshot.seenFraction], [ADDED, 1])
  assertBalanced(quiet, [snapshot])
})

test('an aggregation that ends while it is out: detached, and with its target', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { fileOffset } = gatedNote(target.program, 't:hot')
  for (const end of ['detached', 'target-exited'] as const) {
    const aggregation = await newTracer(t).aggregate(HOT, { pid: target.pid, by: 'tid', budget: { hitsPerSecond: 1 } })
    const errors: Error[] = []
    aggregation.on('error', (error) => errors.push(error))
    assert.equal(await target.askNumber('fires 1 5000'), 5000)
    await waitFor('the aggregation to be out', async () => aggregation.state === 'throttled' && !(await seesTime(aggregation)))
    assert.equal(isArmed(target.pid, target.program, fileOffset), false)
    if (end === 'detached') await aggregation.detach()
    else await target.end()
    await waitFor('the end', () => aggregation.state === end)
    await aggregation.detach()
    const snapshot = await aggregation.snapshot()
    assert.ok(snapshot.seenFraction > 0 && snapshot.seenFraction < 1)
    assertBalanced(aggregation, [snapshot])
    assert.deepEqual(errors, [])
  }
})

test('an aggregation that gives way to another tool tells in its snapshots that it saw a part', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const aggregation = await tracer.aggregate(HOT, { pid: target.pid, by: 'arg0', counter: 'msb' })
  assert.equal(await target.askNumber('fires 1 3'), 3)
  assert.equal((await tracer.yield()).length, 1)
  assert.equal(aggregation.state, 'paused')
  const first = await aggregation.snapshot({ reset: true })
  await turns(10)
  const second = await aggregation.snapshot({ reset: true })
  assert.ok(first.seenMs > 0 && first.seenFraction < 1)
  assert.deepEqual([second.seenMs, second.seenFraction], [0, 0])
  await aggregation.detach()
  assertBalanced(aggregation, [first, second, await aggregation.snapshot()])
})

test('an aggregation whose budget cannot be kept is not attached', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { fileOffset } = gatedNote(target.program, 't:hot')
  const tracer = newTracer(t)
  const failure = new Error('no governor')
  t.mock.method(Governor.prototype, 'add').mock.mockImplementationOnce(() => {
    throw failure
  })
  await assert.rejects(tracer.aggregate(HOT, { pid: target.pid, budget: { hitsPerSecond: 1 } }), failure)
  assert.deepEqual(tracer.aggregations, [])
  assert.equal(isArmed(target.pid, target.program, fileOffset), false)
})

test('what is no budget is refused, also of a latency', async () => {
  const tracer = new Tracer()
  for (const options of [{}, { max: 'latency' }]) {
    await refused(tracer.aggregate('uprobe:f_hot', { ...options, budget: { cpuPercent: 0 } }), 'ERR_UPROBE_BAD_OPTION')
  }
})
