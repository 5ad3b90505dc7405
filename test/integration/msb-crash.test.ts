/**
 * An agent that is killed at any step of taking or giving back a claim: whatever it leaves, the next tracer finds it and clears it.
 *
 * In guests on 5.10 only: its many agents take long, and other kernels have the same ways to register.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { STEPS } from '../../lib/counter/steps.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'

const GCC = needs({ programs: ['gcc'] })

/** The counter of t:shared while an agent that was killed at a step has left it. */
const LEFT: ReadonlySet<string> = new Set(['counter-stored', 'counter-set', 'breakpoints-in', 'counter-about-to-be-cleared'])

for (const step of STEPS) {
  test(`killed at ${step}: the next tracer finds what is left, and counts with the kernel`, GCC, async (t) => {
    const program = buildTarget(t, 'usdt')
    const target = await Target.start(t, program)
    const leaseDir = leaseDirectory()
    const agent = await startAgent(t, [], leaseDir)
    assert.equal(await agent.ask(`die ${step}`), 'armed')
    const whenAttaching = STEPS.indexOf(step) <= STEPS.indexOf('breakpoints-in')
    const work = attachIn(agent, 'usdt:t:shared', { pid: target.pid, counter: 'msb' })
    if (!whenAttaching) {
      assert.equal(await work, 'attached')
      agent.tell('detach')
    }
    if (whenAttaching)
      await assert.rejects(
        work.then((answer) => assert.equal(answer, 'nothing, since it was killed')),
        /ended without an answer/,
      )
    assert.equal((await agent.exited).signal, 'SIGKILL')

    assert.equal(await target.ask('counters'), LEFT.has(step) ? '0 0 32768 0' : '0 0 0 0')
    for (const { fileOffset } of notesOf(program, 't:shared')) assert.equal(isArmed(target.pid, program, fileOffset), false)
    const probe = await newTracer(t, { leaseDir }).attach('usdt:t:shared', { pid: target.pid })
    assert.equal(await target.ask('counters'), '0 0 3 0')
    assert.equal(await target.askNumber('shared 2'), 6)
    await detachComplete(probe, 6)
    assert.equal(await target.ask('counters'), '0 0 0 0')
    assert.deepEqual(leaseFiles(leaseDir), ['locks'])
  })
}

test('killed under a claim that children inherited: the bit goes in each of them', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const target = await Target.start(t, program)
  const leaseDir = leaseDirectory()
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
  await target.askNumber('fork-hold')
  await agent.stop()
  const probe = await newTracer(t, { leaseDir }).attach('usdt:t:plain', { pid: target.pid })
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.equal(await target.askNumber('fork-release 3'), 0)
  await detachComplete(probe, 0)
})

test('a paused claim of a dead agent, and one that another agent shares', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const [dying, living] = [await startAgent(t, [], leaseDir), newTracer(t, { leaseDir })]
  assert.equal(await attachIn(dying, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
  const probe = await living.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  await dying.stop()
  // Whoever looks for orphans must leave the bit of the living one.
  await detachComplete(await newTracer(t, { leaseDir }).attach('usdt:t:plain', { pid: target.pid }), 0)
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  assert.deepEqual(leaseFiles(leaseDir), ['lease.json', 'locks', 'owner.json', 'owner.sock'])
  assert.equal(await target.askNumber('gated 2'), 2)
  await detachComplete(probe, 2)
  assert.equal(await target.ask('counters'), '0 0 0 0')
})
