/**
 * Claims that cannot be given back whole, or not be taken again whole: what is left is said, and can be found.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import test from 'node:test'
import { setStepHook } from '../../lib/counter/steps.js'
import { type ReleaseEntry, release } from '../../lib/index.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { counterValue, isArmed, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachAfterYield, detachComplete, newTracer, refused } from '../support/tracing.js'

const GCC = needs({ programs: ['gcc'] })
const CLAIMED = 0x8000
/** A high byte that no claim has: it is not written. */
const STRANGE = 0xc000

test('a bit that cannot be cleared makes the detach fail, after all else is done; the next attach finds it', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { pid, program } = target
  const { refCtrOffset, fileOffset } = gatedNote(program, 't:gated')
  const leaseDir = leaseDirectory()
  const tracer = newTracer(t, { leaseDir })
  const probe = await tracer.attach('usdt:t:gated', { pid, counter: 'msb' })
  writeCounter(pid, program, refCtrOffset, STRANGE)
  const error = await refused(probe.detach(), 'ERR_UPROBE_COUNTER_FOREIGN')
  assert.match(error.message, /usdt:t:gated.*could not be cleared.*uprobe repair PID/)
  assert.deepEqual([probe.state, isArmed(pid, program, fileOffset), counterValue(pid, program, refCtrOffset)], ['detached', false, STRANGE])
  assert.deepEqual(leaseFiles(leaseDir), ['left.json', 'locks', 'owner.json', 'owner.sock'])

  writeCounter(pid, program, refCtrOffset, CLAIMED)
  const again = await tracer.attach('usdt:t:gated', { pid, counter: 'msb' })
  assert.equal(await target.askNumber('gated 3'), 3)
  await detachComplete(again, 3)
  assert.equal(counterValue(pid, program, refCtrOffset), 0)
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
})

test('a bit that cannot be cleared makes a pause fail, and the probe is paused all the same', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { refCtrOffset } = gatedNote(target.program, 't:gated')
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  writeCounter(target.pid, target.program, refCtrOffset, STRANGE)
  await refused(probe.pause(), 'ERR_UPROBE_COUNTER_FOREIGN')
  assert.equal(probe.state, 'paused')
  writeCounter(target.pid, target.program, refCtrOffset, CLAIMED)
  assert.equal(await target.askNumber('gated 3'), 3)
  await detachComplete(probe, 0)
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)
})

test(
  'where the children of a claimed process cannot be looked through, the lease stays',
  needs({ programs: ['gcc', 'prlimit'] }),
  async (t) => {
    const program = buildTarget(t, 'usdt')
    const target = await Target.start(t, program)
    const { refCtrOffset } = gatedNote(program, 't:gated')
    const leaseDir = leaseDirectory()
    const agent = await startAgent(t, [], leaseDir)
    assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
    const child = await target.askNumber('fork-hold')
    execFileSync('prlimit', ['--pid', String(agent.pid), '--nofile=3:'])
    await agent.ask('detach')
    assert.deepEqual([counterValue(target.pid, program, refCtrOffset), counterValue(child, program, refCtrOffset)], [0, CLAIMED])
    assert.deepEqual(leaseFiles(leaseDir), ['left.json', 'locks', 'owner.json', 'owner.sock'])

    await detachComplete(await newTracer(t, { leaseDir }).attach('usdt:t:plain', { pid: target.pid }), 0)
    assert.equal(counterValue(child, program, refCtrOffset), 0)
    assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
  },
)

test('a process that cannot be claimed again on resume is left out, and that is said', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const target = await Target.start(t, program)
  const { refCtrOffset } = gatedNote(program, 't:gated')
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach(`usdt:${program}:t:gated`, { counter: 'msb' })
  const changes: Array<[string, boolean]> = []
  probe.on('state', ({ reason, mayHaveMissed }) => changes.push([reason, mayHaveMissed]))
  await probe.pause()
  writeCounter(target.pid, program, refCtrOffset, 1)
  await probe.resume()
  assert.deepEqual(changes, [
    ['pause', false],
    ['resume', true],
  ])
  assert.match(probe.warnings.join('\n'), new RegExp(`left out: .*of process ${target.pid} reads 0x1`))
  assert.equal(counterValue(target.pid, program, refCtrOffset), 1)
  writeCounter(target.pid, program, refCtrOffset, 0)
  await detachComplete(probe, 0)
})

test('whoever asks an agent to give way while it is attaching is answered when it has given way', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  let asked: Promise<ReleaseEntry[]> | undefined
  setStepHook((step) => {
    if (step === 'counter-set') asked ??= release({ leaseDir })
  })
  t.after(() => setStepHook(null))
  const probe = await newTracer(t, { leaseDir }).attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  assert.deepEqual(
    (await asked)?.map(({ pid, name, released }) => [pid, name, released]),
    [[target.pid, 'gated', true]],
  )
  assert.equal(probe.state, 'paused')
  assert.equal(await target.ask('counters'), '0 0 0 0')
  await detachAfterYield(probe, 0)
})

test('an agent that cannot clear a claim has not released it', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { refCtrOffset } = gatedNote(target.program, 't:gated')
  const leaseDir = leaseDirectory()
  const probe = await newTracer(t, { leaseDir }).attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  writeCounter(target.pid, target.program, refCtrOffset, STRANGE)
  assert.deepEqual(
    (await release({ leaseDir })).map(({ name, released }) => [name, released]),
    [['gated', false]],
  )
  writeCounter(target.pid, target.program, refCtrOffset, 0)
  await detachAfterYield(probe, 0)
})
