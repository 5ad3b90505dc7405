/**
 * A million hits in a burst against an agent that does not take them: the target is not held up, memory stays within its bounds, every hit is accounted for with the reason, and what is
 * delivered is in order.
 *
 * Not for guests: it takes them too long.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { AttachOptions, Hit, Probe, TracerOptions } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const THREADS = 4
const EACH = 250_000
const ALL = THREADS * EACH
const KIB = 1024
const MIB = 1024 * KIB
/** A batch that is just let in, and what of the process's memory is not ours: the heap of the test runner, pages that malloc keeps. */
const BATCH_BYTES = MIB
const OTHER_BYTES = 64 * MIB
/** What all hits would take. */
const STRINGS = { strings: [1], stringLimit: 4096 } as const

setFlagsFromString('--expose-gc')
const collectGarbage: () => void = runInNewContext('gc')

/** Checks that the hits of each thread come in the order in which it made them, each once. */
class Order {
  seen = 0
  readonly #last = new Map<number, number>()

  take(hit: Hit): void {
    this.seen++
    const number = Number(hit.args[0])
    assert.ok(number > (this.#last.get(hit.tid) ?? -1), `thread ${hit.tid}: ${number} came behind ${this.#last.get(hit.tid)}`)
    this.#last.set(hit.tid, number)
  }

  get threads(): number {
    return this.#last.size
  }
}

async function start(t: test.TestContext, tracing: TracerOptions, options: AttachOptions): Promise<{ target: Target; probe: Probe }> {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const probe = await newTracer(t, tracing).attach('usdt:t:hot', { pid: target.pid, ...options })
  return { target, probe }
}

/** Asserts the counts of a probe that is detached, and returns them. */
function accountsOf(probe: Probe, seen: number): ReturnType<Probe['stats']> {
  const stats = probe.stats()
  const { hits, filtered, delivered, lost, lostRing, lostQueue } = stats
  assert.equal(hits, ALL)
  assert.equal(hits, filtered + delivered + lost)
  assert.equal(lost, lostRing + lostQueue)
  assert.equal(delivered, seen)
  return stats
}

async function readRest(iterator: AsyncIterator<Hit>, order: Order): Promise<void> {
  for (;;) {
    const result = await iterator.next()
    if (result.done === true) return
    order.take(result.value)
  }
}

for (const [bound, options] of [
  ['bytes', { ...STRINGS, queueLimitBytes: 4 * MIB }],
  ['hits', { queueLimit: 1000 }],
] as const) {
  test(`a consumer that has stopped keeps what its queue holds, bounded in ${bound}, and no more memory`, GCC, async (t) => {
    const { target, probe } = await start(t, {}, options)
    const order = new Order()
    const iterator = probe[Symbol.asyncIterator]()
    const first = iterator.next()
    collectGarbage()
    const before = process.memoryUsage().arrayBuffers
    assert.equal(await target.askNumber(`fires ${THREADS} ${EACH}`), ALL)
    order.take((await first).value)
    await probe.detach()
    // Garbage goes in the background.
    await waitFor('memory to be given back', () => {
      collectGarbage()
      return process.memoryUsage().arrayBuffers - before <= 4 * MIB + BATCH_BYTES
    })
    await readRest(iterator, order)
    const { delivered, lostQueue } = accountsOf(probe, order.seen)
    assert.ok(delivered > 0 && lostQueue > 0)
    if (bound === 'hits') assert.equal(delivered, 1001)
  })
}

test('a blocked event loop: the ring and what waits beside it fill up, and the rest is lost in the ring', GCC, async (t) => {
  const { target, probe } = await start(t, { ringBytes: MIB, pendingLimitBytes: MIB }, STRINGS)
  const order = new Order()
  probe.on('hit', (hit) => order.take(hit))
  collectGarbage()
  const before = process.memoryUsage().rss
  target.tell(`fires ${THREADS} ${EACH}`)
  // The event loop does not turn until the target is done, which is seen by what the kernel counts.
  const pause = new Int32Array(new SharedArrayBuffer(4))
  while (probe.stats().hits < ALL) Atomics.wait(pause, 0, 0, 20)
  const grown = process.memoryUsage().rss - before
  assert.ok(grown <= 2 * MIB + BATCH_BYTES + OTHER_BYTES, `${grown} bytes more`)
  assert.equal(await target.line(), `executed ${ALL}`)
  await probe.detach()
  const { lostRing, lostQueue } = accountsOf(probe, order.seen)
  assert.ok(lostRing > ALL / 2)
  assert.equal(lostQueue, 0)
})

test('a ring of 64 KiB: what it has no room for is lost there, what a filter rejects is not', GCC, async (t) => {
  const { target, probe } = await start(t, { ringBytes: 64 * KIB, pendingLimitBytes: 64 * KIB }, { filter: 'arg0 >= 1000' })
  const order = new Order()
  probe.on('batch', (batch) => {
    for (const hit of batch) order.take(hit)
    // Slower than the hits come.
    for (const end = performance.now() + batch.length * 0.05; performance.now() < end; );
  })
  assert.equal(await target.askNumber(`fires ${THREADS} ${EACH}`), ALL)
  await probe.detach()
  const { filtered, lostRing, lostQueue } = accountsOf(probe, order.seen)
  assert.equal(filtered, THREADS * 1000)
  assert.ok(lostRing > 0)
  assert.equal(lostQueue, 0)
  assert.equal(order.threads, THREADS)
})

test('the probe that is flooded loses, and its neighbour in the same ring is accounted for by itself', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const tracer = newTracer(t, { ringBytes: 64 * KIB, pendingLimitBytes: 64 * KIB })
  const flooded = await tracer.attach('usdt:t:hot', { pid: target.pid, ...STRINGS, queueLimit: 10 })
  const counted = await tracer.attach('usdt:t:hot', { pid: target.pid, countOnly: true })
  const seen = await tracer.attach('usdt:t:hot', { pid: target.pid })
  const order = new Order()
  seen.on('hit', (hit) => order.take(hit))
  assert.equal(await target.askNumber(`fires ${THREADS} ${EACH}`), ALL)
  for (const probe of [flooded, counted, seen]) await probe.detach()
  assert.deepEqual([counted.stats().hits, counted.stats().delivered, counted.stats().lost], [ALL, ALL, 0])
  accountsOf(seen, order.seen)
  const { delivered, lostRing } = accountsOf(flooded, 10)
  assert.equal(delivered, 10)
  assert.ok(lostRing > 0)
})
