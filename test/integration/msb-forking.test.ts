/**
 * Claims in a server that forks a process for each request: more come and go than can be looked at, and none of them may keep anybody waiting.
 *
 * Not for guests: on an emulated processor none of those children lives until it is asked whether it has the bit, and then an error says, rightly, that nobody could be asked.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { type Probe, type Tracer, UprobeError } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { counterValue } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { assertStats, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const CLAIMED = 0x8000

interface Forking {
  readonly spec: string
  readonly server: Target
  readonly tracer: Tracer
  readonly probe: Probe
  readonly leaseDir: string
  /** The children that were claimed. */
  readonly arrivals: Array<number | undefined>
  readonly errors: unknown[]
  value(pid: number): number
}

/**
 * A claim for every process of a program that forks when it is told to.
 * @param command - what it is told before
 */
async function forking(t: TestContext, command = 'counter'): Promise<Forking> {
  const program = buildTarget(t, 'churn')
  const server = await Target.start(t, program)
  await server.ask(command)
  const refCtrOffset = notesOf(program, 'c:gated')[0]?.refCtrOffset ?? null
  assert.ok(refCtrOffset)
  const leaseDir = leaseDirectory()
  const tracer = newTracer(t, { leaseDir })
  const spec = `usdt:${program}:c:gated`
  const probe = await tracer.attach(spec, { counter: 'msb' })
  const arrivals: Forking['arrivals'] = []
  probe.on('state', ({ reason, pid }) => {
    if (reason === 'arrival') arrivals.push(pid)
  })
  const errors: unknown[] = []
  probe.on('error', (error) => errors.push(error instanceof UprobeError ? `${error.code}: ${error.message}` : error))
  return { spec, server, tracer, probe, leaseDir, arrivals, errors, value: (pid) => counterValue(pid, program, refCtrOffset) }
}

/** Lets a process fork children that stay. */
async function forked(server: Target, count: number): Promise<number[]> {
  return (await server.ask(`fork ${count}`)).split(' ').map(Number)
}

function childrenOf(pid: number): string[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean)
}

function isOn(lease: string, pid: number): boolean {
  return JSON.parse(readFileSync(lease, 'utf8')).target.pid === pid
}

test('no hit of a child is missed, however short it lives', GCC, async (t) => {
  const { server, probe, errors } = await forking(t)
  await server.ask('churn 8')
  await waitFor('many children', () => probe.stats().hits > 200)
  const fired = Number((await server.ask('stop')).split(' ')[1])
  await probe.detach()
  assertStats(probe.stats(), { hits: fired, delivered: fired })
  assert.deepEqual(errors, [])
})

test('a pause, a resume and the end of the tracer do not wait for the forking to end, and leave nothing behind', GCC, async (t) => {
  const { server, tracer, probe, leaseDir, errors, value } = await forking(t)
  await server.ask('churn 8')
  let hits = 0
  for (let time = 0; time < 3; time++) {
    await waitFor('many children', () => probe.stats().hits > hits + 500)
    await probe.pause()
    assert.equal(value(server.pid), 0)
    hits = probe.stats().hits
    await probe.resume()
    assert.equal(value(server.pid), CLAIMED)
  }
  await tracer.close()
  assert.deepEqual(errors, [])
  assert.equal(value(server.pid), 0)
  assert.deepEqual(leaseFiles(leaseDir), ['locks'])
  // It forks all the same.
  assert.match(await server.ask('stop'), /^fired [1-9]/)
})

test('a child that lives is claimed while others come and go, and its bit is cleared', GCC, async (t) => {
  const { server, probe, leaseDir, arrivals, errors, value } = await forking(t)
  const [child = 0] = await forked(server, 1)
  await server.ask('churn 8')
  await waitFor('the child to be claimed', () => arrivals.includes(child))
  await waitFor('many others', () => probe.stats().hits > 500)
  await probe.pause()
  assert.equal(value(child), 0)
  await probe.resume()
  assert.equal(value(child), CLAIMED)
  await probe.detach()
  assert.deepEqual([value(server.pid), value(child)], [0, 0])
  assert.deepEqual(errors, [])
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
  await server.ask('stop')
})

test('a server that is forking can be claimed, and children that were born before are switched on', GCC, async (t) => {
  const { server, probe, errors, value } = await forking(t, 'churn 40')
  assert.equal(value(server.pid), CLAIMED)
  await waitFor('many children', () => probe.stats().hits > 200)
  await probe.detach()
  assert.equal(value(server.pid), 0)
  assert.deepEqual(errors, [])
  await server.ask('stop')
})

test('a pause waits for no children but the one that is being looked at; they are switched off after it', GCC, async (t) => {
  const { server, probe, arrivals, errors, value } = await forking(t)
  const pausing = new Promise<void>((resolve, reject) => {
    const onState = () => {
      probe.off('state', onState)
      probe.pause().then(resolve, reject)
    }
    probe.on('state', onState)
  })
  const asked = forked(server, 40)
  // None is told of before all are there.
  while (childrenOf(server.pid).length < 40);
  const children = await asked
  await pausing
  assert.ok(arrivals.length <= 2, `${arrivals.length} children were waited for`)
  assert.equal(value(server.pid), 0)
  await waitFor('the children to be switched off', () => children.every((child) => value(child) === 0))
  await probe.resume()
  await waitFor('them to be switched on', () => children.every((child) => value(child) === CLAIMED))
  await probe.detach()
  assert.deepEqual(new Set(children.map(value)), new Set([0]))
  assert.deepEqual(errors, [])
})

for (const [whose, ofOther] of [
  ['its tracer', false],
  ['another tracer', true],
] as const) {
  test(`a probe that is paused takes no child's bit from one of ${whose} that is not`, GCC, async (t) => {
    const { spec, server, tracer, probe, leaseDir, arrivals, errors, value } = await forking(t)
    const other = await (ofOther ? newTracer(t, { leaseDir }) : tracer).attach(spec, { counter: 'msb' })
    const missed: Array<number | undefined> = []
    const others: Array<number | undefined> = []
    other.on('state', ({ pid, mayHaveMissed }) => {
      others.push(pid)
      if (mayHaveMissed) missed.push(pid)
    })
    // What is born just after a probe was switched on is looked at by it at once, and would not be contended for.
    await delay(200)
    const before = await forked(server, 5)
    await probe.pause()
    const after = await forked(server, 5)
    const children = [...before, ...after]
    await waitFor('the paused probe to have looked at the children', () => children.every((child) => arrivals.includes(child)))
    assert.deepEqual(missed, [])
    assert.deepEqual(new Set(children.map(value)), new Set([CLAIMED]))
    // Born just after it is switched on, children are claimed by it at once, and it is off again before the other looks at them.
    await probe.resume()
    const taken = await forked(server, 5)
    await waitFor('it to have claimed them', () => taken.every((child) => arrivals.includes(child)))
    await probe.pause()
    await waitFor('the other to have claimed them', () => taken.every((child) => others.includes(child)))
    assert.deepEqual(missed, [])
    assert.deepEqual(new Set(taken.map(value)), new Set([CLAIMED]))
    await other.detach()
    await waitFor('all to be switched off', () => [...children, ...taken].every((child) => value(child) === 0))
    await probe.detach()
    assert.deepEqual(errors, [])
    assert.deepEqual(
      leaseFiles(leaseDir).filter((name) => name.startsWith('lease-')),
      [],
    )
  })
}

test('a probe that is paused clears what a child has inherited of a claim on its parent alone', GCC, async (t) => {
  const { spec, server, tracer, probe, errors, value } = await forking(t)
  await probe.pause()
  const other = await tracer.attach(spec, { counter: 'msb', pid: server.pid })
  const [child = 0] = await forked(server, 1)
  assert.equal(value(child), CLAIMED)
  await waitFor('its bit to be cleared', () => value(child) === 0)
  assert.equal(value(server.pid), CLAIMED)
  await other.detach()
  await probe.detach()
  assert.deepEqual(errors, [])
})

test('children that are born while a server is being claimed are switched on before younger ones are looked at', GCC, async (t) => {
  const program = buildTarget(t, 'churn')
  const server = await Target.start(t, program)
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const attaching = tracer.attach(`usdt:${program}:c:gated`, { counter: 'msb' })
  const arrivals = new Set<number | undefined>()
  let isOver = false
  const watching = attaching
    .then((probe) => probe.on('state', ({ pid }) => arrivals.add(pid)))
    .finally(() => {
      isOver = true
    })
  const children: number[] = []
  while (!isOver) {
    // Each that is found costs the attach some descriptors, and time in which more are born.
    if (children.length < 60) children.push(...(await forked(server, 1)))
    await delay(5)
  }
  await watching
  const [younger = 0] = await forked(server, 1)
  await waitFor('the younger one to be looked at', () => arrivals.has(younger))
  const refCtrOffset = notesOf(program, 'c:gated')[0]?.refCtrOffset ?? 0n
  assert.deepEqual(new Set(children.map((child) => counterValue(child, program, refCtrOffset))), new Set([CLAIMED]))
  await (await attaching).detach()
})

test('a child that was not looked at yet is switched off with the others', GCC, async (t) => {
  const { server, probe, errors, value } = await forking(t)
  const [child = 0] = await forked(server, 1)
  assert.equal(value(child), CLAIMED)
  await probe.pause()
  await waitFor('its bit to be cleared', () => value(child) === 0)
  const [other = 0] = await forked(server, 1)
  assert.equal(value(other), 0)
  await probe.resume()
  await waitFor('the bit of the other to be set', () => value(other) === CLAIMED)
  await probe.detach()
  assert.deepEqual([value(server.pid), value(child), value(other)], [0, 0, 0])
  assert.deepEqual(errors, [])
})

test('the lease of a child that has ended goes, while others come and go', GCC, async (t) => {
  const { server, probe, leaseDir, arrivals, errors } = await forking(t)
  const [child = 0] = await forked(server, 1)
  await waitFor('the child to be claimed', () => arrivals.includes(child))
  const lease = readdirSync(leaseDir).find((name) => name.startsWith('lease-') && isOn(join(leaseDir, name), child)) ?? ''
  assert.notEqual(lease, '')
  await server.ask('churn 8')
  await waitFor('many others', () => probe.stats().hits > 500)
  process.kill(child, 'SIGKILL')
  await waitFor('its lease to go', () => !readdirSync(leaseDir).some((name) => name.endsWith(lease.replace('lease', ''))))
  await probe.detach()
  assert.deepEqual(errors, [])
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
  await server.ask('stop')
})
