/**
 * The leak that a claim and a count of the kernel make when they meet, made on purpose, and its repair.
 *
 * While the kernel holds a count somebody sets the highest bit; then the kernel cannot take its count back and leaves the breakpoint in, with nobody to hold it. The uprobe stays in the
 * kernel until it is booted anew: so this runs in guests only (`npm run test:guest -- --tests=leak`).
 *
 * In guests last (2): the uprobes that it leaks stay.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import { counters, type Probe, type RepairEntry, repair } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { HAS_MULTI } from '../support/features.js'
import { kernelLogSince } from '../support/kernel-log.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue, isArmed, writeBreakpoint, writeCounter } from '../support/memory.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer, refused } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'
import { register } from './places.js'

const GUEST = {
  skip: process.env.UPROBE_TEST_GUEST === '1' ? false : 'it leaks uprobes on purpose, so it runs in a guest only (npm run test:guest)',
}

/** Until 6.10 a uprobe was deleted with its last consumer (`__uprobe_unregister`, kernel/events/uprobes.c); later ones count references, and the leaked one stays. */
const FORGETS = !HAS_MULTI

interface Scene {
  readonly target: Target
  readonly leaseDir: string
  value(): number
  write(value: number): void
  armed(): boolean
  state(): Promise<string | undefined>
  repair(dryRun: boolean): Promise<unknown[]>
}

/** A process with the leak: 0x8001, and a breakpoint that nobody holds. */
async function leaked(t: TestContext): Promise<Scene> {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { program, pid } = target
  const leaseDir = leaseDirectory()
  const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
  const [note] = notesOf(program, 't:gated')
  assert.ok(note)
  const value = (): number => counterValue(pid, program, refCtrOffset)
  const write = (bits: number): void => writeCounter(pid, program, refCtrOffset, bits)
  const takeBack = await register(t, target, note, 'with its counter')
  assert.equal(value(), 1)
  write(0x8001)
  await takeBack()
  return {
    target,
    leaseDir,
    value,
    write,
    armed: () => isArmed(pid, program, fileOffset),
    state: async () => (await counters(pid, { leaseDir })).find(({ name }) => name === 'gated')?.state,
    repair: async (dryRun) =>
      (await repair({ pid, dryRun, leaseDir })).map(({ name, problem, before, after, applied }: RepairEntry) => [
        name,
        problem,
        before,
        after,
        applied,
      ]),
  }
}

/** A process with a probe of the package, and what leaks. */
async function traced(t: TestContext): Promise<{
  readonly target: Target
  readonly probe: Probe
  value(): number
  write(value: number): void
  armed(): boolean
  /** Returns a function that gives what the kernel says to have leaked since. */
  leaks(): () => string[]
  repair(): Promise<unknown>
}> {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { program, pid } = target
  const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
  const probe = await newTracer(t).attach('usdt:t:gated', { pid, registration: 'perf' })
  // The youngest: a leader that has exited shows no memory.
  const thread = (): number => Number(readdirSync(`/proc/${pid}/task`).at(-1))
  return {
    target,
    probe,
    value: () => counterValue(thread(), program, refCtrOffset),
    write: (value) => writeCounter(thread(), program, refCtrOffset, value),
    armed: () => isArmed(thread(), program, fileOffset),
    leaks: () => {
      const log = kernelLogSince('a probe under a negative counter')
      return () => log().filter((line) => /leaking uprobe|decrement failed/.test(line))
    },
    repair: () => repair({ pid, dryRun: false, leaseDir: leaseDirectory() }),
  }
}

test('a claim over a count leaves both behind; the repair takes out both, and counting works again', GUEST, async (t) => {
  const { target, value, armed, state, repair, leaseDir } = await leaked(t)
  assert.deepEqual([value(), armed(), await state()], [0x8001, true, 'underflow'])
  // Every hit goes on trapping.
  assert.equal(await target.askNumber('gated 3'), 3)
  await refused(newTracer(t).attach('usdt:t:gated', { pid: target.pid }), 'ERR_UPROBE_COUNTER_NEGATIVE')
  assert.deepEqual(await repair(true), [['gated', 'underflow', 0x8001, 0, false]])
  assert.deepEqual([value(), armed()], [0x8001, true])
  assert.deepEqual(await repair(false), [['gated', 'underflow', 0x8001, 0, true]])
  assert.deepEqual([value(), armed(), await state()], [0, false, 'idle'])
  assert.deepEqual(await repair(false), [])
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  assert.equal(value(), 1)
  assert.equal(await target.askNumber('gated 5'), 5)
  await detachComplete(probe, 5)
  assert.deepEqual([value(), armed()], [0, false])
  // What newer kernels remember of the site until they are booted anew: it can only be registered with its counter. Older ones (6.1) have forgotten it with the repair.
  const tracer = newTracer(t, { leaseDir })
  const claim = tracer.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  if (FORGETS) await detachComplete(await claim, 0)
  else await refused(claim, 'ERR_UPROBE_COUNTER_BUSY')
})

test('with the bit cleared by hand a breakpoint of nobody is left, and its count: registering and closing takes both', GUEST, async (t) => {
  const { value, write, armed, state, repair } = await leaked(t)
  write(1)
  assert.deepEqual([value(), armed(), await state()], [1, true, 'stuck-breakpoint'])
  assert.equal((await repair(true)).length, 1)
  assert.deepEqual([value(), armed()], [1, true])
  const [entry] = await repair(false)
  assert.deepEqual((entry as unknown[]).slice(0, 3), ['gated', 'stuck-breakpoint', 1])
  assert.deepEqual([value(), armed(), await state()], [0, false, 'idle'])
})

test('with 0 written over it the kernel could not take the breakpoint out a second time: its count is put back first', GUEST, async (t) => {
  const { value, write, armed, state, repair } = await leaked(t)
  write(0)
  assert.deepEqual([value(), armed(), await state()], [0, true, 'stuck-breakpoint'])
  assert.deepEqual(await repair(false), [['gated', 'stuck-breakpoint', 0, 0, true]])
  assert.deepEqual([value(), armed(), await state()], [0, false, 'idle'])
})

test('a tracer that holds the site is left its breakpoint, and its end takes it out', GUEST, async (t) => {
  const { target, value, write, armed, repair } = await leaked(t)
  write(1)
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  assert.deepEqual(await repair(false), [])
  assert.equal(value(), 1)
  await detachComplete(probe, 0)
  assert.deepEqual([value(), armed()], [0, false])
})

test('a breakpoint that no uprobe made, under a negative counter: neither an attach nor the repair leaks one', GUEST, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { program, pid } = target
  const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
  // From now on the kernel looks into this process whenever a uprobe of the file goes.
  await detachComplete(await newTracer(t).attach('usdt:t:gated', { pid }), 0)
  writeBreakpoint(pid, program, fileOffset)
  writeCounter(pid, program, refCtrOffset, 0x8001)
  const log = kernelLogSince('a breakpoint by hand')
  // Here the kernel would accept a registration, and leak it when it goes.
  await refused(newTracer(t).attach('usdt:t:gated', { pid }), 'ERR_UPROBE_COUNTER_NEGATIVE')
  const entries = await repair({ pid, dryRun: false, leaseDir: leaseDirectory() })
  assert.deepEqual(
    entries.map(({ problem, before, after, applied }) => [problem, before, after, applied]),
    [['underflow', 0x8001, 0, true]],
  )
  assert.deepEqual([counterValue(pid, program, refCtrOffset), isArmed(pid, program, fileOffset)], [0, false])
  assert.deepEqual(
    log().filter((line) => /leaking uprobe|decrement failed/.test(line)),
    [],
  )
})

for (const [way, negative, off, on] of [
  ['resuming', 0x8001, (probe: Probe) => probe.pause(), (probe: Probe) => probe.resume()],
  ['resuming', 0x8000, (probe: Probe) => probe.pause(), (probe: Probe) => probe.resume()],
  ['coming back to a budget', 0x8001, (probe: Probe) => probe.sitOut(), (probe: Probe) => probe.comeBack()],
] as const) {
  test(
    `a counter that was made negative (0x${negative.toString(16)}) under a probe: it leaks once when the probe is taken out, and ${way} is refused, where it would leak again`,
    GUEST,
    async (t) => {
      const { probe, value, write, armed, leaks, repair } = await traced(t)
      write(negative)
      await off(probe)
      assert.deepEqual([value(), armed()], [negative, true])
      const since = leaks()
      for (let attempt = 0; attempt < 2; attempt++) {
        await refused(attempt === 0 ? on(probe) : probe.resume(), 'ERR_UPROBE_COUNTER_NEGATIVE')
        assert.deepEqual([probe.state, value(), armed()], ['paused', negative, true])
      }
      assert.deepEqual(since(), [])
      // Exactly 0x8000 may be the claim of somebody whose leases are elsewhere, and is left by a repair.
      if (negative === 0x8000) write(1)
      await repair()
      assert.deepEqual([value(), armed()], [0, false])
      await probe.resume()
      assert.equal(value(), 1)
      await probe.detach()
      assert.deepEqual([value(), armed(), since()], [0, false, []])
    },
  )
}

test(
  'a counter that was made negative under a probe whose leader thread exits: the probe is moved, and nothing leaks once the counter is put right',
  GUEST,
  async (t) => {
    const { target, probe, value, write, armed, leaks } = await traced(t)
    const since = leaks()
    const reasons: unknown[] = []
    probe.on('state', ({ reason }) => reasons.push(reason))
    write(0x8001)
    assert.equal(await target.ask('leader-exit'), 'leader gone')
    await waitFor('the exit of the leader to be noticed', () => reasons.length > 0)
    assert.deepEqual([reasons, value(), armed()], [['leader-exit'], 0x8001, true])
    assert.equal(await target.askNumber('gated 3'), 3)
    write(1)
    await detachComplete(probe, 3)
    assert.deepEqual([value(), armed(), since()], [0, false, []])
  },
)
