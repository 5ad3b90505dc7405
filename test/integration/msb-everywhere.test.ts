/**
 * Claims of a probe for every process: in those that are there, in their children, and in processes that come later.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import type { Probe } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { counterValue } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const CLAIMED = 0x8000

interface Everywhere {
  readonly probe: Probe
  readonly leaseDir: string
  /** The processes that came later, and whether hits may have been missed in them. */
  readonly arrivals: Array<[number | undefined, boolean]>
}

/** A probe that claims in every process. */
async function everywhere(t: TestContext, spec: string): Promise<Everywhere> {
  const leaseDir = leaseDirectory()
  const probe = await newTracer(t, { leaseDir }).attach(spec, { counter: 'msb' })
  const arrivals: Everywhere['arrivals'] = []
  probe.on('state', ({ reason, pid, mayHaveMissed }) => {
    if (reason === 'arrival') arrivals.push([pid, mayHaveMissed])
  })
  probe.on('error', (error) => {
    throw error
  })
  return { probe, leaseDir, arrivals }
}

test('a probe for every process claims in those that are there, in children and in processes that come later', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const first = await Target.start(t, program)
  const { refCtrOffset } = gatedNote(program, 't:gated')
  const { probe, leaseDir, arrivals } = await everywhere(t, `usdt:${program}:t:gated`)
  assert.equal(await first.askNumber('gated 2'), 2)
  const second = await Target.start(t, program)
  await waitFor('the second process to be claimed', () => arrivals.length === 1)
  assert.equal(await second.askNumber('gated 3'), 3)
  const child = await first.askNumber('fork-hold')
  await waitFor('the child to be claimed', () => arrivals.length === 2)
  assert.deepEqual(arrivals, [
    [second.pid, true],
    [child, false],
  ])
  await probe.pause()
  for (const pid of [first.pid, second.pid, child]) assert.equal(counterValue(pid, program, refCtrOffset), 0)
  const third = await Target.start(t, program)
  await waitFor('the third process to be seen', () => arrivals.length === 3)
  assert.equal(await third.askNumber('gated 1'), 0)
  await probe.resume()
  for (const pid of [first.pid, second.pid, third.pid, child]) assert.equal(counterValue(pid, program, refCtrOffset), CLAIMED)
  assert.equal(await third.askNumber('gated 1'), 1)
  await second.end()
  await detachComplete(probe, 6)
  for (const pid of [first.pid, third.pid, child]) assert.equal(counterValue(pid, program, refCtrOffset), 0)
  process.kill(child, 'SIGKILL')
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
})

test('a process that becomes the program anew is claimed anew', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const target = await Target.start(t, program)
  const { probe, leaseDir, arrivals } = await everywhere(t, `usdt:${program}:t:gated`)
  assert.equal(await target.askNumber('gated 2'), 2)
  assert.equal(await target.ask('exec'), 'ready')
  await waitFor('it to be claimed', () => arrivals.length === 1)
  assert.equal(await target.askNumber('gated 3'), 3)
  assert.deepEqual(arrivals, [[target.pid, true]])
  await detachComplete(probe, 5)
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
})

test('a library is claimed when it is loaded, and again when it is loaded again', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const library = buildTarget(t, 'lib', 'shared')
  const { probe, arrivals } = await everywhere(t, `usdt:${library}:t:own`)
  for (let time = 1; time <= 3; time++) {
    await target.ask(`dlopen ${library}`)
    await waitFor('it to be claimed', () => arrivals.length === time)
    assert.equal(await target.askNumber('lib 2'), 2)
    await target.ask('dlclose')
  }
  await detachComplete(probe, 6)
  assert.deepEqual(
    arrivals,
    arrivals.map(() => [target.pid, true]),
  )
})

test('children of a process that has ended are claimed, and none of their hits is missed', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const target = await Target.start(t, program)
  const { refCtrOffset } = gatedNote(program, 't:gated')
  const { probe, arrivals } = await everywhere(t, `usdt:${program}:t:gated`)
  const child = await target.askNumber('fork-hold')
  // It would end with its parent, which it waits for.
  process.kill(child, 'SIGSTOP')
  try {
    target.kill('SIGKILL')
    await waitFor('its end', () => !existsSync(`/proc/${target.pid}`))
    await waitFor('the child to be claimed', () => arrivals.length === 1)
    assert.deepEqual(arrivals, [[child, false]])
    assert.equal(counterValue(child, program, refCtrOffset), CLAIMED)
    await probe.detach()
    assert.equal(counterValue(child, program, refCtrOffset), 0)
  } finally {
    process.kill(child, 'SIGKILL')
  }
})

test('the end of a child that shares the memory of its parent takes nothing from it', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const target = await Target.start(t, program)
  const { probe, arrivals } = await everywhere(t, `usdt:${program}:t:gated`)
  await target.askNumber('share-hold')
  const forked = await target.askNumber('fork-hold')
  await waitFor('the other child to be claimed', () => arrivals.length === 1)
  assert.equal(await target.ask('share-release'), 'ended')
  assert.equal(await target.askNumber('fork-release 0'), 0)
  const last = await Target.start(t, program)
  await waitFor('the last one to be claimed', () => arrivals.length === 2)
  assert.deepEqual(arrivals, [
    [forked, false],
    [last.pid, true],
  ])
  assert.equal(await target.askNumber('gated 4'), 4)
  await detachComplete(probe, 4)
})

test('processes that end at once leave nothing behind', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const target = await Target.start(t, program)
  const { probe, leaseDir, arrivals } = await everywhere(t, `usdt:${program}:t:gated`)
  for (let time = 0; time < 30; time++) assert.equal(await target.askNumber('fork 1'), 1)
  for (let time = 0; time < 10; time++) {
    const one = await Target.start(t, program)
    await one.end()
  }
  const last = await Target.start(t, program)
  await waitFor('the last one to be claimed', () => arrivals.some(([pid]) => pid === last.pid))
  await probe.detach()
  assert.equal(probe.stats().hits, 30)
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
})

test('a process of many that calls exec with another program has no claim and no lease any more', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const target = await Target.start(t, program)
  const other = buildTarget(t, 'usdt')
  const leaseDir = leaseDirectory()
  const probe = await newTracer(t, { leaseDir }).attach(`usdt:${program}:t:gated`, { counter: 'msb' })
  assert.ok(leaseFiles(leaseDir).includes('lease.json'))
  assert.equal(await target.ask(`exec ${other}`), 'ready')
  await waitFor('the lease to go', () => !leaseFiles(leaseDir).includes('lease.json'))
  assert.equal(await target.ask('counters'), '0 0 0 0')
  // And back again.
  assert.equal(await target.ask(`exec ${program}`), 'ready')
  await waitFor('the claim', async () => (await target.ask('counters')) === '32768 0 0 0')
  await detachComplete(probe, 0)
  assert.equal(await target.ask('counters'), '0 0 0 0')
})

test(
  'a process that calls exec over and over is claimed each time, whatever there is of the new program when it is looked at',
  GCC,
  async (t) => {
    const program = buildTarget(t, 'usdt')
    const target = await Target.start(t, program)
    const { probe } = await everywhere(t, `usdt:${program}:t:gated`)
    // Without the wait for the program to be mapped, an error in one of thirty.
    for (let time = 0; time < 60; time++) {
      assert.equal(await target.ask(`exec ${program}`), 'ready')
      await waitFor('the claim', async () => (await target.ask('counters')) === '32768 0 0 0')
    }
    await detachComplete(probe, 0)
  },
)
