/**
 * Claims: counters that the package itself switches on and off by their most significant bit.
 */
import assert from 'node:assert/strict'
import { rmSync } from 'node:fs'
import test from 'node:test'
import timers from 'node:timers/promises'
import { Attachment } from '../../lib/register/attachment.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { counterValue, isArmed, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { registerForOwnProcess } from '../support/other-tracer.js'
import { Target } from '../support/target.js'
import { collect, detachAfterYield, detachComplete, newTracer, refused } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const CLAIMED = 0x8000

for (const registration of REGISTRATIONS) {
  test(`a claimed counter reads 0x8000 while attached, and 0 before, while paused, and after (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const leaseDir = leaseDirectory()
    const tracer = newTracer(t, { leaseDir })
    const probe = await tracer.attach('usdt:t:shared', { pid: target.pid, counter: 'msb', registration })
    const hits = collect(probe)
    assert.equal(await target.ask('counters'), '0 0 32768 0')
    assert.deepEqual(leaseFiles(leaseDir), ['lease.json', 'locks', 'owner.json', 'owner.sock'])
    assert.equal(await target.askNumber('shared 5'), 15)
    await probe.pause()
    assert.equal(await target.ask('counters'), '0 0 0 0')
    assert.equal(await target.askNumber('shared 5'), 0)
    assert.deepEqual(leaseFiles(leaseDir), ['lease.json', 'locks', 'owner.json', 'owner.sock'])
    await probe.resume()
    assert.equal(await target.askNumber('shared 2'), 6)
    await detachComplete(probe, 21)
    assert.equal(hits.length, 21)
    assert.equal(await target.ask('counters'), '0 0 0 0')
    for (const { fileOffset } of notesOf(target.program, 't:shared')) assert.equal(isArmed(target.pid, target.program, fileOffset), false)
    await tracer.close()
    assert.deepEqual(leaseFiles(leaseDir), ['locks'])
  })
}

test('an attach that is refused for one of its counters holds none of the others', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const names = ['gated', 'ungated', 'shared', 'twin']
  for (const held of names) {
    const probe = await tracer.attach(`usdt:t:${held}`, { pid: target.pid })
    await refused(tracer.attach('usdt:t:*', { pid: target.pid, counter: 'msb' }), 'ERR_UPROBE_COUNTER_MODE')
    assert.deepEqual(
      (await tracer.counters()).map(({ probes }) => [...new Set(probes.flatMap(({ sites }) => sites.map(({ probe }) => probe)))]),
      [[`usdt:t:${held}`]],
    )
    await probe.detach()
  }
})

test('what a counter should read is that of the probes of its own process', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const targets = [await Target.start(t, program), await Target.start(t, program)]
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const probes = []
  for (const { pid } of targets) probes.push(await tracer.attach('usdt:t:gated', { pid, counter: 'msb' }))
  await probes[1]?.pause()
  const [held] = await tracer.counters()
  assert.deepEqual(
    held?.targets.map(({ pid, value, expected }) => [pid, value, expected]),
    [
      [targets[0]?.pid, CLAIMED, CLAIMED],
      [targets[1]?.pid, 0, 0],
    ],
  )
})

test('setting, clearing, and clearing what was never set are harmless in any order', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  await Promise.all([probe.resume(), probe.resume()])
  assert.equal(await target.askNumber('gated 3'), 3)
  await Promise.all([probe.pause(), probe.pause()])
  await probe.pause()
  assert.equal(await target.askNumber('gated 3'), 0)
  await Promise.all([probe.detach(), probe.detach()])
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.equal(probe.stats().hits, 3)
})

test('the counter is kept while another probe has it, whichever goes first, of one tracer or of two', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const [one, two] = [newTracer(t, { leaseDir }), newTracer(t, { leaseDir })]
  for (const [first, second] of [
    [one, one],
    [one, two],
    [two, one],
  ] as const) {
    const attach = (tracer: typeof one) => tracer.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
    const [a, b] = [await attach(first), await attach(second)]
    assert.equal(await target.askNumber('gated 2'), 2)
    await a.pause()
    assert.equal(await target.ask('counters'), '32768 0 0 0')
    await a.resume()
    await b.detach()
    assert.equal(await target.ask('counters'), '32768 0 0 0')
    await a.pause()
    assert.equal(await target.ask('counters'), '0 0 0 0')
    await a.resume()
    assert.equal(await target.askNumber('gated 1'), 1)
    await a.detach()
    assert.equal(await target.ask('counters'), '0 0 0 0')
    assert.deepEqual([a.stats().hits, b.stats().hits], [3, 2])
  }
})

test('a counter that is held in one mode is refused in the other', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const [one, two] = [newTracer(t, { leaseDir }), newTracer(t, { leaseDir })]
  for (const [held, asked] of [
    ['msb', 'kernel'],
    ['kernel', 'msb'],
  ] as const) {
    const probe = await one.attach('usdt:t:shared', { pid: target.pid, counter: held })
    for (const tracer of [one, two]) {
      await refused(tracer.attach('usdt:t:shared', { pid: target.pid, counter: asked }), 'ERR_UPROBE_COUNTER_MODE')
    }
    assert.equal(await target.ask('counters'), held === 'msb' ? '0 0 32768 0' : '0 0 3 0')
    await detachComplete(probe, 0)
  }
  assert.equal(await target.ask('counters'), '0 0 0 0')
})

test('a counter on which another tracer counts is not claimed, and not written', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const [, second] = notesOf(target.program, 't:shared')
  assert.ok(second?.refCtrOffset)
  const other = await registerForOwnProcess(target.program, second.fileOffset, Number(second.refCtrOffset))
  const leaseDir = leaseDirectory()
  const tracer = newTracer(t, { leaseDir })
  const error = await refused(tracer.attach('usdt:t:shared', { pid: target.pid, counter: 'msb' }), 'ERR_UPROBE_COUNTER_BUSY')
  assert.match(error.message, new RegExp(`0x${second.fileOffset.toString(16)}`))
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
  other.close()
  await detachComplete(await tracer.attach('usdt:t:shared', { pid: target.pid, counter: 'msb' }), 0)
})

for (const deleted of [false, true]) {
  test(`who counts on a counter that cannot be claimed is named${deleted ? ', also where the file is deleted' : ''}`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const agent = await startAgent(t)
    assert.equal(await attachIn(agent, 'usdt:t:shared', { pid: target.pid }), 'attached')
    if (deleted) rmSync(target.program)
    const tracer = newTracer(t, { leaseDir: leaseDirectory() })
    const error = await refused(tracer.attach('usdt:t:shared', { pid: target.pid, counter: 'msb' }), 'ERR_UPROBE_COUNTER_BUSY')
    assert.match(error.message, new RegExp(`held by \\S+\\[${agent.pid}\\]`))
    assert.equal(await target.ask('counters'), '0 0 3 0')
  })
}

for (const value of [1, 0x7fff, 0x8000, 0x8001, 0xffff]) {
  test(`a counter that reads 0x${value.toString(16)} for no known reason is left as it is`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const { refCtrOffset } = gatedNote(target.program, 't:gated')
    writeCounter(target.pid, target.program, refCtrOffset, value)
    const tracer = newTracer(t, { leaseDir: leaseDirectory() })
    await refused(tracer.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'ERR_UPROBE_COUNTER_FOREIGN')
    assert.equal(counterValue(target.pid, target.program, refCtrOffset), value)
    writeCounter(target.pid, target.program, refCtrOffset, 0)
    await detachComplete(await tracer.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' }), 0)
  })
}

test(
  'while a claim is held, paused or not, kernel tracers are refused at all its sites; when it is given up, they are not',
  GCC,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const notes = notesOf(target.program, 't:shared')
    const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:t:shared', { pid: target.pid, counter: 'msb' })
    const tryAll = async (): Promise<string[]> => {
      const outcomes: string[] = []
      for (const { fileOffset, refCtrOffset } of notes) {
        try {
          const other = await registerForOwnProcess(target.program, fileOffset, Number(refCtrOffset))
          other.close()
          outcomes.push('taken')
        } catch (error) {
          outcomes.push(error instanceof Error && 'code' in error ? String(error.code) : String(error))
        }
      }
      return outcomes
    }
    assert.deepEqual(await tryAll(), ['EINVAL', 'EINVAL', 'EINVAL'])
    await probe.pause()
    assert.deepEqual(await tryAll(), ['EINVAL', 'EINVAL', 'EINVAL'])
    await probe.detach()
    assert.deepEqual(await tryAll(), ['taken', 'taken', 'taken'])
  },
)

test('a tracer that gives way lets kernel tracers in, and takes the counter again when they are gone', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const [ours, theirs] = [newTracer(t, { leaseDir }), newTracer(t, { leaseDir })]
  const probe = await ours.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  const changes: string[] = []
  probe.on('state', ({ state, reason }) => changes.push(`${state} ${reason}`))
  assert.deepEqual(await ours.yield(target.pid + 1), [])
  const { pid, program: path } = target
  assert.deepEqual(await ours.yield(pid), [{ pid, path, provider: 't', name: 'gated' }])
  assert.deepEqual(await ours.yield(), [])
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
  const other = await registerForOwnProcess(path, gatedNote(path, 't:gated').fileOffset, Number(gatedNote(path, 't:gated').refCtrOffset))
  await refused(probe.resume(), 'ERR_UPROBE_COUNTER_BUSY')
  assert.equal(probe.state, 'paused')
  other.close()
  await probe.resume()
  assert.equal(await target.askNumber('gated 4'), 4)
  await detachAfterYield(probe, 4)
  assert.deepEqual(changes, ['paused yield', 'attached resume', 'detached detach'])
  await detachComplete(await theirs.attach('usdt:t:gated', { pid }), 0)
})

test('what is attached for longer than anybody waits gives way when it is attached', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const { register } = Attachment.prototype
  let open: () => void = () => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  let held = false
  t.mock.method(Attachment.prototype, 'register', async function (this: Attachment, ...parameters: Parameters<typeof register>) {
    held = true
    await opened
    return register.call(this, ...parameters)
  })
  const attaching = tracer.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  await waitFor('the attach to be under way', () => held)
  t.mock.method(timers, 'setTimeout', async () => undefined)
  assert.deepEqual(await tracer.yield(), [])
  t.mock.restoreAll()
  open()
  const probe = await attaching
  await waitFor('it to give way', () => probe.state === 'paused')
  assert.equal(await target.ask('counters'), '0 0 0 0')
  await detachAfterYield(probe, 0)
})

test('what a tracer gave way to may be another of this process that counts with the kernel, until that is gone', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const [ours, theirs] = [newTracer(t, { leaseDir }), newTracer(t, { leaseDir })]
  const { pid } = target
  const probe = await ours.attach('usdt:t:gated', { pid, counter: 'msb' })
  await refused(theirs.attach('usdt:t:gated', { pid }), 'ERR_UPROBE_COUNTER_MODE')
  await ours.yield()
  assert.deepEqual(await ours.counters(), [])
  const other = await theirs.attach('usdt:t:gated', { pid })
  await refused(probe.resume(), 'ERR_UPROBE_COUNTER_MODE')
  assert.equal(await target.askNumber('gated 3'), 3)
  await detachComplete(other, 3)
  await probe.resume()
  await refused(theirs.attach('usdt:t:gated', { pid }), 'ERR_UPROBE_COUNTER_MODE')
  assert.deepEqual(
    (await ours.counters()).map(({ mode }) => mode),
    ['msb'],
  )
  assert.equal(await target.askNumber('gated 4'), 4)
  await detachAfterYield(probe, 4)
  await detachComplete(await theirs.attach('usdt:t:gated', { pid }), 0)
})

test('a paused probe that goes on being hit, since the program does not check its counter, is taken out', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const [note] = notesOf(target.program, 't:ungated')
  assert.ok(note)
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:t:ungated', { pid: target.pid, counter: 'msb' })
  const changes: string[] = []
  probe.on('state', ({ reason }) => changes.push(reason))
  await target.ask('ungated 3')
  await probe.pause()
  assert.equal(isArmed(target.pid, target.program, note.fileOffset), true)
  // A few hits at first may have been under way; that it goes on says that nobody looks.
  await waitFor('the hits to be noticed', async () => {
    await target.ask('ungated 5')
    return changes.includes('still-hit')
  })
  assert.equal(isArmed(target.pid, target.program, note.fileOffset), false)
  await target.ask('ungated 5')
  await probe.resume()
  assert.equal(isArmed(target.pid, target.program, note.fileOffset), true)
  await target.ask('ungated 2')
  await detachComplete(probe, 5)
  assert.deepEqual(changes, ['pause', 'still-hit', 'resume', 'detach'])
})

test('a child that was forked under a claim loses its bit with it', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { refCtrOffset } = gatedNote(target.program, 't:gated')
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  const child = await target.askNumber('fork-hold')
  assert.equal(counterValue(child, target.program, refCtrOffset), CLAIMED)
  await probe.detach()
  assert.equal(counterValue(child, target.program, refCtrOffset), 0)
  assert.equal(await target.askNumber('fork-release 5'), 0)
})

test('exec and exit end a claim, and its lease with it', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const tracer = newTracer(t, { leaseDir })
  for (const end of ['exec', 'exit 0'] as const) {
    const probe = await tracer.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
    if (end === 'exec') assert.equal(await target.ask(end), 'ready')
    else target.tell(end)
    await waitFor('the end to be noticed', () => probe.state === 'target-exited')
    await probe.detach()
    assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
    if (end === 'exec') assert.equal(await target.ask('counters'), '0 0 0 0')
  }
})

test('a counter that the kernel never finds is named with the mode that works, and is claimed', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'bad-counter'))
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const attach = (name: string, counter: 'kernel' | 'msb') => tracer.attach(`usdt:t:${name}`, { pid: target.pid, counter })
  assert.match((await refused(attach('bss', 'kernel'), 'ERR_UPROBE_COUNTER_UNREACHABLE')).message, /counter: 'msb'/)
  assert.doesNotMatch((await refused(attach('readonly', 'kernel'), 'ERR_UPROBE_COUNTER_UNREACHABLE')).message, /msb/)
  assert.doesNotMatch((await refused(attach('shared', 'kernel'), 'ERR_UPROBE_COUNTER_UNREACHABLE')).message, /msb/)
  assert.match((await refused(attach('readonly', 'msb'), 'ERR_UPROBE_COUNTER_PLACE')).message, /mapped read-only/)
  assert.match((await refused(attach('shared', 'msb'), 'ERR_UPROBE_COUNTER_PLACE')).message, /shared mapping/)
  await refused(attach('odd', 'msb'), 'ERR_UPROBE_COUNTER_PLACE')
  const probe = await attach('bss', 'msb')
  await target.ask('fire')
  const [held] = await tracer.counters()
  assert.equal(held?.refCtrOffset, null)
  assert.deepEqual(
    held?.targets.map(({ value, expected }) => [value, expected]),
    [[CLAIMED, CLAIMED]],
  )
  await probe.pause()
  assert.equal((await tracer.counters())[0]?.targets[0]?.value, 0)
  await detachComplete(probe, 1)
})

test('a lease that cannot be written fails the attach before anything is written to the target', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { fileOffset } = gatedNote(target.program, 't:gated')
  const tracer = newTracer(t, { leaseDir: '/proc/uprobe-leases' })
  await refused(tracer.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'ERR_UPROBE_LEASE')
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.equal(isArmed(target.pid, target.program, fileOffset), false)
  assert.deepEqual(tracer.probes, [])
})

test('the table of a tracer says who shares a counter, and what it should read', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const [one, two] = [newTracer(t), newTracer(t)]
  await one.attach('usdt:t:shared', { pid: target.pid })
  const second = await two.attach('usdt:t:shared', { pid: target.pid })
  const [held, ...more] = await one.counters()
  assert.deepEqual(more, [])
  assert.equal(held?.mode, 'kernel')
  const sites = notesOf(target.program, 't:shared').map(({ fileOffset }) => ({ probe: 'usdt:t:shared', fileOffset }))
  assert.equal(sites.length, 3)
  assert.deepEqual(held?.probes, [
    { active: true, sites },
    { active: true, sites },
  ])
  const values = async (tracer: typeof one) =>
    (await tracer.counters()).flatMap(({ targets }) => targets.map(({ pid, value, expected }) => [pid, value, expected]))
  assert.deepEqual(await values(one), [[target.pid, 3, 3]])
  await second.detach()
  assert.deepEqual(await values(one), [[target.pid, 3, 3]])
  assert.deepEqual(await two.counters(), [])
  await one.close()
  assert.deepEqual(await one.counters(), [])
})
