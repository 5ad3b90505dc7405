/**
 * Which processes a probe is in: one, several, all of a file; and what fork, exec and new processes do to it.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import test from 'node:test'
import type { ProbeStateChange } from '../../lib/index.js'
import { isKernelThread } from '../../lib/target/process.js'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { assertStats, collect, detachComplete, newTracer, refused } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

test('a probe for one process leaves another process of the same file alone', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [traced, other] = [await Target.start(t, program), await Target.start(t, program)]
  const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: traced.pid })
  assert.equal(counterValue(other.pid, program, refCtrOffset), 0)
  assert.equal(isArmed(other.pid, program, fileOffset), false)
  assert.equal(await other.askNumber('gated 5'), 0)
  assert.equal(await traced.askNumber('gated 5'), 5)
  await other.ask('plain 5')
  await detachComplete(probe, 5)
})

test('a probe for several processes is in those and in no other', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [first, second, other] = [await Target.start(t, program), await Target.start(t, program), await Target.start(t, program)]
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: [first.pid, second.pid] })
  const hits = collect(probe)
  assert.equal(await first.askNumber('gated 2'), 2)
  assert.equal(await second.askNumber('gated 3'), 3)
  assert.equal(await other.askNumber('gated 4'), 0)
  await detachComplete(probe, 5)
  assert.deepEqual(
    hits.map((hit) => hit.pid),
    [first.pid, first.pid, second.pid, second.pid, second.pid],
  )
})

/**
 * The oldest of the kernel's threads: kthreadd, the parent of the others, which never exits, as workers do. There is none
 * to be seen from a pid namespace of one's own.
 */
const kernelThread = readdirSync('/proc')
  .map(Number)
  .filter((pid) => pid > 0)
  .sort((one, other) => one - other)
  .find(isKernelThread)

test(
  'a thread of the kernel is refused: a probe in it would never be hit',
  kernelThread === undefined ? { skip: 'no thread of the kernel is visible' } : GCC,
  async (t) => {
    const program = buildTarget(t, 'usdt')
    const running = await Target.start(t, program)
    const tracer = newTracer(t)
    for (const spec of ['usdt:t:gated', `usdt:${program}:t:gated`]) {
      const error = await refused(tracer.attach(spec, { pid: [running.pid, kernelThread ?? 0] }), 'ERR_UPROBE_TARGET_GONE')
      assert.equal(error.pid, kernelThread)
      assert.match(error.message, new RegExp(`^Process ${kernelThread} is a thread of the kernel`))
    }
    const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
    assert.equal(isArmed(running.pid, program, fileOffset), false)
    assert.equal(counterValue(running.pid, program, refCtrOffset), 0)
  },
)

for (const registration of REGISTRATIONS) {
  test(`a probe for a file is in every process that maps it, now or later (${registration})`, GCC, async (t) => {
    const program = buildTarget(t, 'usdt')
    const { refCtrOffset } = gatedNote(program, 't:gated')
    const now = await Target.start(t, program)
    const probe = await newTracer(t).attach(`usdt:${program}:t:gated`, { registration })
    const hits = collect(probe)
    assert.deepEqual(
      probe.sites.flatMap((site) => site.targets.map(({ pid, state, counter }) => [pid, state, counter])),
      [[now.pid, 'armed', 1]],
    )
    const later = await Target.start(t, program)
    assert.equal(counterValue(later.pid, program, refCtrOffset), 1)
    assert.equal(await now.askNumber('gated 2'), 2)
    assert.equal(await later.askNumber('gated 3'), 3)
    assert.equal(await now.askNumber('fork 4'), 4)
    await detachComplete(probe, 9)
    assert.equal(hits.filter((hit) => hit.pid === now.pid).length, 2)
    assert.equal(hits.filter((hit) => hit.pid === later.pid).length, 3)
    assert.equal(counterValue(now.pid, program, refCtrOffset), 0)
    assert.equal(counterValue(later.pid, program, refCtrOffset), 0)
  })
}

test('a probe for a file that no process runs yet sees the first one', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const probe = await newTracer(t).attach('usdt:t:gated', { path: program, strings: [2] })
  const hits = collect(probe)
  assert.deepEqual(
    probe.sites.map((site) => site.targets),
    [[]],
  )
  const target = await Target.start(t, program)
  assert.equal(await target.askNumber('gated 2'), 2)
  await detachComplete(probe, 2)
  assert.deepEqual(
    hits.map((hit) => hit.args[2]),
    ['hit 0', 'hit 1'],
  )
})

for (const registration of REGISTRATIONS) {
  test(`a child that the target forks delivers no hits, and nothing stays in it after detach (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
    const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, registration })
    // fork copies the page of the counter and that of the breakpoint. What the child executes there is nobody's hit.
    await target.ask('fork 5')
    const child = await target.askNumber('fork-hold')
    assert.equal(await target.askNumber('gated 2'), 2)
    await detachComplete(probe, 2)
    assert.equal(counterValue(child, target.program, refCtrOffset), 0)
    assert.equal(isArmed(child, target.program, fileOffset), false)
    assert.equal(await target.askNumber('fork-release 5'), 0)
  })
}

test('a child that is forked while a probe for the file is in keeps its counter right after detach', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const probe = await newTracer(t).attach(`usdt:${target.program}:t:gated`)
  const child = await target.askNumber('fork-hold')
  assert.equal(counterValue(child, target.program, refCtrOffset), 1)
  assert.equal(isArmed(child, target.program, fileOffset), true)
  await detachComplete(probe, 0)
  assert.equal(counterValue(child, target.program, refCtrOffset), 0)
  assert.equal(isArmed(child, target.program, fileOffset), false)
  assert.equal(await target.askNumber('fork-release 5'), 0)
})

test("exec ends the process's part of the probe, and the new program is not armed", GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [staying, leaving] = [await Target.start(t, program), await Target.start(t, program)]
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: [staying.pid, leaving.pid] })
  const changes: ProbeStateChange[] = []
  probe.on('state', (change) => changes.push(change))
  await leaving.ask('gated 2')
  assert.equal(await leaving.ask('exec'), 'ready')
  await waitFor('the exec to be noticed', () => changes.length > 0)
  assert.deepEqual(changes, [{ state: 'attached', reason: 'exec', pid: leaving.pid, mayHaveMissed: false }])
  assert.equal(counterValue(leaving.pid, program, gatedNote(program, 't:gated').refCtrOffset), 0)
  assert.equal(await leaving.askNumber('gated 5'), 0)
  assert.equal(await staying.askNumber('gated 3'), 3)
  await detachComplete(probe, 5)
})

for (const registration of REGISTRATIONS) {
  for (const command of ['exec', 'exec-thread'] as const) {
    test(`${command} in the only process ends the probe as target-exited (${registration})`, GCC, async (t) => {
      const target = await Target.start(t, buildTarget(t, 'usdt'))
      const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, registration })
      const changes: ProbeStateChange[] = []
      probe.on('state', (change) => changes.push(change))
      await target.ask('gated 2')
      assert.equal(await target.ask(command), 'ready')
      await waitFor('the probe to end', () => probe.state === 'target-exited')
      assert.deepEqual(changes.at(-1), { state: 'target-exited', reason: 'exec', pid: target.pid, mayHaveMissed: false })
      assert.equal(await target.askNumber('gated 5'), 0)
      assertStats(probe.stats(), { hits: 2, delivered: 2 })
    })
  }
}

test('exec after the leader thread has exited', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  assert.equal(await target.ask('leader-exit'), 'leader gone')
  assert.equal(await target.ask('exec'), 'ready')
  await waitFor('the probe to end', () => probe.state === 'target-exited')
  assert.equal(counterValue(target.pid, target.program, gatedNote(target.program, 't:gated').refCtrOffset), 0)
})

test('a process that has exited is refused as gone', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  await target.stop()
  await refused(newTracer(t).attach('usdt:t:gated', { pid: target.pid }), 'ERR_UPROBE_TARGET_GONE')
  await refused(newTracer(t).attach('usdt:t:gated', { pid: 4_194_304 }), 'ERR_UPROBE_TARGET_GONE')
})
