/**
 * What `counters()` says of each state, made for real in a process, and of who holds it.
 */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import { type CounterInfo, counters } from '../../lib/index.js'
import { loadNative } from '../../lib/native.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { HAS_MULTI } from '../support/features.js'
import { leaseDirectory } from '../support/leases.js'
import { writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { newTracer, refused } from '../support/tracing.js'
import { register } from './places.js'

const GCC = needs({ programs: ['gcc'] })

interface Scene {
  readonly target: Target
  readonly leaseDir: string
  /** The counter of one probe. */
  look(name: string): Promise<CounterInfo>
}

async function scene(t: TestContext, source = 'usdt'): Promise<Scene> {
  const target = await Target.start(t, buildTarget(t, source))
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

for (const registration of HAS_MULTI ? (['perf', 'multi'] as const) : (['perf'] as const)) {
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

test('counters that the kernel never finds', GCC, async (t) => {
  const { look } = await scene(t, 'bad-counter')
  assert.deepEqual(row(await look('bss')), [0, 0, false, 0, 'unreachable'])
  assert.equal((await look('readonly')).state, 'unreachable')
  assert.equal((await look('good')).state, 'idle')
})

test('a counter on which a tracer comes and goes without pause is never called leaked', GCC, async (t) => {
  const { target, look } = await scene(t)
  const notes = notesOf(target.program, 't:shared')
  let going = true
  const coming = (async () => {
    const native = loadNative()
    while (going) {
      const takeBack = await register(t, target, notes[0] ?? assert.fail(), 'with its counter')
      await takeBack()
    }
    return native
  })()
  const states = new Set<string>()
  for (let i = 0; i < 30; i++) states.add((await look('shared')).state)
  going = false
  await coming
  for (const state of states) assert.ok(['idle', 'counted', 'stuck-breakpoint'].includes(state), state)
})

test('a process that is not there', async () => {
  await refused(counters(2 ** 22 - 1), 'ERR_UPROBE_TARGET_GONE')
  await refused(counters(0), 'ERR_UPROBE_BAD_OPTION')
})
