/**
 * What `counters()` says of each state, made for real in a process, and of who holds it.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import { type CounterInfo, counters, repair } from '../../lib/index.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget, type Linkage } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { leaseDirectory } from '../support/leases.js'
import { isArmed, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, type Note, notesOf } from '../support/notes.js'
import { PYTHON } from '../support/python.js'
import { startRestless } from '../support/restless.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer, refused } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'
import { register } from './places.js'

const GCC = needs({ programs: ['gcc'] })

interface Scene {
  readonly target: Target
  readonly leaseDir: string
  /** The counter of one probe. */
  look(name: string): Promise<CounterInfo>
}

async function scene(t: TestContext, source = 'usdt', linkage: Linkage = 'pie'): Promise<Scene> {
  const target = await Target.start(t, buildTarget(t, source, linkage))
  const leaseDir = leaseDirectory()
  const look = async (name: string): Promise<CounterInfo> => {
    const found = (await counters(target.pid, { leaseDir })).filter((info) => info.name === name && info.provider === 't')
    const [only, ...others] = found
    assert.ok(only !== undefined && others.length === 0)
    return only
  }
  return { target, leaseDir, look }
}

/** Value, kernel count, claimed, armed sites, state. */
function row({ value, kernelCount, claimed, armedSites, state }: CounterInfo): unknown[] {
  return [value, kernelCount, claimed, armedSites, state]
}

test('idle counters of a process, and who they are', GCC, async (t) => {
  const { target, look } = await scene(t)
  const info = await look('shared')
  assert.deepEqual(
    { ...info, address: typeof info.address },
    {
      pid: target.pid,
      path: target.program,
      provider: 't',
      name: 'shared',
      address: 'bigint',
      value: 0,
      kernelCount: 0,
      claimed: false,
      armedSites: 0,
      owners: [],
      state: 'idle',
    },
  )
  for (const name of ['gated', 'ungated', 'twin']) assert.equal((await look(name)).state, 'idle')
})

for (const registration of REGISTRATIONS) {
  test(`counted by the kernel for a tracer, which is named (${registration})`, GCC, async (t) => {
    const { target, look } = await scene(t)
    const agent = await startAgent(t)
    assert.equal(await attachIn(agent, 'usdt:t:shared', { pid: target.pid, registration }), 'attached')
    const info = await look('shared')
    assert.deepEqual(row(info), [3, 3, false, 3, 'counted'])
    const kind = registration === 'perf' ? 'perf-event' : 'bpf-link'
    assert.deepEqual(new Set(info.owners.map((owner) => `${owner.pid} ${owner.kind}`)), new Set([`${agent.pid} ${kind}`]))
    assert.deepEqual(row(await look('gated')), [0, 0, false, 0, 'idle'])
  })
}

test('claimed by an agent, which is named; switched off while it is paused; orphaned when it is killed', GCC, async (t) => {
  const { target, leaseDir, look } = await scene(t)
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
  const child = await target.askNumber('fork-hold')
  const info = await look('gated')
  assert.deepEqual(row(info), [0x8000, 0, true, 1, 'claimed'])
  assert.ok(info.owners.some(({ pid, kind }) => pid === agent.pid && kind === 'lease'))
  const born = (await counters(child, { leaseDir })).find(({ name }) => name === 'gated')
  assert.equal(born?.state, 'claimed')
  await agent.stop()
  const orphan = await look('gated')
  assert.deepEqual(row(orphan), [0x8000, 0, true, 0, 'orphan-claim'])
  assert.deepEqual(orphan.owners, [])
  assert.equal((await counters(child, { leaseDir })).find(({ name }) => name === 'gated')?.state, 'orphan-claim')
})

for (const [value, wanted] of [
  [0x8000, [0x8000, 0, true, 0, 'foreign-claim']],
  [0x8001, [0x8001, null, false, 0, 'underflow']],
  [0xffff, [0xffff, null, false, 0, 'underflow']],
  [3, [3, 3, false, 0, 'leaked-count']],
] as const) {
  test(`0x${value.toString(16)} that nobody accounts for: ${wanted[4]}`, GCC, async (t) => {
    const { target, look } = await scene(t)
    writeCounter(target.pid, target.program, gatedNote(target.program, 't:gated').refCtrOffset, value)
    assert.deepEqual(row(await look('gated')), wanted)
  })
}

test('more than the armed sites is a leak, also beside a tracer', GCC, async (t) => {
  const { target, look } = await scene(t)
  await newTracer(t).attach('usdt:t:shared', { pid: target.pid })
  const [note] = notesOf(target.program, 't:shared')
  writeCounter(target.pid, target.program, note?.refCtrOffset ?? 0n, 5)
  assert.deepEqual(row(await look('shared')), [5, 5, false, 3, 'leaked-count'])
  writeCounter(target.pid, target.program, note?.refCtrOffset ?? 0n, 3)
})

test('a breakpoint without a program behind it is a suspicion', GCC, async (t) => {
  const { target, look } = await scene(t)
  const [note] = notesOf(target.program, 't:gated')
  assert.ok(note)
  const takeBack = await register(t, target, note, 'with its counter')
  assert.deepEqual(row(await look('gated')), [1, 1, false, 1, 'stuck-breakpoint'])
  await takeBack()
  assert.deepEqual(row(await look('gated')), [0, 0, false, 0, 'idle'])
})

test(
  'counters that the kernel never finds are unreachable, though they have an address and a value, unless they are claimed',
  GCC,
  async (t) => {
    const { target, leaseDir, look } = await scene(t, 'bad-counter')
    for (const name of ['bss', 'readonly', 'shared', 'odd']) {
      const info = await look(name)
      assert.deepEqual(row(info), [0, 0, false, 0, 'unreachable'], name)
      assert.notEqual(info.address, null)
    }
    assert.equal((await look('good')).state, 'idle')
    const tracer = newTracer(t, { leaseDir })
    const probe = await tracer.attach('usdt:t:bss', { pid: target.pid, counter: 'msb' })
    assert.deepEqual(row(await look('bss')), [0x8000, 0, true, 1, 'claimed'])
    await probe.detach()
    assert.deepEqual(row(await look('bss')), [0, 0, false, 0, 'unreachable'])
  },
)

test('a claim that is paused is not set, its breakpoint is no suspicion, and its agent is named', GCC, async (t) => {
  const { target, leaseDir, look } = await scene(t)
  const probe = await newTracer(t, { leaseDir }).attach('usdt:t:shared', { pid: target.pid, counter: 'msb' })
  await probe.pause()
  const info = await look('shared')
  assert.deepEqual(row(info), [0, 0, false, 3, 'idle'])
  assert.ok(info.owners.some(({ pid, kind }) => pid === process.pid && kind === 'lease'))
  await probe.detach()
  assert.deepEqual((await look('shared')).owners, [])
})

test('a claim of one counter says nothing of another, nor one in another lease directory of this one', GCC, async (t) => {
  const { target, look } = await scene(t)
  const elsewhere = leaseDirectory()
  await newTracer(t, { leaseDir: elsewhere }).attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  assert.equal((await look('gated')).state, 'foreign-claim')
  assert.deepEqual(row(await look('ungated')), [0, 0, false, 0, 'idle'])
  const known = (await counters(target.pid, { leaseDir: elsewhere })).find(({ name }) => name === 'gated')
  assert.equal(known?.state, 'claimed')
})

test('after exec nothing is claimed, though the counter is at the same address', GCC, async (t) => {
  const { target, leaseDir, look } = await scene(t, 'usdt', 'no-pie')
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
  // Killed, so that the lease stays.
  await agent.stop()
  assert.equal((await look('gated')).state, 'orphan-claim')
  assert.equal(await target.ask('exec'), 'ready')
  assert.deepEqual(row(await look('gated')), [0, 0, false, 0, 'idle'])
  writeCounter(target.pid, target.program, gatedNote(target.program, 't:gated').refCtrOffset, 0x8000)
  assert.equal((await look('gated')).state, 'foreign-claim')
})

test('a program that maps its own file: the kernel counts the breakpoint in each mapping, and nothing is leaked', GCC, async (t) => {
  const { target, leaseDir, look } = await scene(t, 'copies')
  assert.equal(await target.ask('map'), 'mapped 0')
  const probe = await newTracer(t).attach('usdt:t:mapped', { pid: target.pid })
  assert.deepEqual(probe.warnings, [])
  assert.deepEqual(row(await look('mapped')), [2, 2, false, 1, 'counted'])
  const { refCtrOffset } = gatedNote(target.program, 't:mapped')
  writeCounter(target.pid, target.program, refCtrOffset, 5)
  assert.equal((await look('mapped')).state, 'leaked-count')
  assert.deepEqual(
    (await repair({ pid: target.pid, leaseDir, dryRun: false })).map(({ before, after, applied }) => [before, after, applied]),
    [[5, 2, true]],
  )
  await detachComplete(probe, 0)
  assert.deepEqual(row(await look('mapped')), [0, 0, false, 0, 'idle'])
})

test('a library that is loaded twice has two counters, of which the kernel finds the first', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'copies'))
  const library = buildTarget(t, 'lib', 'shared')
  assert.equal(await target.ask(`load ${library}`), 'loaded 1')
  assert.equal(await target.ask(`load ${library}`), 'loaded 2')
  const look = async (): Promise<CounterInfo[]> =>
    (await counters(target.pid, { leaseDir: leaseDirectory() })).filter(({ path, name }) => path === library && name === 'own')
  const before = await look()
  assert.deepEqual(before.map(row), [
    [0, 0, false, 0, 'idle'],
    [0, 0, false, 0, 'unreachable'],
  ])
  const [note] = notesOf(library, 't:own')
  assert.ok(note)
  const takeBack = await register(t, target, note, 'with its counter', library)
  assert.deepEqual((await look()).map(row), [
    [2, 2, false, 1, 'stuck-breakpoint'],
    [0, 0, false, 1, 'unreachable'],
  ])
  await takeBack()
  assert.deepEqual(await look(), before)
})

/** Looks at a counter again and again, each time just when a site of it was seen armed, and asserts that it never looks wrong. */
async function lookWhileMoving({ target, look }: Scene, { fileOffset }: Note): Promise<void> {
  for (let i = 0; i < 12; i++) {
    await waitFor('the breakpoint', () => isArmed(target.pid, target.program, fileOffset))
    const { state, value, armedSites } = await look('shared')
    assert.ok(state === 'idle' || state === 'counted', `${state}, value ${value}, ${armedSites} armed`)
  }
}

for (const registration of REGISTRATIONS) {
  test(`a counter on which a tracer comes and goes without pause never looks wrong (${registration})`, GCC, async (t) => {
    const seen = await scene(t)
    const { pid, program: path } = seen.target
    const [note] = notesOf(path, 't:shared')
    assert.ok(note?.refCtrOffset)
    const plan = { registration, firstOffset: note.fileOffset, refCtrOffset: note.refCtrOffset, sites: 1, instructionBytes: 1 }
    await startRestless(t, { path, pid, ...plan })
    await lookWhileMoving(seen, note)
  })
}

test('a tracer that is listed nowhere, coming and going, is in transit and not a suspicion', GCC, async (t) => {
  const seen = await scene(t)
  const [note] = notesOf(seen.target.program, 't:shared')
  assert.ok(note)
  let going = true
  const coming = (async () => {
    while (going) await (await register(t, seen.target, note, 'with its counter'))()
  })()
  await lookWhileMoving(seen, note)
  going = false
  await coming
})

test(
  'a broken file among those that a process maps does not hide the counters of the others',
  needs({ programs: ['gcc'], files: [PYTHON] }),
  async (t) => {
    const broken = buildTarget(t, 'usdt')
    const bytes = readFileSync(broken)
    // The length of the first note's description, before its owner's name.
    bytes.writeUInt32LE(0xffff_fff0, bytes.indexOf('stapsdt\0') - 8)
    writeFileSync(broken, bytes)
    const program =
      'import mmap, sys; file = open(sys.argv[1]); map = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC); ' +
      'print("ready", flush=True); sys.stdin.read()'
    const target = await Target.start(t, PYTHON, { args: ['-I', '-S', '-c', program, broken] })
    const found = await counters(target.pid, { leaseDir: leaseDirectory() })
    assert.ok(found.some(({ provider, name, state }) => provider === 'python' && name === 'audit' && state === 'idle'))
    assert.ok(found.every(({ path }) => path !== broken))
  },
)

test('a process that is not there', async () => {
  await refused(counters(2 ** 22 - 1), 'ERR_UPROBE_TARGET_GONE')
  await refused(counters(0), 'ERR_UPROBE_BAD_OPTION')
})
