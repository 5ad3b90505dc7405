/**
 * Latencies whose probes a budget takes out and arms again: whatever is nested in what, an end never meets the beginning of another, and what has no end or no beginning for it is counted as that.
 *
 * The probes are taken out and armed again by hand, so that it is known what comes before and after. test/budget has the rest.
 */
import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import test, { type TestContext } from 'node:test'
import { PairedArming } from '../../lib/aggregate/paired-arming.js'
import { Governor } from '../../lib/budget/governor.js'
import type { Throttled } from '../../lib/budget/member.js'
import { type AggregateOptions, type AggregateSpec, type Aggregation, type AggregationStats, release } from '../../lib/index.js'
import { Attachment } from '../../lib/register/attachment.js'
import { NOTHING_ELSE } from '../aggregate/counts.js'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer, refused } from '../support/tracing.js'
import { turns, waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const PAIR = { from: 'usdt:t:begin', to: 'usdt:t:end' }
const BUDGET = { hitsPerSecond: 1 }
/** Longer than what is waited for takes. */
const LONG_MS = 10_000

interface Governed {
  readonly target: Target
  readonly aggregation: Aggregation
  /** What the budget would take out; nobody else does. */
  readonly throttled: Throttled
  run(...commands: readonly string[]): Promise<void>
}

async function govern(t: TestContext, spec: AggregateSpec, options: AggregateOptions = {}): Promise<Governed> {
  const added: Throttled[] = []
  t.mock.method(Governor.prototype, 'add', (throttled: Throttled) => added.push(throttled))
  const target = await Target.start(t, buildTarget(t, 'latency'))
  const aggregation = await newTracer(t).aggregate(spec, { pid: target.pid, by: 'arg0', max: 'latency', budget: BUDGET, ...options })
  const [throttled] = added
  assert.ok(throttled !== undefined && added.length === 1, 'a latency is one thing to its budget')
  const run = async (...commands: readonly string[]): Promise<void> => {
    for (const command of commands) assert.equal(await target.ask(command), command.startsWith('hold') ? 'held' : 'done')
  }
  return { target, aggregation, throttled, run }
}

async function outAndBack({ throttled }: Governed, meanwhile: () => Promise<void>): Promise<void> {
  await throttled.sitOut()
  assert.deepEqual([throttled.armed, throttled.out], [false, true])
  await meanwhile()
  await throttled.comeBack()
  assert.deepEqual([throttled.armed, throttled.out], [true, false])
}

/** Detaches, and asserts how often each beginning was measured, by its argument, and the counts; those that are not named must be 0. */
async function assertSeen(aggregation: Aggregation, groups: Record<string, number>, expected: Partial<AggregationStats>): Promise<void> {
  await aggregation.detach()
  const snapshot = await aggregation.snapshot()
  assert.deepEqual(Object.fromEntries(snapshot.groups.map(({ key, count }) => [String(key[0]), count])), groups)
  const { seenMs, seenFraction, ...counts } = aggregation.stats()
  assert.ok(seenMs > 0 && seenFraction > 0 && seenFraction < 1 && snapshot.seenFraction === seenFraction)
  assert.deepEqual(counts, { hits: 0, aggregated: 0, ...NOTHING_ELSE, ...expected })
}

/**
 * How many ends are told of calls that began unseen. A link is told of all; so is a perf event before Linux 6.13, and since then of none, as the kernel then keeps which of its consumers have seen a call begin
 * (handle_uretprobe_chain, kernel/events/uprobes.c).
 */
async function assertReturns(aggregation: Aggregation, registration: 'perf' | 'multi', calls: number): Promise<{ begunUnseen: number }> {
  await aggregation.detach()
  const { begunUnseen } = aggregation.stats()
  assert.ok(begunUnseen === calls || (registration === 'perf' && begunUnseen === 0), `${begunUnseen} of ${calls}`)
  return { begunUnseen }
}

/** Without waiting for the ends of what has begun. */
function hurry(t: TestContext): void {
  t.mock.method(PairedArming.prototype, 'patienceMs', () => 0)
}

for (const registration of REGISTRATIONS) {
  test(`in a thread, what begins while the probes are out, or has begun before, ends nothing (${registration})`, GCC, async (t) => {
    hurry(t)
    const governed = await govern(t, PAIR, { registration })
    const { aggregation, run } = governed
    await run('begin 1', 'nest 2')
    assert.equal(governed.throttled.trapped(), 5, 'each hit of either probe is paid for')
    await outAndBack(governed, () => run('begin 2', 'nest 3'))
    // From the inside to the outside: begun since then, unseen, and before.
    await run('begin 3', 'end 3', 'end 2', 'end 1')
    await assertSeen(aggregation, { 0: 1, 1: 1, 3: 1 }, { hits: 4, aggregated: 3, unfinished: 1, cutOff: 1, begunUnseen: 2 })
  })

  test(`by an argument, an end takes no beginning from before the probes were out (${registration})`, GCC, async (t) => {
    hurry(t)
    const governed = await govern(t, { ...PAIR, match: 'arg0' }, { registration })
    const { aggregation, run } = governed
    await run('begin 1', 'begin 2', 'begin 3', 'end 3')
    await outAndBack(governed, () => run('end 1', 'begin 1'))
    await run('end 1', 'begin 1', 'end 1', 'end 2')
    await assertSeen(aggregation, { 1: 1, 3: 1 }, { hits: 4, aggregated: 2, unfinished: 2, cutOff: 2, begunUnseen: 2 })
  })

  test(
    `of a recursive function, no call returns for another across the time in which the probes are out (${registration})`,
    GCC,
    async (t) => {
      hurry(t)
      const governed = await govern(t, 'uprobe:f_hold', { histogram: 'latency', registration })
      const { aggregation, target, run } = governed
      // It has the kernel notice the return of calls that begin while the others are out.
      await newTracer(t).attach('uretprobe:f_hold', { pid: target.pid, countOnly: true })
      await run('hold 1')
      await outAndBack(governed, () => run('hold 2'))
      await run('hold 3', 'return', 'return', 'return')
      const unseen = await assertReturns(aggregation, registration, 2)
      await assertSeen(aggregation, { 3: 1 }, { hits: 2, aggregated: 1, unfinished: 1, cutOff: 1, ...unseen })
    },
  )

  test(
    `a call that begins while the probes are out does not end the one that was at its place before (${registration})`,
    GCC,
    async (t) => {
      hurry(t)
      const governed = await govern(t, 'uprobe:f_hold', { registration })
      const { aggregation, target, run } = governed
      await newTracer(t).attach('uretprobe:f_hold', { pid: target.pid, countOnly: true })
      await run('hold 0', 'return', 'hold 1')
      assert.equal(governed.throttled.trapped(), 2, 'each call is paid for once')
      await outAndBack(governed, () => run('return', 'hold 2'))
      await run('return', 'hold 3', 'return')
      const unseen = await assertReturns(aggregation, registration, 1)
      await assertSeen(aggregation, { 0: 1, 3: 1 }, { hits: 3, aggregated: 2, unfinished: 1, cutOff: 1, ...unseen })
    },
  )
}

test('what has begun is waited for, and what begins meanwhile is not taken for it', GCC, async (t) => {
  for (const match of ['thread', 'arg0']) {
    t.mock.method(PairedArming.prototype, 'patienceMs', () => Number.POSITIVE_INFINITY)
    const governed = await govern(t, { ...PAIR, match }, { filter: 'arg0 != 5' })
    const { aggregation, throttled, run } = governed
    await run('begin 1', 'begin 5')
    const out = throttled.sitOut()
    await turns(2)
    await run('begin 2', 'begin 3', 'end 3', 'end 2', 'end 5', 'end 1')
    await out
    await throttled.comeBack()
    await run('nest 1')
    await assertSeen(aggregation, { 0: 1, 1: 1 }, { hits: 3, filtered: 1, aggregated: 2 })
    t.mock.reset()
  }
})

test('no longer is waited than half of the time that was seen, nor than 50 ms', () => {
  const { patienceMs } = PairedArming.prototype
  assert.deepEqual([0, 10, 100, 1e6].map(patienceMs), [0, 5, 50, 50])
})

test('calls that were left are told apart from those that were cut off, also of threads that are over', GCC, async (t) => {
  hurry(t)
  const governed = await govern(t, 'uprobe:f_*')
  const { aggregation, run } = governed
  // That the last four were left, nobody has noticed yet.
  await run('leave 3 2')
  await outAndBack(governed, () => run('leave 3 2', 'down 2'))
  await run('down 2')
  await outAndBack(governed, async () => undefined)
  await run('down 0')
  await assertSeen(aggregation, { 0: 2, 1: 1, 2: 1 }, { hits: 12, aggregated: 4, unfinished: 8, abandoned: 4, cutOff: 4 })
})

test('what a thread or a process that is over had begun does not come back with the probes', GCC, async (t) => {
  hurry(t)
  for (const match of ['thread', 'arg0']) {
    const governed = await govern(t, { ...PAIR, match })
    const { aggregation, target, run } = governed
    await run('thread 1')
    await outAndBack(governed, () => run('thread 2'))
    await run('thread 3', 'begin 4')
    await outAndBack(governed, async () => assert.equal(await target.ask('begin 5'), 'done'))
    await run('end 4', 'end 3')
    const abandoned = match === 'thread' ? { abandoned: 2, cutOff: 1 } : { cutOff: 3 }
    await assertSeen(aggregation, {}, { hits: 3, unfinished: 3, ...abandoned, begunUnseen: 2 })
    t.mock.reset()
    hurry(t)
  }
})

for (const refusal of ['the first', 'the second'] as const) {
  test(`a latency of which ${refusal} probe cannot be armed again is paused, and neither is in the target`, GCC, async (t) => {
    hurry(t)
    const governed = await govern(t, PAIR)
    const { aggregation, throttled, run } = governed
    const told: unknown[] = []
    aggregation.on('state', ({ state, reason }) => told.push(`${state} ${reason}`))
    aggregation.on('error', (error) => told.push(error))
    await run('begin 1', 'end 1', 'begin 2')
    await throttled.sitOut()
    const failure = new Error('refused')
    const { registerAgain } = Attachment.prototype
    let calls = 0
    const mocked = t.mock.method(Attachment.prototype, 'registerAgain', function (this: Attachment, signal: AbortSignal) {
      calls += 1
      if (calls === (refusal === 'the first' ? 1 : 2)) throw failure
      return registerAgain.call(this, signal)
    })
    await assert.rejects(throttled.comeBack(), failure)
    mocked.mock.restore()
    assert.deepEqual([aggregation.state, throttled.armed, throttled.out], ['paused', false, false])
    assert.deepEqual(told, ['throttled over-budget', 'paused refused'])
    const trapped = throttled.trapped()
    await run('end 2', 'begin 1', 'end 1')
    assert.equal(throttled.trapped(), trapped)
    await aggregation.resume()
    assert.deepEqual([aggregation.state, throttled.armed, throttled.out, told.at(-1)], ['attached', true, false, 'attached resume'])
    await run('end 2', 'begin 3', 'end 3')
    await assertSeen(aggregation, { 1: 1, 3: 1 }, { hits: 3, aggregated: 2, unfinished: 1, cutOff: 1, begunUnseen: 1 })
  })
}

test('what was begun is forgotten before the probes come back, also when that failed at first', GCC, async (t) => {
  hurry(t)
  const governed = await govern(t, PAIR)
  const { aggregation, throttled, run } = governed
  const failure = new Error('the map cannot be read')
  const { starts } = throttled as unknown as { starts: { clear(): Promise<void> } }
  await run('begin 1')
  t.mock.method(starts, 'clear').mock.mockImplementationOnce(async () => {
    throw failure
  })
  await assert.rejects(throttled.sitOut(), failure)
  assert.equal(throttled.out, true)
  await throttled.comeBack()
  await run('end 1')
  await assertSeen(aggregation, {}, { hits: 1, unfinished: 1, cutOff: 1, begunUnseen: 1 })
})

for (const how of ['detached', 'aborted', 'the tracer is closed'] as const) {
  test(`at the end, too, an end is not taken for that of another, and what has begun may end (${how})`, GCC, async (t) => {
    t.mock.method(PairedArming.prototype, 'patienceMs', () => LONG_MS)
    const target = await Target.start(t, buildTarget(t, 'latency'))
    const tracer = newTracer(t)
    const controller = new AbortController()
    const aggregation = await tracer.aggregate(PAIR, { pid: target.pid, by: 'arg0', signal: controller.signal })
    assert.equal(await target.ask('begin 1'), 'done')
    if (how === 'aborted') controller.abort()
    const ended = how === 'the tracer is closed' ? tracer.close() : how === 'detached' ? aggregation.detach() : null
    await turns(2)
    for (const command of ['begin 2', 'end 2', 'end 1']) assert.equal(await target.ask(command), 'done')
    await (ended ?? waitFor('the end', () => aggregation.state === 'detached'))
    await aggregation.detach()
    assert.equal(getEventListeners(controller.signal, 'abort').length, 0)
    const { hits, aggregated, unfinished, unmatched } = aggregation.stats()
    assert.deepEqual([hits, aggregated, unfinished, unmatched], [1, 1, 0, 0])
    const [group] = (await aggregation.snapshot()).groups
    assert.deepEqual(group?.key, [1])
  })
}

for (const counter of ['kernel', 'msb'] as const) {
  test(`the probes of a latency that is out are not in the target, so that no program of theirs runs (${counter})`, GCC, async (t) => {
    t.mock.method(Governor.prototype, 'add', (added: Throttled) => throttled.push(added))
    const throttled: Throttled[] = []
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const sites = ['t:begin', 't:end'].flatMap((name) => notesOf(target.program, name))
    const armed = (): boolean[] => sites.map(({ fileOffset }) => isArmed(target.pid, target.program, fileOffset))
    const tracer = newTracer(t, { leaseDir: leaseDirectory() })
    const aggregation = await tracer.aggregate(PAIR, { pid: target.pid, counter, budget: BUDGET })
    assert.deepEqual(armed(), [true, true, true, true])
    await throttled[0]?.sitOut()
    assert.deepEqual(armed(), [false, false, false, false])
    await throttled[0]?.comeBack()
    assert.deepEqual(armed(), [true, true, true, true])
    await aggregation.detach()
  })
}

for (const how of ['detached', 'target-exited', 'aborted'] as const) {
  test(`a latency that ends while it is out or on its way out leaves nothing, and its counts add up (${how})`, GCC, async (t) => {
    for (const moment of ['out', 'on its way'] as const) {
      const controller = new AbortController()
      const { aggregation, target, throttled, run } = await govern(t, PAIR, { signal: controller.signal })
      const told: unknown[] = []
      aggregation.on('error', (error) => told.push(error))
      await run('begin 1', 'end 1', 'begin 2')
      const out = throttled.sitOut()
      if (moment === 'out') await out
      if (how === 'detached') await aggregation.detach()
      else if (how === 'aborted') controller.abort()
      else await target.end()
      await waitFor('the end', () => aggregation.state === (how === 'target-exited' ? how : 'detached'))
      await out
      await throttled.comeBack()
      assert.deepEqual([throttled.armed, throttled.out, told], [false, false, []])
      await aggregation.detach()
      const { hits, aggregated, unfinished, unmatched } = aggregation.stats()
      assert.deepEqual([hits, aggregated, unfinished, unmatched], [2, 1, 1, 0])
      t.mock.reset()
    }
  })
}

/** A function and probes that are hit one after the other, round and round: t:begin, f_hot, t:end. Each pair here leaves something begun. */
const YIELDING: readonly { pair: { from: string; to: string }; claimed: readonly string[] }[] = [
  { pair: { from: 'uprobe:f_hot', to: 'usdt:t:begin' }, claimed: ['begin'] },
  { pair: { from: 'usdt:t:end', to: 'uprobe:f_hot' }, claimed: ['end'] },
  { pair: { from: 'usdt:t:end', to: 'usdt:t:begin' }, claimed: ['end', 'begin'] },
]

for (const { pair, claimed } of YIELDING) {
  test(`a latency gives way to another tool as a whole, and is resumed as a whole (${pair.from} to ${pair.to})`, GCC, async (t) => {
    hurry(t)
    const throttled: Throttled[] = []
    t.mock.method(Governor.prototype, 'add', (added: Throttled) => throttled.push(added))
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const { pid, program: path } = target
    const leaseDir = leaseDirectory()
    const [tracer, others] = [newTracer(t, { leaseDir }), newTracer(t, { leaseDir })]
    const aggregation = await tracer.aggregate(pair, { pid, counter: 'msb', max: 'latency', budget: BUDGET })
    const told: string[] = []
    aggregation.on('state', ({ state, reason }) => told.push(`${state} ${reason}`))
    const before = await target.askNumber('paired 1')
    assert.deepEqual(await tracer.yield(pid + 1), [])
    assert.deepEqual(
      await tracer.yield(pid),
      claimed.map((name) => ({ pid, path, provider: 't', name })),
    )
    assert.deepEqual(await tracer.yield(), [])
    assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
    await throttled[0]?.sitOut()
    await throttled[0]?.comeBack()
    assert.deepEqual([aggregation.state, throttled[0]?.armed, throttled[0]?.out], ['paused', false, false])
    const sites = ['t:begin', 't:end'].flatMap((name) => notesOf(path, name))
    assert.ok(sites.every(({ fileOffset }) => !isArmed(pid, path, fileOffset)))
    const other = await others.attach(`usdt:t:${claimed[0]}`, { pid })
    await refused(aggregation.resume(), 'ERR_UPROBE_COUNTER_MODE')
    assert.deepEqual([aggregation.state, throttled[0]?.armed, throttled[0]?.out], ['paused', false, false])
    const meanwhile = await target.askNumber('paired 1')
    assert.ok(meanwhile > 0)
    await detachComplete(other, meanwhile)
    const trapped = throttled[0]?.trapped()
    await aggregation.resume()
    assert.equal(throttled[0]?.trapped(), trapped, 'nothing was hit meanwhile')
    const after = await target.askNumber('paired 1')
    await throttled[0]?.sitOut()
    await throttled[0]?.comeBack()
    const last = await target.askNumber('paired 1')
    await aggregation.detach()
    const { seenMs, seenFraction, ...counts } = aggregation.stats()
    assert.ok(seenMs > 0 && seenFraction > 0 && seenFraction < 1)
    // Each time the first end has no beginning, and the last beginning no end.
    const hits = before + after + last
    const unmatched = { unmatched: 1, begunUnseen: 2 }
    assert.deepEqual(counts, { ...NOTHING_ELSE, hits, aggregated: hits - 3, unfinished: 3, cutOff: 2, ...unmatched })
    assert.deepEqual(told, ['paused yield', 'attached resume', 'throttled over-budget'])
  })
}

test('a latency that is asked to give way lets what has begun end first', GCC, async (t) => {
  for (const match of ['thread', 'arg0']) {
    t.mock.method(PairedArming.prototype, 'patienceMs', () => LONG_MS)
    const target = await Target.start(t, buildTarget(t, 'mixed'))
    const leaseDir = leaseDirectory()
    const pair = { from: 'uprobe:f_begin', to: 'usdt:t:end', match }
    const aggregation = await newTracer(t, { leaseDir }).aggregate(pair, { pid: target.pid, counter: 'msb', by: 'arg0' })
    assert.equal(await target.ask('begin 1'), 'done')
    const released = release({ leaseDir })
    await waitFor('beginnings to be ignored', async () => {
      const { hits } = aggregation.stats()
      assert.equal(await target.ask('begin 2'), 'done')
      assert.equal(await target.ask('end 2'), 'done')
      return aggregation.stats().hits === hits
    })
    const { hits } = aggregation.stats()
    assert.equal(await target.ask('end 1'), 'done')
    assert.deepEqual(
      (await released).map(({ name, released }) => [name, released]),
      [['end', true]],
    )
    assert.equal(aggregation.state, 'paused')
    await aggregation.detach()
    const { aggregated, unfinished, unmatched } = aggregation.stats()
    assert.deepEqual([aggregated, unfinished, unmatched], [hits, 0, 0])
    t.mock.reset()
  }
})

test('a snapshot tells what part of the time beginnings were counted in', GCC, async (t) => {
  const governed = await govern(t, 'uprobe:f_down')
  const { aggregation, throttled, run } = governed
  await run('down 1')
  await throttled.sitOut()
  const first = await aggregation.snapshot({ reset: true })
  await waitFor('time to pass', async () => (await aggregation.snapshot()).timeMs > first.timeMs)
  const second = await aggregation.snapshot({ reset: true })
  await throttled.comeBack()
  await run('down 2')
  const third = await aggregation.snapshot()
  const countOf = ({ groups }: typeof first): number => groups.reduce((sum, { count }) => sum + count, 0)
  assert.deepEqual([first, second, third].map(countOf), [2, 0, 3])
  assert.ok(first.seenMs > 0 && first.seenFraction < 1)
  assert.deepEqual([second.seenMs, second.seenFraction], [0, 0])
  assert.ok(third.seenMs > 0 && third.seenFraction < 1)
  await aggregation.detach()
})

for (const spec of ['usdt:t:end', PAIR] as const) {
  test(
    `a process that exits while the probes are armed again does not pause them for the others (${typeof spec === 'string' ? 'one probe' : 'a latency'})`,
    GCC,
    async (t) => {
      const program = buildTarget(t, 'latency')
      const [stays, goes] = [await Target.start(t, program), await Target.start(t, program)]
      const added: Throttled[] = []
      t.mock.method(Governor.prototype, 'add', (throttled: Throttled) => added.push(throttled))
      const options: AggregateOptions = {
        pid: [stays.pid, goes.pid],
        budget: BUDGET,
        registration: 'perf',
        ...(typeof spec === 'string' ? {} : { max: 'latency' }),
      }
      const aggregation = await newTracer(t).aggregate(spec, options)
      const [throttled] = added
      assert.ok(throttled !== undefined)
      const told: string[] = []
      aggregation.on('state', ({ state, reason }) => told.push(`${state} ${reason}`))
      await throttled.sitOut()
      // Its end is told of in the middle of the registration, so that the probe knows of it before that has failed.
      const { registerAgain } = Attachment.prototype
      let first = true
      t.mock.method(Attachment.prototype, 'registerAgain', async function (this: Attachment, signal: AbortSignal) {
        if (!first) return registerAgain.call(this, signal)
        first = false
        goes.kill('SIGKILL')
        await goes.exited
        return registerAgain.call(this, signal)
      })
      await throttled.comeBack().catch(() => undefined)
      await waitFor('the probes to be armed', async () => {
        await throttled.comeBack()
        return throttled.armed
      })
      assert.ok(!told.some((change) => change.startsWith('paused')), told.join(', '))
      assert.equal(await stays.ask('begin 1'), 'done')
      assert.equal(await stays.ask('end 1'), 'done')
      await aggregation.detach()
      assert.equal(aggregation.stats().aggregated, 1)
    },
  )
}
