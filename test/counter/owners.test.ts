/**
 * Who is named as the holder of a counter: other tools and our own agents, each holding it for real; and who is not.
 *
 * In guests on 5.10 and newest only: it takes long, and the others show as much.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { copyFileSync, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { parseUprobeEvents } from '../../lib/counter/owners.js'
import { type CounterInfo, counters } from '../../lib/index.js'
import { countingProgram, load, MAP_PERCPU_ARRAY, native, uprobePmu } from '../native/kernel.js'
import { attachIn, startAgent } from '../support/agent.js'
import { BpftraceCount } from '../support/bpftrace.js'
import { buildTarget } from '../support/build.js'
import { Cli, failed, jsonOf, succeeded } from '../support/cli.js'
import { HAS_MULTI, REGISTRATIONS } from '../support/features.js'
import { leaseDirectory, madeLeaseDirectory } from '../support/leases.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { type Cleanup, tempDirectory } from '../support/temp.js'
import { addEvent, switchEvent, WITH_TRACEFS } from '../support/tracefs.js'
import { waitFor } from '../support/wait.js'
import { register } from './places.js'

const GCC = needs({ programs: ['gcc'] })
const CONTAINER = needs({ programs: ['gcc', 'unshare', 'chroot'] })
const BPFTRACE = needs({ programs: ['gcc', 'bpftrace'] })
const TRACEFS = needs({ programs: ['gcc', 'unshare', 'mount'] })
const PERF = needs({ programs: ['gcc', 'unshare', 'mount', 'perf'] })

/** The counter of t:gated in a process. */
async function gatedIn(pid: number): Promise<CounterInfo> {
  const found = (await counters(pid, { leaseDir: leaseDirectory() })).filter(({ name }) => name === 'gated')
  const [info, ...others] = found
  assert.ok(info !== undefined && others.length === 0)
  return info
}

/** State and owners of t:gated, these as `PID KIND`. */
async function holding(pid: number): Promise<unknown[]> {
  const { state, value, owners } = await gatedIn(pid)
  return [state, value, ...owners.map((owner) => `${owner.pid} ${owner.kind}`)]
}

function start(t: Cleanup): Promise<Target> {
  return Target.start(t, buildTarget(t, 'usdt'))
}

const KIND = { perf: 'perf-event', multi: 'bpf-link' } as const

for (const registration of REGISTRATIONS) {
  test(`an agent that traces every process that maps the file (${registration})`, GCC, async (t) => {
    const target = await start(t)
    const agent = await startAgent(t)
    assert.equal(await attachIn(agent, 'usdt:t:gated', { path: target.program, registration }), 'attached')
    assert.deepEqual(await holding(target.pid), ['counted', 1, `${agent.pid} ${KIND[registration]}`])
  })

  test(`an agent whose target's file was deleted (${registration})`, GCC, async (t) => {
    const target = await start(t)
    rmSync(target.program)
    const agent = await startAgent(t)
    assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, registration }), 'attached')
    assert.deepEqual(await holding(target.pid), ['counted', 1, `${agent.pid} ${KIND[registration]}`])
  })

  test(`an agent whose target's file is in another root (${registration})`, CONTAINER, async (t) => {
    const root = tempDirectory(t)
    mkdirSync(join(root, 'app'))
    copyFileSync(buildTarget(t, 'usdt', 'static'), join(root, 'app/server'))
    const target = await Target.start(t, 'unshare', { args: ['-m', 'chroot', root, '/app/server'] })
    const agent = await startAgent(t)
    assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, registration }), 'attached')
    assert.deepEqual(await holding(target.pid), ['counted', 1, `${agent.pid} ${KIND[registration]}`])
  })
}

test('two agents are both named, each once, however many sites they hold', GCC, async (t) => {
  const target = await start(t)
  const agents = [await startAgent(t), await startAgent(t)]
  for (const agent of agents) assert.equal(await attachIn(agent, 'usdt:t:shared', { pid: target.pid, registration: 'perf' }), 'attached')
  const shared = (await counters(target.pid, { leaseDir: leaseDirectory() })).find(({ name }) => name === 'shared')
  assert.deepEqual([shared?.value, shared?.armedSites, shared?.state], [3, 3, 'counted'])
  assert.deepEqual(
    shared?.owners.map(({ pid }) => pid).sort((a, b) => a - b),
    agents.map(({ pid }) => pid).sort((a, b) => a - b),
  )
})

test('a site of several that nobody holds is a suspicion, though another one has a holder, which is named', GCC, async (t) => {
  const target = await start(t)
  const [note] = notesOf(target.program, 't:shared')
  assert.ok(note)
  const agent = await startAgent(t)
  const spec = `uprobe:0x${notesOf(target.program, 't:shared')[1]?.fileOffset.toString(16)}`
  await register(t, target, note, 'with its counter')
  assert.equal(await attachIn(agent, spec.replace(':', `:${target.program}:`), { pid: target.pid, registration: 'perf' }), 'attached')
  const shared = (await counters(target.pid, { leaseDir: leaseDirectory() })).find(({ name }) => name === 'shared')
  assert.deepEqual([shared?.value, shared?.armedSites, shared?.state], [1, 2, 'stuck-breakpoint'])
  assert.deepEqual(
    shared?.owners.map(({ pid }) => pid),
    [agent.pid],
  )
})

test('whoever holds the same place of another file is not named', GCC, async (t) => {
  const [target, other] = [await start(t), await start(t)]
  for (const registration of REGISTRATIONS) {
    const agent = await startAgent(t)
    assert.equal(await attachIn(agent, 'usdt:t:gated', { path: other.program, registration }), 'attached')
  }
  const takeBack = await register(t, target, notesOf(target.program, 't:gated')[0] ?? assert.fail(), 'with its counter')
  assert.deepEqual(await holding(target.pid), ['stuck-breakpoint', 1])
  await takeBack()
  assert.deepEqual(await holding(target.pid), ['idle', 0])
})

for (const registration of REGISTRATIONS) {
  test(`a child that was born with the breakpoints of its parent: whoever traces the parent is named (${registration})`, GCC, async (t) => {
    const target = await start(t)
    const agent = await startAgent(t)
    assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, registration }), 'attached')
    const child = await target.askNumber('fork-hold')
    assert.deepEqual(await holding(child), ['counted', 1, `${agent.pid} ${KIND[registration]}`])
    await agent.end()
    assert.deepEqual(await holding(child), ['idle', 0])
  })
}

test('a link for another process of the same program is not named', {
  ...GCC,
  ...(HAS_MULTI ? {} : { skip: 'the kernel has no uprobe_multi link' }),
}, async (t) => {
  const target = await start(t)
  const other = await Target.start(t, target.program)
  const agent = await startAgent(t)
  assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: other.pid, registration: 'multi' }), 'attached')
  assert.deepEqual(await holding(target.pid), ['idle', 0])
  await register(t, target, notesOf(target.program, 't:gated')[0] ?? assert.fail(), 'with its counter')
  assert.deepEqual(await holding(target.pid), ['stuck-breakpoint', 1])
  assert.deepEqual(await holding(other.pid), ['counted', 1, `${agent.pid} bpf-link`])
})

test('an event by a path that means something to its maker only', GCC, async (t) => {
  const target = await start(t)
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const mapFd = native.bpfMapCreate({ type: MAP_PERCPU_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 1, name: 'owners' })
  const progFd = await load(countingProgram(mapFd))
  t.after(() => [mapFd, progFd].forEach(native.closeFd))
  const here = process.cwd()
  t.after(() => process.chdir(here))
  process.chdir(join(target.program, '..'))
  const ways = [`./usdt`, `/proc/self/cwd/usdt`, `/proc/${target.pid}/root${target.program}`, `/proc/${target.pid}/exe`, target.program]
  for (const path of ways) {
    const options = { type: uprobePmu(), path, fileOffset, refCtrOffset: Number(refCtrOffset), retprobe: false, tid: target.pid }
    const perfFd = await native.perfEventOpenUprobe(options)
    await native.perfEventSetBpf(perfFd, progFd)
    assert.deepEqual(await holding(target.pid), ['counted', 1, `${process.pid} perf-event`], path)
    await native.closeFds([perfFd])
  }
})

test('a tracer that has only the BPF link of its event', {
  ...GCC,
  ...(HAS_MULTI ? {} : { skip: 'the kernel does not tell' }),
}, async (t) => {
  const target = await start(t)
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const args = [target.program, String(fileOffset), String(refCtrOffset), String(target.pid)]
  const tracer = await Target.start(t, buildTarget(t, 'linked'), { args })
  assert.deepEqual(await holding(target.pid), ['counted', 1, `${tracer.pid} perf-event`])
  await tracer.end()
  assert.deepEqual(await holding(target.pid), ['idle', 0])
})

for (const scope of ['one process', 'every process'] as const) {
  test(`bpftrace, for ${scope}`, BPFTRACE, async (t) => {
    const target = await start(t)
    const { refCtrOffset } = gatedNote(target.program, 't:gated')
    const raised = (): boolean => counterValue(target.pid, target.program, refCtrOffset) === 1
    const witness = await BpftraceCount.start(
      t,
      `usdt:${target.program}:t:gated`,
      scope === 'one process' ? target.pid : null,
      scope === 'one process' ? raised : () => isArmed(target.pid, target.program, gatedNote(target.program, 't:gated').fileOffset),
    )
    const { state, owners } = await gatedIn(target.pid)
    assert.equal(state, raised() ? 'counted' : 'idle')
    assert.deepEqual(
      owners.map(({ comm }) => comm),
      ['bpftrace'],
    )
    await witness.stop()
    assert.deepEqual(await holding(target.pid), ['idle', 0])
  })
}

/** State and owners of t:gated, as the command line tells them where tracefs is mounted. */
async function lookWithTracefs(t: TestContext, pid: number): Promise<unknown[]> {
  const args = ['counters', String(pid), '--json', '--lease-dir', madeLeaseDirectory()]
  const rows = jsonOf(succeeded(await Cli.start(t, args, { prefix: WITH_TRACEFS }).ended)) as Array<
    Pick<CounterInfo, 'name' | 'state' | 'owners'>
  >
  const info = rows.find(({ name }) => name === 'gated')
  return [info?.state, info?.owners]
}

test('perf counts without a program, and cannot be told from a breakpoint that was left behind', PERF, async (t) => {
  const target = await start(t)
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const event = addEvent(t, target.program, fileOffset, refCtrOffset)
  assert.deepEqual(await holding(target.pid), ['idle', 0])
  const [program = '', ...args] = [...WITH_TRACEFS, 'perf', 'stat', '-e', event.replace('/', ':'), '-p', String(target.pid)]
  const perf = spawn(program, args, { stdio: 'ignore' })
  const ended = new Promise((resolve) => perf.once('close', resolve))
  t.after(async () => {
    perf.kill('SIGKILL')
    await ended
  })
  await waitFor('perf to count', () => isArmed(target.pid, target.program, fileOffset))
  assert.deepEqual(await holding(target.pid), ['stuck-breakpoint', 1])
  // Its event is not switched on: one of that kind is left behind by many a session of perf, and has no breakpoint.
  assert.deepEqual(await lookWithTracefs(t, target.pid), ['stuck-breakpoint', []])
  perf.kill('SIGINT')
  await ended
  assert.deepEqual(await holding(target.pid), ['idle', 0])
})

test('an event of tracefs that is switched on, where tracefs is mounted', TRACEFS, async (t) => {
  const target = await start(t)
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const event = addEvent(t, target.program, fileOffset, refCtrOffset)
  assert.deepEqual(await lookWithTracefs(t, target.pid), ['idle', []])
  switchEvent(event, true)
  assert.deepEqual(await lookWithTracefs(t, target.pid), ['counted', [{ pid: 0, comm: event, kind: 'uprobe-events' }]])
  switchEvent(event, false)
  assert.deepEqual(await lookWithTracefs(t, target.pid), ['idle', []])
})

test('lines of uprobe_events: a path with blanks, a counter, arguments, a return', () => {
  const text = [
    'p:uprobes/gated /tmp/a program:0x00000000000012a4(0x00000000000040b2) arg1=%di',
    'r:group/ret /usr/bin/node:0x1230',
    'p:g/e /a:0x10 path=+0(%si):string other=:0x5',
    'p:kprobes/none do_sys_open',
    '',
  ].join('\n')
  assert.deepEqual(parseUprobeEvents(text), [
    { event: 'uprobes/gated', path: '/tmp/a program', fileOffset: 0x12a4n },
    { event: 'group/ret', path: '/usr/bin/node', fileOffset: 0x1230n },
    { event: 'g/e', path: '/a', fileOffset: 0x10n },
  ])
})

/** Runs `uprobe counters` without some capabilities. */
function withoutRights(t: TestContext, pid: number, ...capabilities: string[]): ReturnType<typeof Cli.start>['ended'] {
  const prefix = ['setpriv', '--bounding-set', capabilities.map((name) => `-${name}`).join(','), '--']
  return Cli.start(t, ['counters', String(pid), '--lease-dir', madeLeaseDirectory()], { prefix }).ended
}

test(
  'without the right to ask, it says so instead of suspecting or of finding nothing',
  needs({ programs: ['gcc', 'setpriv'] }),
  async (t) => {
    const target = await start(t)
    const agent = await startAgent(t)
    assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid }), 'attached')
    failed(await withoutRights(t, target.pid, 'sys_admin'), 1, 'ERR_UPROBE_BPF_PERMISSION')
    failed(await withoutRights(t, target.pid, 'sys_admin', 'checkpoint_restore'), 1, 'ERR_UPROBE_TARGET_DENIED')
    failed(await withoutRights(t, target.pid, 'sys_ptrace'), 1, 'ERR_UPROBE_TARGET_DENIED')
  },
)
