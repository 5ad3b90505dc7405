/**
 * How budgets are kept beside each other, with probes, a clock and timers that are made up.
 */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { Governor } from '../../lib/budget/governor.js'
import type { Budget } from '../../lib/budget/options.js'
import { turns } from '../support/wait.js'
import { FakeProbe } from './fake-probe.js'

/** Hits that take hours to pay for, of a budget of one in a millisecond. */
const HOURS_OF_HITS = 10_000_000
const ONE_A_MS: Budget = { hitsPerSecond: 1000 }

/** Time that passes as it is told to. */
class World {
  #nowMs = 0
  readonly #rates = new Map<FakeProbe, number>()

  constructor(private readonly t: TestContext) {
    t.mock.timers.enable({ apis: ['setTimeout'] })
    t.mock.method(performance, 'now', () => this.#nowMs)
  }

  governor(common: Budget | null = null): Governor {
    const governor = new Governor(common)
    this.t.after(() => governor.close())
    return governor
  }

  /** A probe is hit so often a millisecond, while it is armed. */
  hit(probe: FakeProbe, aMs: number): void {
    this.#rates.set(probe, aMs)
  }

  async pass(ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed++) {
      this.block(1)
      this.t.mock.timers.tick(1)
      await turns(1)
    }
  }

  /** Time passes, and nobody gets a turn. */
  block(ms: number): void {
    this.#nowMs += ms
    for (const [probe, rate] of this.#rates) if (probe.armed && probe.hits !== null) probe.hits += rate * ms
  }
}

/** A probe that is out for hours. */
async function outForHours(world: World, governor: Governor, hits = HOURS_OF_HITS): Promise<FakeProbe> {
  const probe = new FakeProbe()
  governor.add(probe, ONE_A_MS, 0, 0)
  probe.hits = hits
  await world.pass(50)
  assert.equal(probe.out, true)
  return probe
}

test('a probe that is attached while the only other one is out for hours has its budget kept', async (t) => {
  const world = new World(t)
  const governor = world.governor()
  await outForHours(world, governor)
  const later = new FakeProbe()
  governor.add(later, ONE_A_MS, 0, 0)
  world.hit(later, 100)
  await world.pass(100)
  assert.equal(later.out, true)
})

test('a probe that is resumed by hand has its budget kept, however much it owes', async (t) => {
  const world = new World(t)
  const governor = world.governor()
  const probe = await outForHours(world, governor)
  probe.out = false
  await world.pass(100)
  probe.armed = true
  await world.pass(100)
  assert.equal(probe.out, true)
})

test('a probe that has ended is forgotten, also while it is out for hours', async (t) => {
  const world = new World(t)
  const probe = await outForHours(world, world.governor())
  probe.out = false
  probe.hits = null
  const before = probe.reads
  await world.pass(100)
  const { reads } = probe
  assert.equal(reads, before + 1)
  await world.pass(100)
  assert.equal(probe.reads, reads)
})

test('a debt of months is waited for without a look in each millisecond', async (t) => {
  const world = new World(t)
  const governor = world.governor()
  const checks = t.mock.method(globalThis, 'setTimeout')
  // More than a timer can wait for.
  await outForHours(world, governor, 1e12)
  await world.pass(1000)
  assert.ok(checks.mock.callCount() <= 25, `${checks.mock.callCount()} looks`)
  for (const { arguments: given } of checks.mock.calls) assert.ok(Number(given[1]) <= 1000)
})

test('the hits of the attach are paid for, with the time that it was armed', async (t) => {
  for (const [hits, out] of [
    [3000, true],
    [2500, false],
  ] as const) {
    const world = new World(t)
    const probe = new FakeProbe()
    probe.hits = hits
    world.governor().add(probe, ONE_A_MS, 0, 1900)
    await world.pass(60)
    assert.equal(probe.out, out, `${hits} hits`)
    t.mock.reset()
  }
  // A common budget has had this time already.
  const world = new World(t)
  const probe = new FakeProbe()
  probe.hits = 2000
  world.governor(ONE_A_MS).add(probe, null, 0, 1900)
  world.hit(probe, 0.9)
  await world.pass(60)
  assert.equal(probe.out, true)
})

test('counts that take long to be read are read seldom, and bursts noticed all the same', async (t) => {
  const world = new World(t)
  const probe = new FakeProbe()
  const { trapped } = probe
  let slowMs = 300
  probe.trapped = () => {
    world.block(slowMs)
    return trapped.call(probe)
  }
  const governor = world.governor()
  governor.add(probe, ONE_A_MS, 0, 0)
  await world.pass(1)
  // That was the look which others kept from the processor.
  slowMs = 0
  const { reads } = probe
  world.hit(probe, 100)
  await world.pass(499)
  assert.equal(probe.reads, reads)
  await world.pass(1)
  assert.equal(probe.out, true)
})

test('counts that cannot be read are reported once, paid for when they can, and keep nobody else from being looked at', async (t) => {
  const world = new World(t)
  const governor = world.governor()
  const probe = new FakeProbe()
  const failure = new Error('bpf')
  const { trapped } = probe
  let broken = true
  probe.trapped = () => {
    if (broken) throw failure
    return trapped.call(probe)
  }
  const other = new FakeProbe()
  governor.add(probe, ONE_A_MS, 0, 0)
  governor.add(other, ONE_A_MS, 0, 0)
  for (const hot of [probe, other]) world.hit(hot, 100)
  await world.pass(200)
  assert.deepEqual([probe.out, other.out], [false, true])
  assert.deepEqual(probe.failures, [failure])
  broken = false
  await world.pass(60)
  assert.equal(probe.out, true)
})

test('of probes with a common budget, the one that costs most is taken out', async (t) => {
  const world = new World(t)
  const governor = world.governor({ hitsPerSecond: 1000 })
  const hot = new FakeProbe()
  const quiet = new FakeProbe()
  for (const probe of [hot, quiet]) governor.add(probe, null, 0, 0)
  world.hit(hot, 10)
  world.hit(quiet, 0.1)
  await world.pass(10_000)
  assert.ok(hot.switches.length >= 4)
  assert.deepEqual(quiet.switches, [])
  assert.ok((hot.hits ?? 0) + (quiet.hits ?? 0) <= 11_000 + 500)
})

test('a probe that is hit a thousand times as often as it may be is taken out after its first millisecond, also beside others that are out', async (t) => {
  const world = new World(t)
  const governor = world.governor()
  await outForHours(world, governor)
  const probe = new FakeProbe()
  governor.add(probe, ONE_A_MS, 0, 0)
  world.hit(probe, 1000)
  await world.pass(3)
  assert.equal(probe.out, true)
  // A thousand were saved.
  assert.ok((probe.hits ?? 0) <= 3000, `${probe.hits} hits`)
  const outMs = probe.untilMs - Date.now()
  assert.ok(outMs > (probe.hits ?? 0) - 1000 - 20 && outMs <= (probe.hits ?? 0) - 1000, `${outMs} ms`)
})

test('a new probe that is quiet is looked at more and more seldom', async (t) => {
  const world = new World(t)
  const probe = new FakeProbe()
  world.governor().add(probe, ONE_A_MS, 0, 0)
  const atMs: number[] = []
  for (let ms = 1; ms <= 213; ms++) {
    const { reads } = probe
    await world.pass(1)
    if (probe.reads > reads) atMs.push(ms)
  }
  assert.deepEqual(atMs, [1, 3, 7, 15, 31, 63, 113, 163, 213])
})

test('a new probe does not put off the look at another', async (t) => {
  const world = new World(t)
  const governor = world.governor()
  const hot = new FakeProbe()
  governor.add(hot, ONE_A_MS, 0, 0)
  await world.pass(500)
  world.hit(hot, 1000)
  for (let ms = 0; ms < 60; ms++) {
    await world.pass(1)
    governor.add(new FakeProbe(), ONE_A_MS, 0, 0)
  }
  assert.equal(hot.out, true)
})
