/**
 * How a budget is kept, with a probe and a clock that are made up.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Bucket } from '../../lib/budget/bucket.js'
import { Member } from '../../lib/budget/member.js'
import { checkBudget, msPerHit } from '../../lib/budget/options.js'
import { SeenClock } from '../../lib/budget/seen-clock.js'
import { UprobeError } from '../../lib/errors.js'
import { turns } from '../support/wait.js'
import { FakeProbe } from './fake-probe.js'

/** Runs a member alone, as a governor does, with a clock of its own. */
class Run {
  nowMs = 0
  constructor(
    readonly probe: FakeProbe,
    readonly member: Member,
  ) {}

  /** One step: as many hits a millisecond while armed, for as long as the member wants, and what comes of it. */
  async step(hitsAMs: number): Promise<void> {
    const elapsedMs = this.member.dueMs(this.nowMs, 0)
    assert.ok(Number.isFinite(elapsedMs) && elapsedMs > 0)
    if (this.probe.armed) this.probe.hits = (this.probe.hits ?? 0) + hitsAMs * elapsedMs
    await this.pass(elapsedMs)
  }

  async pass(elapsedMs: number): Promise<void> {
    this.nowMs += elapsedMs
    this.member.measure(this.nowMs, elapsedMs, 0)
    this.member.decide(this.nowMs, () => this.member.measure(this.nowMs, 0, 0))
    await turns(2)
  }
}

test('a budget is kept on average, from much too many hits to a few too many', async () => {
  for (const [hitsAMs, priceMs] of [
    [1000, 20],
    [1000, 0.01],
    [1.2, 1],
  ] as const) {
    const probe = new FakeProbe()
    const run = new Run(probe, new Member(probe, priceMs, 0))
    let most = 0
    while (run.nowMs < 300_000) {
      await run.step(hitsAMs)
      if (probe.armed) most = Math.max(most, (probe.hits ?? 0) * priceMs - run.nowMs)
    }
    // A second's budget may be used at once, before it comes in.
    assert.ok(most <= 1000, `${most} ms too many were used`)
    // And it is used, apart from what is still owed or saved.
    assert.ok((probe.hits ?? 0) * priceMs >= run.nowMs - 1000)
    assert.equal(probe.calmed, 0)
  }
})

test('a probe that keeps its budget is left alone', async () => {
  const probe = new FakeProbe()
  const run = new Run(probe, new Member(probe, 1, 0))
  while (run.nowMs < 60_000) await run.step(0.9)
  assert.deepEqual(probe.switches, [])
})

test('a probe that has become quiet is told to be so, once', async () => {
  const probe = new FakeProbe()
  const run = new Run(probe, new Member(probe, 1, 0))
  while (!probe.switches.includes('back')) await run.step(100)
  assert.equal(probe.calmed, 0)
  const since = run.nowMs
  while (run.nowMs < since + 10_000) await run.step(0.1)
  assert.equal(probe.calmed, 1)
  assert.equal(probe.switches.filter((kind) => kind === 'out').length, 1)
})

test('a paused probe is neither taken out nor armed, whatever it owes', async () => {
  const probe = new FakeProbe()
  const run = new Run(probe, new Member(probe, 1, 0))
  probe.armed = false
  probe.hits = 100_000
  for (let step = 0; step < 5000; step++) await run.step(0)
  assert.deepEqual(probe.switches, [])
})

test('the time of a switch is paid for as if it had been hit as before, where that cannot be seen', async () => {
  const probe = new FakeProbe()
  probe.unseenShare = 0.5
  const member = new Member(probe, 1, 0)
  const run = new Run(probe, member)
  let done = (): void => undefined
  probe.sitOut = () =>
    new Promise((resolve) => {
      done = () => {
        probe.armed = false
        probe.out = true
        resolve()
      }
    })
  while (member.dueMs(run.nowMs, 0) !== Number.POSITIVE_INFINITY) await run.step(100)
  const owed = (probe.hits ?? 0) - run.nowMs - 1000
  run.nowMs += 200
  member.measure(run.nowMs, 200, 0)
  done()
  await turns(2)
  // 200 ms with 100 hits each, half of them unseen, and 200 ms have passed.
  assert.ok(Math.abs(member.dueMs(run.nowMs, 0) - (owed + 0.5 * 100 * 200 - 200)) < 1)
})

test('a probe that cannot be armed again is reported once and tried again after a while', async () => {
  const probe = new FakeProbe()
  const run = new Run(probe, new Member(probe, 1, 0))
  while (!probe.out) await run.step(100)
  probe.failure = new Error('refused')
  const since = run.nowMs
  while (run.nowMs < since + 60_000) await run.step(0)
  assert.deepEqual(probe.failures, [probe.failure])
  const tried = probe.switches.filter((kind) => kind === 'back').length
  assert.ok(tried > 1 && tried <= 300, `${tried} times`)
})

test('a probe that is never taken out cleanly is reported once, although it comes back well', async () => {
  const probe = new FakeProbe()
  const run = new Run(probe, new Member(probe, 1, 0))
  const failure = new Error('a counter that could not be cleared')
  const { sitOut } = probe
  probe.sitOut = async () => {
    await sitOut.call(probe)
    throw failure
  }
  const backs = (): number => probe.switches.filter((kind) => kind === 'back').length
  while (backs() < 5) await run.step(100)
  assert.deepEqual(probe.failures, [failure])
})

test('a probe that stays out is not read until it is about to come back, and what it was hit meanwhile is paid for first', async () => {
  const probe = new FakeProbe()
  const run = new Run(probe, new Member(probe, 1, 0))
  while (!probe.out) await run.step(100)
  await run.pass(1)
  const debtMs = run.member.dueMs(run.nowMs, 0)
  const reads = probe.reads
  for (let pass = 0; pass < 10; pass++) await run.pass(debtMs / 20)
  assert.equal(probe.reads, reads)
  probe.hits = (probe.hits ?? 0) + 10_000
  await run.pass(debtMs / 2 + 1)
  assert.equal(probe.out, true)
  assert.ok(Math.abs(run.member.dueMs(run.nowMs, 0) - 9999) < 1)
})

test('the moment for which a probe is armed is not cut short when it is looked at sooner', async () => {
  const probe = new FakeProbe()
  const run = new Run(probe, new Member(probe, 1, 0))
  while (!probe.switches.includes('back')) await run.step(1.2)
  const windowMs = run.member.dueMs(run.nowMs, 0)
  for (const out of [false, true]) {
    probe.hits = (probe.hits ?? 0) + 1.2 * (windowMs / 2)
    await run.pass(windowMs / 2)
    assert.equal(probe.out, out)
  }
})

test('what has to be paid for much longer than switching takes is not armed for as long as switching takes, unless calls are timed', async () => {
  for (const [timesCalls, windowMs] of [
    [false, 10],
    [true, 80],
  ] as const) {
    const probe = new FakeProbe()
    probe.timesCalls = timesCalls
    const member = new Member(probe, 1, 0)
    const run = new Run(probe, member)
    const slowly = (work: () => Promise<void>) => async (): Promise<void> => {
      await work()
      run.nowMs += 80
    }
    probe.sitOut = slowly(probe.sitOut.bind(probe))
    probe.comeBack = slowly(probe.comeBack.bind(probe))
    while (!probe.switches.includes('back')) await run.step(1000)
    assert.equal(member.dueMs(run.nowMs, 0), windowMs)
  }
})

test('a probe that has ended is no longer measured', () => {
  const probe = new FakeProbe()
  const member = new Member(probe, 1, 0)
  probe.hits = null
  assert.equal(member.measure(50, 50, 0), null)
})

test('an account saves a second, and owes what it owes', () => {
  const bucket = new Bucket()
  bucket.pass(1_000_000, 0)
  bucket.pass(0, 1000)
  assert.equal(bucket.debtMs, 0)
  bucket.pass(10, 5010)
  assert.equal(bucket.debtMs, 5000)
  bucket.pass(4000, 0)
  assert.equal(bucket.debtMs, 1000)
})

test('the fraction that was seen leaves out pauses', () => {
  let now = 0
  const clock = new SeenClock(() => now)
  now = 5
  assert.deepEqual([clock.seenMs, clock.seenFraction], [0, 1])
  clock.turn('seen')
  now = 15
  clock.turn('out')
  now = 45
  assert.deepEqual([clock.seenMs, clock.seenFraction], [10, 0.25])
  clock.turn('apart')
  now = 1000
  assert.equal(clock.seenFraction, 0.25)
})

test('the budget that is reached first decides what a hit has to be paid for with', () => {
  assert.equal(msPerHit({ cpuPercent: 10 }, 1000), 0.01)
  assert.equal(msPerHit({ hitsPerSecond: 100 }, 1000), 10)
  assert.equal(msPerHit({ cpuPercent: 10, hitsPerSecond: 1_000_000 }, 1000), 0.01)
})

test('what is no budget is refused, with the name of the option', () => {
  const wrong: [unknown, RegExp][] = [
    [5, /Option budget: /],
    [null, /Option budget: /],
    [{}, /Option budget: /],
    [{ cpu: 5 }, /Option budget\.cpu: there is no such option; there are cpuPercent, hitsPerSecond/],
    [{ cpuPercent: 0 }, /Option budget\.cpuPercent: /],
    [{ cpuPercent: Number.NaN }, /Option budget\.cpuPercent: /],
    [{ hitsPerSecond: '5' }, /Option budget\.hitsPerSecond: /],
    [{ hitsPerSecond: 0.5 }, /Option budget\.hitsPerSecond: /],
  ]
  for (const [value, message] of wrong) {
    assert.throws(
      () => checkBudget(value),
      (error) => error instanceof UprobeError && error.code === 'ERR_UPROBE_BAD_OPTION' && message.test(error.message),
    )
  }
  assert.equal(checkBudget(undefined), null)
  assert.deepEqual(checkBudget({ cpuPercent: 5 }), { cpuPercent: 5, hitsPerSecond: undefined })
})
