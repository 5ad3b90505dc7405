/**
 * Every hit is accounted for: hits = filtered + delivered + lost, exactly, whatever the number of threads and however slow the consumer.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { Probe } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { HAS_MULTI, REGISTRATIONS } from '../support/features.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { assertStats, collect, detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const THREADS = 4
const EACH = 25_000
const ALL = THREADS * EACH

/** Keeps the event loop from turning, as a busy host does, while the target works on. */
function blockEventLoop(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
}

function assertBalanced(probe: Probe): void {
  const { hits, filtered, delivered, lost, lostRing, lostQueue } = probe.stats()
  assert.equal(hits, filtered + delivered + lost)
  assert.equal(lost, lostRing + lostQueue)
}

for (const registration of REGISTRATIONS) {
  test(`4 threads that fire 25,000 times each are 100,000 hits, each delivered once (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const probe = await newTracer(t, { ringBytes: 32 * 1024 * 1024 }).attach('usdt:t:gated', { pid: target.pid, registration })
    const perThread = new Map<number, number>()
    let outOfOrder = 0
    const next = new Map<number, number>()
    probe.on('hit', (hit) => {
      perThread.set(hit.tid, (perThread.get(hit.tid) ?? 0) + 1)
      if (hit.args[0] !== (next.get(hit.tid) ?? 0)) outOfOrder++
      next.set(hit.tid, Number(hit.args[0]) + 1)
    })
    assert.equal(await target.askNumber(`threads ${THREADS} ${EACH}`), ALL)
    await detachComplete(probe, ALL)
    assert.deepEqual([...perThread.values()], new Array(THREADS).fill(EACH))
    assert.equal(outOfOrder, 0)
  })
}

test('a probe that only counts sees the same number, and refuses whoever would wait for its hits', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, countOnly: true })
  const refusal = { code: 'ERR_UPROBE_BAD_OPTION', message: /^The probe only counts .* or attach without countOnly\.$/ }
  assert.throws(() => probe[Symbol.asyncIterator](), refusal)
  for (const event of ['hit', 'batch'] as const) {
    assert.throws(() => probe.on(event, () => undefined), refusal)
    assert.equal(probe.listenerCount(event), 0)
  }
  assert.equal(await target.askNumber(`threads ${THREADS} ${EACH}`), ALL)
  // What was counted and not filtered stands where it would have been delivered, so that the sum holds.
  await detachComplete(probe, ALL)
})

test('a ring that overflows loses hits, and counts every one of them', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t, { ringBytes: 64 * 1024, pendingLimitBytes: 64 * 1024 })
  const probe = await tracer.attach('usdt:t:gated', { pid: target.pid })
  const hits = collect(probe)
  target.tell(`threads ${THREADS} ${EACH}`)
  // The target is done when its counts stand still; they are read in the kernel, so that the event loop need not turn for it.
  while (probe.stats().hits < ALL) blockEventLoop(20)
  assert.equal(await target.line(), `executed ${ALL}`)
  await probe.detach()
  const stats = probe.stats()
  assert.equal(stats.hits, ALL)
  assert.ok(stats.lostRing > 0)
  assert.ok(stats.delivered > 0)
  assert.equal(hits.length, stats.delivered)
  assertBalanced(probe)
})

test('an iterator that is slower than the hits loses those that its queue has no room for, and counts them', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, queueLimit: 100 })
  const iterator = probe[Symbol.asyncIterator]()
  assert.equal(await target.askNumber('gated 1000'), 1000)
  await waitFor('all hits to arrive', () => probe.stats().delivered + probe.stats().lost === 1000)
  assertStats(probe.stats(), { hits: 1000, delivered: 100, lost: 900, lostQueue: 900 })
  const seen: unknown[] = []
  for (let i = 0; i < 100; i++) seen.push((await iterator.next()).value?.args[0])
  assert.deepEqual(
    seen,
    Array.from({ length: 100 }, (_, i) => 0 - i),
  )
  await iterator.return?.()
  assert.equal(probe.state, 'detached')
  assertStats(probe.stats(), { hits: 1000, delivered: 100, lost: 900, lostQueue: 900 })
})

test('a consumer that blocks the event loop again and again loses nothing while the ring has room', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t, { ringBytes: 32 * 1024 * 1024 }).attach('usdt:t:gated', { pid: target.pid })
  let delivered = 0
  probe.on('batch', (batch) => {
    delivered += batch.length
    blockEventLoop(50)
  })
  assert.equal(await target.askNumber(`threads ${THREADS} ${EACH}`), ALL)
  await detachComplete(probe, ALL)
  assert.equal(delivered, ALL)
})

test('a filter is decided in the kernel and counted', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, filter: 'arg0 <= -90' })
  const hits = collect(probe)
  assert.equal(await target.askNumber('gated 100'), 100)
  await probe.detach()
  assertStats(probe.stats(), { hits: 100, filtered: 90, delivered: 10 })
  assert.deepEqual(
    hits.map((hit) => hit.args[0]),
    [-90, -91, -92, -93, -94, -95, -96, -97, -98, -99],
  )
})

test('detaching while threads fire: what was executed meanwhile is counted or was not traced, and the sum is exact', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t)
  await target.ask(`spin ${THREADS}`)
  const counts: number[] = []
  for (let round = 0; round < 5; round++) {
    const probe = await tracer.attach('usdt:t:plain', { pid: target.pid })
    let delivered = 0
    probe.on('batch', (batch) => {
      delivered += batch.length
    })
    await waitFor('hits', () => delivered > 0)
    await probe.detach()
    assertBalanced(probe)
    assert.equal(probe.stats().delivered, delivered)
    counts.push(probe.stats().hits)
  }
  const executed = await target.askNumber('spin-stop')
  assert.ok(counts.reduce((sum, hits) => sum + hits, 0) <= executed)
})

for (const registration of ['perf', 'auto'] as const) {
  test(`the leader thread exits while others go on: counted, or said that it may be missing (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const probe = await newTracer(t).attach('usdt:t:shared', { pid: target.pid, registration })
    const changes: boolean[] = []
    probe.on('state', (change) => change.reason === 'leader-exit' && changes.push(change.mayHaveMissed))
    const hits = collect(probe)
    assert.equal(await target.askNumber('shared 2'), 6)
    assert.equal(await target.ask('leader-exit'), 'leader gone')
    await waitFor('the exit of the leader to be noticed', () => changes.length === 1)
    assert.deepEqual(changes, [registration === 'perf' || !HAS_MULTI])
    assert.equal(probe.state, 'attached')
    assert.equal(await target.askNumber('shared 3'), 9)
    await detachComplete(probe, 15)
    assert.ok(hits.slice(6).every((hit) => hit.pid === target.pid && hit.tid !== target.pid))
    assert.equal(await target.ask('counters'), '0 0 0 0')
  })
}

test('a process whose leader thread has exited can be attached', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  await target.ask('leader-exit')
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  assert.equal(await target.askNumber('gated 3'), 3)
  await detachComplete(probe, 3)
  assert.equal(await target.ask('counters'), '0 0 0 0')
})
