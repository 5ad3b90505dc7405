/**
 * However a probe ends, nothing of it is left: not in the target, not in this process.
 *
 * In guests on 5.10 only: it takes long, and kernels do not differ here.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { type Probe, UprobeError } from '../../lib/index.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { assertLeavesNothing } from '../support/leftovers.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { registerForOwnProcess } from '../support/other-tracer.js'
import { Target } from '../support/target.js'
import { assertStats, collect, detachComplete, newTracer, refused } from '../support/tracing.js'
import { turns, waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

/** Asserts that no site of the provider is armed and no counter raised. */
function assertUntouched(pid: number, program: string): void {
  for (const { name, fileOffset, refCtrOffset } of notesOf(program)) {
    assert.equal(isArmed(pid, program, fileOffset), false, `${name} is still armed`)
    if (refCtrOffset !== null) assert.equal(counterValue(pid, program, refCtrOffset), 0, `the counter of ${name} is still raised`)
  }
}

for (const registration of REGISTRATIONS) {
  test(`attach, hits, detach and close leave no descriptor, no thread, no breakpoint and no count (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    await assertLeavesNothing(async () => {
      const tracer = newTracer(t)
      const probe = await tracer.attach('usdt:t:*', { pid: target.pid, registration })
      collect(probe)
      await target.ask('gated 10')
      await detachComplete(probe, 10)
      assert.equal(probe.state, 'detached')
      await tracer.close()
    })
    assertUntouched(target.pid, target.program)
  })
}

test('closing a tracer detaches its probes; detach and close can be repeated, also at once', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  await assertLeavesNothing(async () => {
    const tracer = newTracer(t)
    const probes = [
      await tracer.attach('usdt:t:gated', { pid: target.pid }),
      await tracer.attach('usdt:t:plain', { pid: target.pid }),
    ] as const
    await target.ask('gated 3')
    await Promise.all([tracer.close(), probes[0].detach(), tracer.close(), probes[0].detach()])
    await probes[1].detach()
    await tracer.close()
    assert.deepEqual(
      probes.map((probe) => probe.state),
      ['detached', 'detached'],
    )
    assert.equal(probes[0].stats().hits, 3)
    await refused(tracer.attach('usdt:t:gated', { pid: target.pid }), 'ERR_UPROBE_CLOSED')
    await refused(probes[0].pause(), 'ERR_UPROBE_CLOSED')
  })
  assertUntouched(target.pid, target.program)
})

test('leaving a loop over the hits detaches', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  await target.ask('gated 10')
  let seen = 0
  for await (const hit of probe) {
    assert.equal(hit.args[0], 0 - seen)
    if (++seen === 4) break
  }
  assert.equal(probe.state, 'detached')
  assertUntouched(target.pid, target.program)
})

test('a tracer that is killed leaves nothing in the target', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const agent = await startAgent(t)
  assert.equal(await attachIn(agent, 'usdt:t:*', { pid: target.pid }), 'attached')
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 1)
  assert.equal(isArmed(target.pid, target.program, fileOffset), true)
  await target.ask('gated 10')
  agent.kill('SIGKILL')
  assert.deepEqual(await agent.exited, { code: null, signal: 'SIGKILL' })
  // The kernel takes its registrations back on its way out, which may end after the process is reaped.
  await waitFor('the breakpoints to go', () => !isArmed(target.pid, target.program, fileOffset))
  await waitFor('the counters to go down', async () => (await target.ask('counters')) === '0 0 0 0')
  assertUntouched(target.pid, target.program)
  assert.equal(await target.askNumber('gated 1'), 0)
})

test('a tracer that is killed while threads fire leaves nothing but the probe of another tracer, whose hits stay exact', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const agent = await startAgent(t)
  assert.equal(await attachIn(agent, 'usdt:t:*', { pid: target.pid }), 'attached')
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  const hits = collect(probe)
  const firing = target.askNumber('threads 4 20000')
  await waitFor('hits', () => hits.length > 0)
  agent.kill('SIGKILL')
  await agent.exited
  assert.equal(await firing, 80_000)
  const plain = notesOf(target.program, 't:plain')[0]?.fileOffset ?? 0n
  await waitFor('the breakpoints of the killed tracer to go', () => !isArmed(target.pid, target.program, plain))
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 1)
  assert.equal(isArmed(target.pid, target.program, fileOffset), true)
  await detachComplete(probe, 80_000)
  assertUntouched(target.pid, target.program)
})

for (const registration of REGISTRATIONS) {
  test(`a tracer that exits while it detaches leaves nothing in the target (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    for (let round = 0; round < 3; round++) {
      const agent = await startAgent(t)
      assert.equal(await attachIn(agent, 'usdt:t:*', { pid: target.pid, registration }), 'attached')
      agent.tell('exit')
      assert.deepEqual(await agent.exited, { code: 0, signal: null })
      await waitFor('the counters to go down', async () => (await target.ask('counters')) === '0 0 0 0')
      assertUntouched(target.pid, target.program)
    }
  })
}

test('a target that is killed while its threads fire: the counts balance', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t).attach('usdt:t:plain', { pid: target.pid })
  const hits = collect(probe)
  await target.ask('spin 4')
  await waitFor('hits', () => hits.length > 0)
  target.kill('SIGKILL')
  await waitFor('the probe to end', () => probe.state === 'target-exited')
  const { hits: count, delivered, lost } = probe.stats()
  assert.equal(count, delivered + lost)
  assert.equal(hits.length, delivered)
})

test('a target that exits first ends the probe as target-exited, with exact counts', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  await assertLeavesNothing(async () => {
    const target = await Target.start(t, program)
    const tracer = newTracer(t)
    const probe = await tracer.attach('usdt:t:gated', { pid: target.pid })
    const reasons: string[] = []
    probe.on('state', (change) => reasons.push(`${change.state} ${change.reason} ${change.pid}`))
    const hits = collect(probe)
    await target.ask('gated 7')
    target.tell('exit 0')
    await waitFor('the probe to end', () => probe.state === 'target-exited')
    assert.deepEqual(reasons, [`target-exited exit ${target.pid}`])
    assertStats(probe.stats(), { hits: 7, delivered: 7 })
    assert.equal(hits.length, 7)
    await probe.detach()
    assert.equal(probe.state, 'target-exited')
    await target.exited
    await tracer.close()
  })
})

test('a killed target ends an iteration', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  await target.ask('gated 5')
  target.kill('SIGKILL')
  let seen = 0
  for await (const _ of probe) seen++
  assert.equal(seen, 5)
  assert.equal(probe.state, 'target-exited')
})

test('a target that exits at the moment of the detach', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  await assertLeavesNothing(async () => {
    for (let round = 0; round < 10; round++) {
      const target = await Target.start(t, program)
      const tracer = newTracer(t)
      const probe = await tracer.attach('usdt:t:gated', { pid: target.pid })
      const hits = collect(probe)
      await target.ask('gated 5')
      if (round % 2 === 0) target.kill('SIGKILL')
      await turns(round)
      const detached = probe.detach()
      if (round % 2 === 1) target.kill('SIGKILL')
      await detached
      assert.match(probe.state, /^(detached|target-exited)$/)
      assertStats(probe.stats(), { hits: 5, delivered: 5 })
      assert.equal(hits.length, 5)
      await target.exited
      await tracer.close()
    }
  })
})

for (const registration of REGISTRATIONS) {
  test(`an attach that fails at its second site takes the first back (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const second = notesOf(target.program, 't:shared')[1]
    assert.ok(second !== undefined)
    const other = await registerForOwnProcess(target.program, second.fileOffset, 0)
    t.after(() => other.close())
    await assertLeavesNothing(async () => {
      const tracer = newTracer(t)
      const error = await refused(tracer.attach('usdt:t:shared', { pid: target.pid, registration }), 'ERR_UPROBE_COUNTER_MISMATCH')
      assert.equal(error.errno, 22)
      assert.deepEqual(tracer.probes, [])
      assertUntouched(target.pid, target.program)
      await tracer.close()
    })
  })

  test(`a pattern leaves the refused site out, with a warning, and attaches the others (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const other = await registerForOwnProcess(target.program, gatedNote(target.program, 't:gated').fileOffset, 0)
    t.after(() => other.close())
    const probe = await newTracer(t).attach('usdt:t:*', { pid: target.pid, registration })
    assert.equal(probe.warnings.length, 1)
    assert.match(probe.warnings[0] ?? '', /usdt:t:gated/)
    assert.equal(probe.sites.length, 6)
    assert.equal(await target.ask('counters'), '0 1 3 1')
    await target.ask('plain 3')
    await detachComplete(probe, 3)
    assertUntouched(target.pid, target.program)
  })
}

test('a signal that is aborted at any turn of the event loop ends the attach, or the probe, and leaves nothing', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const endings = new Set<string>()
  await assertLeavesNothing(async () => {
    const tracer = newTracer(t)
    for (let delay = 0; delay < 60; delay++) {
      const controller = new AbortController()
      const reason = new Error('enough')
      const work = tracer.attach('usdt:t:*', { pid: target.pid, signal: controller.signal }).then(
        (probe) => probe,
        (error: unknown) => error,
      )
      await turns(delay)
      controller.abort(reason)
      const outcome = await work
      if (outcome === reason) {
        endings.add('refused')
      } else {
        const probe = outcome as Probe
        assert.ok(!(outcome instanceof Error), `${outcome}`)
        await probe.detach()
        assert.equal(probe.state, 'detached')
        endings.add('detached')
      }
      assertUntouched(target.pid, target.program)
      assert.deepEqual(tracer.probes, [])
    }
    await tracer.close()
  })
  assert.ok(endings.has('refused'))
})

test('a signal that is aborted before the attach: nothing is asked of the kernel', GCC, async (t) => {
  const reason = new Error('enough')
  await assert.rejects(newTracer(t).attach('usdt:t:gated', { pid: 1, signal: AbortSignal.abort(reason) }), reason)
})

test('a signal that is aborted after the attach detaches the probe', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const controller = new AbortController()
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, signal: controller.signal })
  await target.ask('gated 2')
  controller.abort()
  await waitFor('the probe to be detached', () => probe.state === 'detached')
  assertStats(probe.stats(), { hits: 2, delivered: 2 })
  assertUntouched(target.pid, target.program)
})

test('a tracer that is closed while an attach is under way ends it', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  for (let delay = 0; delay < 40; delay += 4) {
    const tracer = newTracer(t)
    const work = tracer.attach('usdt:t:*', { pid: target.pid }).then(
      (probe) => probe.state,
      (error: unknown) => (error instanceof UprobeError ? error.code : error),
    )
    await turns(delay)
    await tracer.close()
    const outcome = await work
    assert.ok(outcome === 'ERR_UPROBE_CLOSED' || outcome === 'detached', `${outcome}`)
    assertUntouched(target.pid, target.program)
  }
})
