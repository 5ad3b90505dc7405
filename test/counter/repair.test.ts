/**
 * Repairs of each state, made for real. What leaks a uprobe of the kernel on purpose is in leak.test.ts.
 *
 * In guests last (1): the kernel leaks uprobes where a counter is changed under them.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, rmSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import { pino } from 'pino'
import { counters, type RepairEntry, repair } from '../../lib/index.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { counterAddressOf, counterValue, isArmed, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'
import { register } from './places.js'

const GCC = needs({ programs: ['gcc'] })
const STRACE = needs({ programs: ['gcc', 'strace'] })

interface Scene {
  readonly target: Target
  readonly leaseDir: string
  value(): number
  write(value: number): void
  repair(dryRun: boolean): Promise<RepairEntry[]>
}

/** A process, and the counter that three sites share. */
async function scene(t: TestContext): Promise<Scene> {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const refCtrOffset = notesOf(target.program, 't:shared')[0]?.refCtrOffset ?? 0n
  return {
    target,
    leaseDir,
    value: () => counterValue(target.pid, target.program, refCtrOffset),
    write: (value) => writeCounter(target.pid, target.program, refCtrOffset, value),
    repair: (dryRun) => repair({ pid: target.pid, dryRun, leaseDir }),
  }
}

/** Has strace trace a target, which makes it a debugger's. */
async function debug(t: TestContext, { pid }: Target): Promise<ChildProcess> {
  const strace = spawn('strace', ['-qq', '-o', '/dev/null', '-p', String(pid)], { stdio: 'ignore' })
  t.after(() => strace.kill('SIGKILL'))
  await waitFor('strace attached', () => /TracerPid:\t[1-9]/.test(readFileSync(`/proc/${pid}/status`, 'utf8')))
  return strace
}

/** What tools did before the kernel counted: one reads the counter of t:shared, adds 1, writes, and is killed before it takes it back. */
async function addByHand({ pid, program }: Target): Promise<void> {
  const address = counterAddressOf(pid, program, notesOf(program, 't:shared')[0]?.refCtrOffset ?? 0n)
  const script = `
    const fs = require('node:fs')
    const mem = fs.openSync('/proc/${pid}/mem', 'r+')
    const counter = new Uint16Array(1)
    fs.readSync(mem, counter, 0, 2, ${address})
    counter[0]++
    fs.writeSync(mem, counter, 0, 2, ${address})
    console.log('added')
    setInterval(() => {}, 1000)`
  const tool = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(tool.stdout, 'data')
  const ended = once(tool, 'exit')
  tool.kill('SIGKILL')
  await ended
}

function summary(entries: readonly RepairEntry[]): unknown[] {
  return entries.map(({ name, problem, before, after, applied }) => [name, problem, before, after, applied])
}

test('nothing is wrong: no entry', GCC, async (t) => {
  const { target, repair } = await scene(t)
  const probe = await newTracer(t).attach('usdt:t:*', { pid: target.pid })
  assert.deepEqual(await repair(false), [])
  await probe.detach()
  assert.deepEqual(await repair(false), [])
})

test(
  'a count that a killed tool left: the dry run changes nothing, the repair takes it away, and a second finds nothing',
  GCC,
  async (t) => {
    const { target, value, repair } = await scene(t)
    for (let times = 0; times < 3; times++) await addByHand(target)
    assert.deepEqual(summary(await repair(true)), [['shared', 'leaked-count', 3, 0, false]])
    assert.equal(value(), 3)
    assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 3, 0, true]])
    assert.equal(value(), 0)
    assert.deepEqual(await repair(false), [])
  },
)

test('a leak beside a living tracer: exactly what leaked goes, and the tracer goes on', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const probe = await newTracer(t).attach('usdt:t:shared', { pid: target.pid })
  write(value() + 4)
  assert.deepEqual(summary(await repair(true)), [['shared', 'leaked-count', 7, 3, false]])
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 7, 3, true]])
  assert.equal(value(), 3)
  assert.equal(await target.askNumber('shared 2'), 6)
  await detachComplete(probe, 6)
  assert.equal(value(), 0)
})

test('a leak beside one registered site of three: the pins of the others are taken back', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const notes = notesOf(target.program, 't:shared')
  const takeBack = await register(t, target, notes[1] ?? assert.fail(), 'with its counter')
  write(value() + 3)
  assert.equal(value(), 4)
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 4, 1, true]])
  assert.equal(value(), 1)
  await takeBack()
  assert.equal(value(), 0)
  for (const { fileOffset } of notes) assert.equal(isArmed(target.pid, target.program, fileOffset), false)
})

test('a leak whose sites somebody has registered without the counter cannot be pinned, and is left', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const takeBack = await register(t, target, notesOf(target.program, 't:shared')[0] ?? assert.fail(), 'without a counter')
  write(2)
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 2, 2, false]])
  assert.equal(value(), 2)
  await takeBack()
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 2, 0, true]])
})

for (const deleted of [false, true]) {
  const file = deleted ? ', of a file that was deleted,' : ''
  test(
    `a leak of a counter that is claimed in another process${file} cannot be pinned either, and it says who has claimed it`,
    GCC,
    async (t) => {
      const { target, write, repair, leaseDir } = await scene(t)
      const other = await Target.start(t, target.program)
      const probe = await newTracer(t, { leaseDir }).attach('usdt:t:shared', { pid: other.pid, counter: 'msb' })
      write(2)
      if (deleted) rmSync(target.program)
      const entries = await repair(false)
      assert.deepEqual(summary(entries), [['shared', 'leaked-count', 2, 2, false]])
      assert.match(entries[0]?.note ?? '', new RegExp(`known here: .*\\[${process.pid}\\]`))
      await detachComplete(probe, 0)
      assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 2, 0, true]])
    },
  )
}

for (const [before, problem] of [
  [0x8000, 'foreign-claim'],
  [0x8001, 'underflow'],
  [0xffff, 'underflow'],
] as const) {
  test(`0x${before.toString(16)} that nobody accounts for (${problem})`, GCC, async (t) => {
    const { target, write, value, repair } = await scene(t)
    write(before)
    assert.deepEqual(summary(await repair(true)), [['shared', problem, before, 0, false]])
    assert.equal(value(), before)
    assert.deepEqual(summary(await repair(false)), [['shared', problem, before, 0, true]])
    assert.equal(value(), 0)
    await detachComplete(await newTracer(t).attach('usdt:t:shared', { pid: target.pid }), 0)
  })
}

test('a claim under a lease in another directory, of an agent that lives, is left to it', GCC, async (t) => {
  const { target, value, repair } = await scene(t)
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:t:shared', { pid: target.pid, counter: 'msb' })
  for (const dryRun of [true, false]) {
    const entries = await repair(dryRun)
    assert.deepEqual(summary(entries), [['shared', 'foreign-claim', 0x8000, 0x8000, false]])
    assert.match(entries[0]?.note ?? '', new RegExp(`\\[${process.pid}\\]`))
  }
  assert.equal(value(), 0x8000)
  assert.equal(await target.askNumber('shared 2'), 6)
  await detachComplete(probe, 6)
  assert.equal(value(), 0)
})

test('a claim beside a breakpoint whose holder is listed nowhere is left to it', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const [note] = notesOf(target.program, 't:shared')
  assert.ok(note)
  const takeBack = await register(t, target, note, 'without a counter')
  write(0x8000)
  assert.deepEqual(summary(await repair(true)), [['shared', 'foreign-claim', 0x8000, 0, false]])
  assert.deepEqual(summary(await repair(false)), [['shared', 'foreign-claim', 0x8000, 0x8000, false]])
  assert.deepEqual([value(), isArmed(target.pid, target.program, note.fileOffset)], [0x8000, true])
  await takeBack()
  assert.deepEqual(summary(await repair(false)), [['shared', 'foreign-claim', 0x8000, 0, true]])
  assert.equal(value(), 0)
})

test('a negative value under a living tracer: the number of its sites is stored, and its end gives 0', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const probe = await newTracer(t).attach('usdt:t:shared', { pid: target.pid })
  write(0xfff0)
  assert.deepEqual(summary(await repair(false)), [['shared', 'underflow', 0xfff0, 3, true]])
  assert.equal(value(), 3)
  await detachComplete(probe, 0)
  assert.equal(value(), 0)
})

test('a negative value beside a tracer that counts nothing: its breakpoint is left, and not counted', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const notes = notesOf(target.program, 't:shared')
  const takeBack = await register(t, target, notes[0] ?? assert.fail(), 'without a counter')
  const probe = await register(t, target, notes[1] ?? assert.fail(), 'with its counter')
  write(0xffff)
  assert.deepEqual(summary(await repair(false)), [['shared', 'underflow', 0xffff, 1, true]])
  assert.equal(value(), 1)
  await probe()
  assert.equal(value(), 0)
  await takeBack()
})

test('a breakpoint under a counter that somebody has set to 0: what the kernel will take away is there again', GCC, async (t) => {
  const { target, write, value, repair } = await scene(t)
  const [note] = notesOf(target.program, 't:shared')
  assert.ok(note)
  const takeBack = await register(t, target, note, 'with its counter')
  write(0)
  try {
    assert.deepEqual(summary(await repair(false)), [['shared', 'stuck-breakpoint', 0, 1, false]])
    assert.equal(value(), 1)
  } finally {
    // Whatever failed: without its count the breakpoint would stay in.
    write(1)
  }
  await takeBack()
  assert.deepEqual([value(), isArmed(target.pid, target.program, note.fileOffset)], [0, false])
})

test('a breakpoint with a holder that is listed nowhere is left to it', GCC, async (t) => {
  const { target, value, repair } = await scene(t)
  const [note] = notesOf(target.program, 't:shared')
  assert.ok(note)
  const takeBack = await register(t, target, note, 'with its counter')
  assert.deepEqual(summary(await repair(true)), [['shared', 'stuck-breakpoint', 1, 1, false]])
  assert.deepEqual(summary(await repair(false)), [['shared', 'stuck-breakpoint', 1, 1, false]])
  assert.equal(isArmed(target.pid, target.program, note.fileOffset), true)
  await takeBack()
  assert.equal(value(), 0)
})

test('the claim of a killed agent, and what children inherited from it', GCC, async (t) => {
  const { target, leaseDir, value } = await scene(t)
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:shared', { pid: target.pid, counter: 'msb' }), 'attached')
  const child = await target.askNumber('fork-hold')
  await agent.stop()
  const before = leaseFiles(leaseDir)
  const dry = await repair({ leaseDir, dryRun: true })
  assert.deepEqual(
    dry.filter(({ problem }) => problem === 'orphan-claim').map(({ pid, before: b, after, applied }) => [pid, b, after, applied]),
    [
      [target.pid, 0x8000, 0, false],
      [child, 0x8000, 0, false],
    ],
  )
  assert.deepEqual(leaseFiles(leaseDir), before)
  assert.equal(value(), 0x8000)
  assert.deepEqual(
    (await repair({ leaseDir, dryRun: false, pid: target.pid })).map(({ pid, applied }) => [pid, applied]),
    [
      [target.pid, true],
      [child, true],
    ],
  )
  assert.equal(value(), 0)
  assert.deepEqual(leaseFiles(leaseDir), ['locks'])
  assert.equal((await counters(child, { leaseDir })).find(({ name }) => name === 'shared')?.state, 'idle')
})

test('the claim of a killed agent in a process under a debugger is left, with its lease, and said', STRACE, async (t) => {
  const { target, leaseDir, value, repair } = await scene(t)
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:shared', { pid: target.pid, counter: 'msb' }), 'attached')
  await agent.stop()
  const strace = await debug(t, target)
  const leases = leaseFiles(leaseDir)
  for (const dryRun of [true, false]) {
    const entries = await repair(dryRun)
    assert.deepEqual(summary(entries), [['shared', 'orphan-claim', 0x8000, 0x8000, false]])
    assert.match(entries[0]?.note ?? '', new RegExp(`process ${strace.pid} debugs`))
    assert.equal(value(), 0x8000)
    assert.deepEqual(leaseFiles(leaseDir), leases)
  }
  strace.kill('SIGTERM')
  await once(strace, 'close')
  assert.deepEqual(summary(await repair(false)), [['shared', 'orphan-claim', 0x8000, 0, true]])
})

test('a process under a debugger is left alone', STRACE, async (t) => {
  const { target, write, value, repair } = await scene(t)
  write(2)
  const strace = await debug(t, target)
  const [entry] = await repair(false)
  assert.equal(entry?.applied, false)
  assert.match(entry?.note ?? '', new RegExp(`process ${strace.pid} debugs`))
  assert.equal(value(), 2)
  strace.kill('SIGTERM')
  await once(strace, 'close')
  assert.deepEqual(summary(await repair(false)), [['shared', 'leaked-count', 2, 0, true]])
})

test('each change is written to the log, with who asked', GCC, async (t) => {
  const { target, leaseDir, write } = await scene(t)
  const lines: Array<Record<string, unknown>> = []
  const logger = pino({ level: 'warn' }, { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) })
  write(1)
  await repair({ pid: target.pid, leaseDir, logger })
  assert.deepEqual(lines, [])
  await repair({ pid: target.pid, leaseDir, logger, dryRun: false })
  const { audit, target: changed, problem, before, after, applied, uid } = lines[0] ?? assert.fail()
  assert.deepEqual(
    [audit, changed, problem, before, after, applied, uid],
    ['repair', target.pid, 'leaked-count', 1, 0, true, process.getuid?.()],
  )
  assert.equal(lines.length, 1)
})

test('a claim that is cleared is written to the log as every other change', GCC, async (t) => {
  const { target, leaseDir } = await scene(t)
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:shared', { pid: target.pid, counter: 'msb' }), 'attached')
  await agent.stop()
  const lines: Array<Record<string, unknown>> = []
  const logger = pino({ level: 'warn' }, { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) })
  const [entry] = await repair({ pid: target.pid, leaseDir, logger, dryRun: false })
  const audits = lines.filter(({ audit }) => audit === 'repair')
  assert.deepEqual(
    audits.map(({ target: changed, address, problem, before, after, applied, uid }) => [
      changed,
      address,
      problem,
      before,
      after,
      applied,
      uid,
    ]),
    [[target.pid, `0x${entry?.address?.toString(16)}`, 'orphan-claim', 0x8000, 0, true, process.getuid?.()]],
  )
})
