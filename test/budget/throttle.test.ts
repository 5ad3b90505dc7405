/**
 * Budgets of real probes: what the target keeps of its speed, what a user is told, and what else may happen to a probe meanwhile.
 *
 * Not for guests: what is hit as often as it can be needs a processor of its own speed.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'
import { Governor } from '../../lib/budget/governor.js'
import { CounterClaims } from '../../lib/counter/claims.js'
import { type AttachOptions, type Probe, type ProbeStateChange, Tracer } from '../../lib/index.js'
import { Attachment } from '../../lib/register/attachment.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue, isArmed, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { registerForOwnProcess } from '../support/other-tracer.js'
import { Target } from '../support/target.js'
import { assertStats, collect, detachComplete, newTracer, refused } from '../support/tracing.js'
import { turns, waitFor } from '../support/wait.js'
import { PROMISE, SpeedTrial } from './speed-trial.js'

const GCC = needs({ programs: ['gcc'] })
const HOT = 'usdt:t:hot'

function changesOf(probe: Probe): ProbeStateChange['reason'][] {
  const reasons: ProbeStateChange['reason'][] = []
  probe.on('state', ({ reason }) => reasons.push(reason))
  return reasons
}

function assertBalanced(probe: Probe): void {
  const { hits, filtered, delivered, lost, lostRing, lostQueue } = probe.stats()
  assert.equal(hits, filtered + delivered + lost)
  assert.equal(lost, lostRing + lostQueue)
}

/** The time that passes is one that was to be seen, and is not. */
async function assertUnseenTime(probe: Probe): Promise<void> {
  const { seenMs, seenFraction } = probe.stats()
  await waitFor('unseen time to pass', () => probe.stats().seenFraction < seenFraction)
  assert.equal(probe.stats().seenMs, seenMs)
}

/** Waits until a throttled probe has been armed again `times` times: its hits stand still while it is out. */
async function cycles(probe: Probe, times: number): Promise<void> {
  for (let cycle = 0; cycle < times; cycle++) {
    await waitFor('the probe to be out', () => probe.out)
    await waitFor('the probe to be armed again', () => probe.armed)
  }
}

const WAYS: readonly { name: string; command: string; spec: string; options: AttachOptions }[] = [
  { name: 'a function', command: 'call', spec: 'uprobe:f_hot', options: {} },
  { name: 'a function, by a perf event', command: 'call', spec: 'uprobe:f_hot', options: { registration: 'perf' } },
  { name: 'a counted probe', command: 'gated', spec: HOT, options: {} },
  { name: 'a counted probe, with a long string', command: 'gated', spec: HOT, options: { strings: [1], stringLimit: 4096 } },
  { name: 'a claimed probe', command: 'gated', spec: HOT, options: { counter: 'msb' } },
  { name: 'a claimed probe that does not look at its counter', command: 'ungated', spec: 'usdt:t:ungated', options: { counter: 'msb' } },
]

for (const { name, command, spec, options } of WAYS) {
  test(`a target keeps the speed that its budget promises: ${name}`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const tracer = newTracer(t, { leaseDir: leaseDirectory() })
    const trial = new SpeedTrial(target, command)
    await trial.run(async (load, measure) => {
      const budget = load === 'budgeted' ? { budget: { cpuPercent: 100 * PROMISE } } : {}
      const probe = await tracer.attach(spec, { pid: target.pid, ...options, ...budget })
      probe.on('batch', () => undefined)
      await measure()
      if (load === 'budgeted') {
        assert.equal(probe.state, 'throttled')
        assert.ok(probe.stats().seenFraction < 0.9)
      }
      await probe.detach()
      assertBalanced(probe)
    })
    trial.assertKept()
  })
}

for (const counter of ['kernel', 'msb'] as const) {
  test(`a probe that is over its budget says so once, sees a part, tells which, and says when it is over (${counter})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const tracer = newTracer(t, { leaseDir: leaseDirectory() })
    const spec = counter === 'kernel' ? 'uprobe:f_hot' : HOT
    const probe = await tracer.attach(spec, { pid: target.pid, counter, budget: { hitsPerSecond: 2000 } })
    const hits = collect(probe)
    const reasons = changesOf(probe)
    const untilMs: (number | null)[] = []
    probe.on('state', () => untilMs.push(probe.outUntilMs))
    assert.equal(probe.stats().seenFraction, 1)
    const begunMs = Date.now()
    const executed =
      counter === 'kernel' ? await pacedUntil(target, () => cycles(probe, 4)) : await gatedUntil(target, () => cycles(probe, 4))
    const { hits: counted, seenMs, seenFraction } = probe.stats()
    assert.deepEqual(reasons, ['over-budget'])
    assert.equal(probe.state, 'throttled')
    assert.ok(seenFraction > 0 && seenFraction < 1)
    assert.ok(counted < executed, `${counted} of ${executed}`)
    assert.ok(seenMs > 0)
    await waitFor('the probe to keep its budget', () => probe.state === 'attached')
    assert.deepEqual(reasons, ['over-budget', 'within-budget'])
    assert.ok((untilMs[0] ?? 0) > begunMs)
    assert.deepEqual([untilMs[1], probe.outUntilMs], [null, null])
    const before = probe.stats().hits
    assert.equal(await target.askNumber(`${counter === 'kernel' ? 'calls' : 'fires'} 1 10`), 10)
    await probe.detach()
    assert.equal(probe.stats().hits, before + 10)
    assert.equal(hits.length, probe.stats().delivered)
    assertBalanced(probe)
  })
}

async function pacedUntil(target: Target, condition: () => Promise<void>): Promise<number> {
  await target.ask('pace 20000')
  await condition()
  return target.askNumber('stop')
}

async function gatedUntil(target: Target, condition: () => Promise<void>): Promise<number> {
  let over = false
  const done = condition().finally(() => {
    over = true
  })
  let executed = 0
  while (!over) executed += await target.askNumber('gated 20')
  await done
  return executed
}

test('from a part of the time follows how often all was hit', GCC, async (t) => {
  const RATE = 20_000
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const probe = await newTracer(t).attach('uprobe:f_hot', { pid: target.pid, countOnly: true, budget: { hitsPerSecond: 2000 } })
  const start = performance.now()
  await target.ask(`pace ${RATE}`)
  await cycles(probe, 20)
  const { hits, seenMs } = probe.stats()
  const rate = (await target.askNumber('stop')) / (performance.now() - start)
  // The hits come in heaps where the machine is busy, so that a part of the time is not exactly a part of the hits.
  assert.ok(hits / seenMs > rate / 3 && hits / seenMs < rate * 3, `${hits / seenMs} a millisecond, and it was ${rate}`)
})

test('a throttled probe that is claimed stays in the target, switched off by one store', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:hot')
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach(HOT, {
    pid: target.pid,
    counter: 'msb',
    budget: { hitsPerSecond: 1 },
  })
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0x8000)
  await target.ask('gated 20')
  await waitFor('the probe to be out', () => probe.out)
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)
  assert.ok(isArmed(target.pid, target.program, fileOffset))
  await probe.detach()
  assert.equal(isArmed(target.pid, target.program, fileOffset), false)
})

test('a throttled probe that is counted is taken out of the target, its counter too', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:hot')
  const tracer = newTracer(t)
  const probe = await tracer.attach(HOT, { pid: target.pid, budget: { hitsPerSecond: 1 } })
  await target.ask('gated 20')
  await waitFor('the probe to be out', () => probe.out)
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)
  assert.equal(isArmed(target.pid, target.program, fileOffset), false)
  const [held] = await tracer.counters()
  assert.deepEqual([held?.probes.map(({ active }) => active), held?.targets.map(({ value }) => value)], [[false], [0]])
  await probe.detach()
  assertBalanced(probe)
})

test('a user who pauses a throttled probe has it paused, and who resumes it has it back', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const tracer = newTracer(t)
  const options = { pid: target.pid, countOnly: true, budget: { hitsPerSecond: 1000 } }
  const probe = await tracer.attach('uprobe:f_hot', options)
  // Goes on as the first one would.
  const other = await tracer.attach('uprobe:f_hot', options)
  const reasons = changesOf(probe)
  await target.ask('pace 20000')
  for (const when of ['out', 'armed'] as const) {
    await waitFor('the probe to be over its budget', () => probe.state === 'throttled')
    await waitFor(`the probe to be ${when}`, () => probe[when])
    await probe.pause()
    assert.equal(probe.state, 'paused')
    const { hits, seenMs, seenFraction } = probe.stats()
    await cycles(other, 5)
    assert.deepEqual([probe.state, probe.armed, probe.out], ['paused', false, false])
    assert.deepEqual(probe.stats(), { ...probe.stats(), hits, seenMs, seenFraction })
    await probe.resume()
    await waitFor('the probe to be throttled again', () => probe.state === 'throttled')
  }
  await target.ask('stop')
  const expected = ['over-budget', 'pause', 'resume', 'over-budget', 'pause', 'resume', 'over-budget']
  assert.deepEqual(reasons, expected)
  await probe.detach()
  assertBalanced(probe)
})

test('resuming a throttled probe changes nothing, and detaching it while it is out ends it', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const probe = await newTracer(t).attach('uprobe:f_hot', { pid: target.pid, budget: { hitsPerSecond: 1 } })
  const hits = collect(probe)
  const reasons = changesOf(probe)
  assert.equal(await target.askNumber('calls 1 5000'), 5000)
  await waitFor('the probe to be out', () => probe.out)
  await probe.resume()
  assert.equal(probe.out, true)
  await probe.detach()
  assert.deepEqual(reasons, ['over-budget', 'detach'])
  assert.equal(hits.length, probe.stats().delivered)
  assertBalanced(probe)
})

test('whatever comes at once, the last word is kept', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { fileOffset } = gatedNote(target.program, 't:hot')
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  for (const counter of ['kernel', 'msb'] as const) {
    const probe = await tracer.attach(HOT, { pid: target.pid, counter, budget: { hitsPerSecond: 1 } })
    probe.on('batch', () => undefined)
    const over = gatedUntil(target, async () => {
      for (let round = 0; round < 20; round++) {
        await Promise.all([probe.sitOut(), probe.comeBack(), probe.pause(), probe.comeBack(), probe.sitOut()])
        assert.deepEqual([probe.state, probe.armed, probe.out], ['paused', false, false])
        await Promise.all([probe.comeBack(), probe.resume(), probe.sitOut()])
        assert.deepEqual([probe.armed, probe.out], [false, true])
        if (round % 2 === 0) await probe.comeBack()
      }
      await Promise.all([probe.sitOut(), probe.detach(), probe.comeBack()])
    })
    await over
    assert.equal(probe.state, 'detached')
    assert.equal(isArmed(target.pid, target.program, fileOffset), false)
    assertBalanced(probe)
  }
})

test('a site that is refused when a throttled probe comes back: told, paused, and resumed when the reason is gone', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:hot')
  const probe = await newTracer(t).attach(HOT, { pid: target.pid, budget: { hitsPerSecond: 2000 } })
  const reasons = changesOf(probe)
  const errors: Error[] = []
  probe.on('error', (error) => errors.push(error))
  await waitFor('the probe to be out for long enough', async () => {
    await target.ask('gated 20')
    return (probe.outUntilMs ?? 0) > Date.now() + 1000
  })
  const other = await registerForOwnProcess(target.program, fileOffset, 0)
  await waitFor('the refusal', () => probe.state === 'paused')
  assert.equal(reasons.at(-1), 'refused')
  assert.equal(errors.length, 1)
  await assertUnseenTime(probe)
  await refused(probe.resume(), 'ERR_UPROBE_COUNTER_MISMATCH')
  await assertUnseenTime(probe)
  await probe.pause()
  // Now it is the user who wants it so.
  const { seenFraction } = probe.stats()
  await turns(10)
  assert.equal(probe.stats().seenFraction, seenFraction)
  other.close()
  await probe.resume()
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 1)
  await probe.detach()
  assert.equal(errors.length, 1)
})

test(
  'a counter that another tool made negative while a throttled probe was out: paused, and resumed when it is put right',
  GCC,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:hot')
    // Without a budget: nobody else has it come back while the counter is being written, which would leak a uprobe.
    const probe = await newTracer(t).attach(HOT, { pid: target.pid, countOnly: true })
    const reasons = changesOf(probe)
    await probe.sitOut()
    writeCounter(target.pid, target.program, refCtrOffset, 0x8001)
    const { errno } = await refused(probe.comeBack(), 'ERR_UPROBE_COUNTER_NEGATIVE')
    assert.equal(errno, undefined)
    assert.deepEqual([probe.state, probe.out, isArmed(target.pid, target.program, fileOffset)], ['paused', false, false])
    await assertUnseenTime(probe)
    writeCounter(target.pid, target.program, refCtrOffset, 0)
    await probe.resume()
    assert.equal(await target.askNumber('fires 1 10'), 10)
    assert.equal(probe.stats().hits, 10)
    assert.deepEqual(reasons, ['over-budget', 'refused', 'resume'])
  },
)

test('a target that exits while its probe is out ends it, without an error', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const probe = await newTracer(t).attach('uprobe:f_hot', { pid: target.pid, budget: { hitsPerSecond: 1 } })
  const errors: Error[] = []
  probe.on('error', (error) => errors.push(error))
  await target.ask('calls 1 5000')
  await waitFor('the probe to be out', () => probe.out)
  await target.end()
  await waitFor('the end', () => probe.state === 'target-exited')
  assert.deepEqual(errors, [])
  assertBalanced(probe)
})

test('a target that is found dead when its probe comes back is no error, and its end is told', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const probe = await newTracer(t).attach('uprobe:f_hot', { pid: target.pid, budget: { hitsPerSecond: 1 } })
  const errors: Error[] = []
  probe.on('error', (error) => errors.push(error))
  const reasons = changesOf(probe)
  await target.ask('calls 1 5000')
  await waitFor('the probe to be out', () => probe.out)
  target.kill('SIGKILL')
  // Without a turn of the event loop, which would tell the probe.
  while (!/^State:\s+Z/m.test(readFileSync(`/proc/${target.pid}/status`, 'latin1')));
  await probe.comeBack()
  await waitFor('the end', () => probe.state === 'target-exited')
  assert.deepEqual(reasons, ['over-budget', 'exit'])
  assert.deepEqual(errors, [])
})

test('giving way ends a throttled claim', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:hot')
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const probe = await tracer.attach(HOT, { pid: target.pid, counter: 'msb', budget: { hitsPerSecond: 1 } })
  await target.ask('gated 20')
  await waitFor('the probe to be out', () => probe.out)
  assert.equal((await tracer.yield()).length, 1)
  assert.deepEqual([probe.state, probe.out], ['paused', false])
  assert.equal(isArmed(target.pid, target.program, fileOffset), false)
  await assertUnseenTime(probe)
  await probe.resume()
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0x8000)
  await probe.detach()
})

test('time is seen for as long as hits are counted, also while a probe is detached or paused', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  for (const counter of ['kernel', 'msb'] as const) {
    const probe = await tracer.attach(HOT, { pid: target.pid, counter, registration: 'perf' })
    for (const end of ['pause', 'detach'] as const) {
      const ended = probe[end]()
      await turns(1)
      // The kernel takes a tenth of a second to close a registration; a claim has to be read back.
      const { seenMs } = probe.stats()
      await ended
      await turns(1)
      const after = probe.stats().seenMs
      assert.equal(after, seenMs, `${end}, ${counter}`)
      await turns(1)
      assert.equal(probe.stats().seenMs, after)
      if (end === 'pause') await probe.resume()
    }
  }
})

test('a probe that could not be taken out cleanly is out all the same, and comes back', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { refCtrOffset } = gatedNote(target.program, 't:hot')
  const probe = await newTracer(t).attach(HOT, { pid: target.pid, countOnly: true, budget: { hitsPerSecond: 1e9 } })
  const failure = new Error('no descriptor is left')
  const unregister = t.mock.method(Attachment.prototype, 'unregister')
  const failOnce = (): void => unregister.mock.mockImplementationOnce(() => Promise.reject(failure))
  failOnce()
  await assert.rejects(probe.sitOut(), failure)
  assert.deepEqual([probe.state, probe.out, probe.armed], ['throttled', true, false])
  assert.equal(await target.askNumber('fires 1 10'), 10)
  assert.equal(probe.stats().hits, 0)
  await probe.comeBack()
  assert.deepEqual([probe.out, probe.armed], [false, true])
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 1)
  assert.equal(await target.askNumber('fires 1 10'), 10)
  assert.equal(probe.stats().hits, 10)
  failOnce()
  await assert.rejects(probe.pause(), failure)
  assert.equal(probe.state, 'paused')
  await probe.resume()
  await probe.detach()
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)
})

test('what is left out each time that a probe comes back is said once, and that hits may be missing', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach(HOT, {
    pid: target.pid,
    counter: 'msb',
    budget: { hitsPerSecond: 1e9 },
  })
  const missed: boolean[] = []
  probe.on('state', ({ reason, mayHaveMissed }) => {
    if (reason === 'within-budget') missed.push(mayHaveMissed)
  })
  const { set } = CounterClaims.prototype
  const withWarning = t.mock.method(CounterClaims.prototype, 'set', async function (this: CounterClaims, signal?: AbortSignal) {
    return [...(await set.call(this, signal)), 'left out: one process']
  })
  for (let cycle = 0; cycle < 3; cycle++) {
    await probe.sitOut()
    await probe.comeBack()
  }
  await probe.calm()
  assert.deepEqual(probe.warnings, ['left out: one process'])
  withWarning.mock.restore()
  await probe.sitOut()
  await probe.comeBack()
  await probe.calm()
  assert.deepEqual(missed, [true, false])
})

test('a probe that is paused again since it could not be moved: both failures are told', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach(HOT, { pid: target.pid, counter: 'msb' })
  const errors: Error[] = []
  probe.on('error', (error) => errors.push(error))
  await probe.pause()
  const [first, second] = [new Error('cannot be moved'), new Error('cannot be cleared')]
  const { clear } = CounterClaims.prototype
  t.mock.method(Attachment.prototype, 'moveToLivingThread').mock.mockImplementationOnce(() => Promise.reject(first))
  t.mock.method(CounterClaims.prototype, 'clear').mock.mockImplementationOnce(async function (this: CounterClaims) {
    await clear.call(this)
    return second
  })
  await assert.rejects(probe.resume(), first)
  assert.equal(probe.state, 'paused')
  assert.deepEqual(errors, [second])
})

test('a signal that is aborted before the attach: no cost is measured', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const tracer = newTracer(t)
  const attach = t.mock.method(Tracer.prototype, 'attach')
  const reason = new Error('changed my mind')
  // Nobody has measured this kind of capture before.
  const options = { pid: target.pid, strings: [1], stack: true, budget: { cpuPercent: 1 }, signal: AbortSignal.abort(reason) }
  await assert.rejects(tracer.attach('uprobe:f_hot', options), reason)
  assert.equal(attach.mock.callCount(), 1)
})

test('a probe whose budget cannot be kept is not attached', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const { fileOffset } = gatedNote(target.program, 't:hot')
  const tracer = newTracer(t)
  const failure = new Error('no governor')
  t.mock.method(Governor.prototype, 'add').mock.mockImplementationOnce(() => {
    throw failure
  })
  await assert.rejects(tracer.attach(HOT, { pid: target.pid, budget: { hitsPerSecond: 1 } }), failure)
  assert.deepEqual(tracer.probes, [])
  assert.equal(isArmed(target.pid, target.program, fileOffset), false)
})

test('a budget of the tracer takes out the probe that is hit most, and leaves the others alone', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const quietTarget = await Target.start(t, buildTarget(t, 'func'))
  const tracer = newTracer(t, { budget: { hitsPerSecond: 1000 } })
  const hot = await tracer.attach('uprobe:f_hot', { pid: target.pid, countOnly: true })
  const quiet = await tracer.attach('uprobe:f_add', { pid: quietTarget.pid })
  const reasons = changesOf(quiet)
  await target.ask('pace 20000')
  const ADDED = 6
  for (let added = 1; added <= ADDED; added++) {
    await waitFor('the hot probe to be out', () => hot.out)
    await quietTarget.ask('add 1')
    assert.equal(quiet.stats().hits, added)
    await waitFor('the hot probe to be armed again', () => hot.armed)
  }
  await target.ask('stop')
  assert.equal(hot.state, 'throttled')
  assert.deepEqual(reasons, [])
  const hits = collect(quiet)
  await detachComplete(quiet, ADDED)
  assert.equal(hits.length, ADDED)
})

test('aggregations are throttled beside probes, and so are latencies', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const tracer = newTracer(t, { budget: { hitsPerSecond: 1 } })
  const latency = await tracer.aggregate('uprobe:f_hot', { pid: target.pid, histogram: 'latency' })
  const aggregation = await tracer.aggregate('uprobe:f_hot', { pid: target.pid })
  const probe = await tracer.attach('uprobe:f_hot', { pid: target.pid, countOnly: true })
  await target.ask('calls 1 5000')
  await waitFor('the probe to be out', () => probe.out)
  for (const added of [aggregation, latency]) await waitFor('what is added up to be out', () => added.stats().seenFraction < 1)
  await target.ask('calls 1 5000')
  await aggregation.detach()
  await latency.detach()
  const { hits, aggregated, unfinished, unmatched } = latency.stats()
  assert.ok(hits > 0 && hits < 10_000)
  assert.deepEqual([aggregated + unfinished, unmatched], [hits, 0])
  assert.ok(aggregation.stats().hits < 10_000)
  assert.ok(probe.stats().hits < 10_000)
})

test('a budget that is kept changes nothing', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const probe = await newTracer(t).attach('uprobe:f_hot', { pid: target.pid, budget: { cpuPercent: 100_000, hitsPerSecond: 1e9 } })
  const hits = collect(probe)
  const reasons = changesOf(probe)
  assert.equal(await target.askNumber('calls 4 5000'), 20_000)
  await probe.detach()
  assertStats(probe.stats(), { hits: 20_000, delivered: 20_000 })
  assert.equal(hits.length, 20_000)
  assert.deepEqual(reasons, ['detach'])
})
