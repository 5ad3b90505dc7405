/**
 * What is done about the lease of a dead agent: it names a process, and only if that very process, with that very program, is still there, is anything written.
 *
 * In guests on 5.10 only: it is about leases and processes, and takes long.
 */
import assert from 'node:assert/strict'
import fs, { readFileSync, writeFileSync } from 'node:fs'
import test from 'node:test'
import { formatLease, type LeaseRecord } from '../../lib/counter/lease.js'
import { type LeaseClaim, LeaseOwner } from '../../lib/counter/lease-owner.js'
import { loadNative } from '../../lib/native.js'
import { attachIn, startAgent } from '../support/agent.js'
import { leaseFiles } from '../support/leases.js'
import { counterValue } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { detachComplete, newTracer } from '../support/tracing.js'
import { CLAIMED, outcomes, scene } from './orphans.js'

const GCC = needs({ programs: ['gcc'] })

test('the right process: the bit is cleared and the lease goes; a dry run changes nothing', GCC, async (t) => {
  const { directory, claim, value, write, orphan, recover } = await scene(t)
  write(CLAIMED)
  orphan(claim)
  const files = leaseFiles(directory.path)
  assert.deepEqual(outcomes(await recover({ dryRun: true })), [['cleared', [[CLAIMED, 0]]]])
  assert.deepEqual([value(), leaseFiles(directory.path)], [CLAIMED, files])
  assert.deepEqual(outcomes(await recover()), [['cleared', [[CLAIMED, 0]]]])
  assert.deepEqual([value(), leaseFiles(directory.path)], [0, ['locks']])
  assert.deepEqual(await recover(), [])
})

test('the leases of living agents are not read by whoever looks for dead ones', GCC, async (t) => {
  const { directory, claim, write, orphan, recover } = await scene(t)
  const living = LeaseOwner.create(directory, loadNative())
  living.write(claim)
  const { openSync } = fs
  const read: string[] = []
  t.mock.method(fs, 'openSync', (...args: Parameters<typeof openSync>) => {
    const [name] = /lease-.*$/.exec(String(args[0])) ?? []
    if (name !== undefined) read.push(name)
    return openSync(...args)
  })
  assert.deepEqual(await recover(), [])
  assert.equal(read.length, 0)
  write(CLAIMED)
  orphan(claim)
  read.length = 0
  assert.deepEqual(outcomes(await recover()), [['cleared', [[CLAIMED, 0]]]])
  assert.equal(new Set(read).size, 1)
  assert.ok(read.every((name) => !name.includes(living.id)))
  living.close()
})

test('low bits that a tool has counted by hand over the claim are kept', GCC, async (t) => {
  const { claim, value, write, orphan, recover } = await scene(t)
  write(CLAIMED + 2)
  orphan(claim)
  assert.deepEqual(outcomes(await recover()), [['cleared', [[CLAIMED + 2, 2]]]])
  assert.equal(value(), 2)
})

for (const [what, change] of [
  [
    'a recycled pid',
    ({ target, ...rest }: LeaseClaim) => ({ ...rest, target: { ...target, space: { ...target.space, fingerprint: 'f'.repeat(32) } } }),
  ],
  ['another inode', ({ file, ...rest }: LeaseClaim) => ({ ...rest, file: { ...file, inode: file.inode + 1n } })],
  [
    'another offset in the file',
    ({ counters, ...rest }: LeaseClaim) => ({
      ...rest,
      counters: counters.map((c) => ({ ...c, refCtrOffset: (c.refCtrOffset ?? 0n) + 2n })),
    }),
  ],
  [
    'an address where nothing is mapped',
    ({ counters, ...rest }: LeaseClaim) => ({ ...rest, counters: counters.map((c) => ({ ...c, address: 0x1000n })) }),
  ],
  [
    'an address of the heap or stack',
    ({ counters, ...rest }: LeaseClaim) => ({ ...rest, counters: counters.map((c) => ({ ...c, address: c.address + 0x1000n })) }),
  ],
] as const) {
  test(`a lease that names ${what}: nothing is written, and it goes`, GCC, async (t) => {
    const { directory, claim, value, write, orphan, recover } = await scene(t)
    write(CLAIMED)
    orphan(change(claim))
    assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
    assert.equal(value(), CLAIMED)
    assert.deepEqual(leaseFiles(directory.path), ['locks'])
  })
}

test('a process that has called exec since has another program, in which nothing is written', GCC, async (t) => {
  const { target, directory, claim, value, write, orphan, recover } = await scene(t)
  orphan(claim)
  assert.equal(await target.ask('exec'), 'ready')
  write(CLAIMED)
  assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
  assert.equal(value(), CLAIMED)
  assert.deepEqual(leaseFiles(directory.path), ['locks'])
})

test('a process that is gone, and a boot that is over', GCC, async (t) => {
  const { target, directory, claim, orphan, recover } = await scene(t)
  orphan(claim)
  await target.end()
  assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
  const owner = LeaseOwner.create(directory, loadNative())
  const { name } = owner.write(claim)
  const [found] = directory.list()
  assert.ok(found?.lease)
  const old: LeaseRecord = { ...found.lease, bootId: '00000000-0000-0000-0000-000000000000' }
  writeFileSync(directory.pathOf(name), formatLease(old))
  owner.close()
  assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
  assert.deepEqual(leaseFiles(directory.path), ['locks'])
})

test(
  'a corrupt lease of a dead agent says nothing about anybody: it goes, and nothing is written; that of a living one stays',
  GCC,
  async (t) => {
    const { directory, claim, value, write, orphan, recover } = await scene(t)
    write(CLAIMED)
    orphan(claim)
    const [lease] = directory.list()
    assert.ok(lease)
    writeFileSync(directory.pathOf(lease.name), '{"version":1,"owner":{"pid"')
    const living = LeaseOwner.create(directory, loadNative())
    const mine = living.write(claim)
    writeFileSync(directory.pathOf(mine.name), 'half')
    assert.deepEqual(outcomes(await recover()), [['corrupt', []]])
    assert.equal(value(), CLAIMED)
    assert.deepEqual(leaseFiles(directory.path), ['lease.json', 'locks', 'owner.json'])
    living.close()
  },
)

test('a lease of a newer version of the package is left, with its bit', GCC, async (t) => {
  const { directory, claim, value, write, orphan, recover } = await scene(t)
  write(CLAIMED)
  orphan(claim)
  const [lease] = directory.list()
  assert.ok(lease)
  const path = directory.pathOf(lease.name)
  const text = readFileSync(path, 'utf8')
  writeFileSync(path, text.replace('"version":1', '"version":2'))
  const files = leaseFiles(directory.path)
  assert.deepEqual(outcomes(await recover()), [['unreachable', []]])
  assert.deepEqual([value(), leaseFiles(directory.path)], [CLAIMED, files])
  writeFileSync(path, text)
  assert.deepEqual(outcomes(await recover()), [['cleared', [[CLAIMED, 0]]]])
})

test('two who recover at once clear it once', GCC, async (t) => {
  const { directory, claim, value, write, orphan, recover } = await scene(t)
  write(CLAIMED)
  for (let i = 0; i < 5; i++) orphan(claim)
  const both = (await Promise.all([recover(), recover(), recover()])).flat()
  assert.equal(both.length, 5)
  assert.deepEqual(
    both.flatMap(({ cleared }) => cleared.map(({ before, after }) => [before, after])),
    [[CLAIMED, 0]],
  )
  assert.equal(value(), 0)
  assert.deepEqual(leaseFiles(directory.path), ['locks'])
})

test('children that were forked under the claim are cleared; one with a claim of its own is not', GCC, async (t) => {
  const { target, directory, value } = await scene(t)
  const { refCtrOffset } = gatedNote(target.program, 't:gated')
  const agent = await startAgent(t, [], directory.path)
  assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
  const child = await target.askNumber('fork-hold')
  assert.equal(counterValue(child, target.program, refCtrOffset), CLAIMED)
  await agent.stop()
  const tracer = newTracer(t, { leaseDir: directory.path })
  await detachComplete(await tracer.attach('usdt:t:plain', { pid: target.pid }), 0)
  assert.deepEqual([value(), counterValue(child, target.program, refCtrOffset)], [0, 0])
  const probe = await tracer.attach('usdt:t:gated', { pid: child, counter: 'msb' })
  const again = await startAgent(t, [], directory.path)
  assert.equal(await attachIn(again, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
  await again.stop()
  await detachComplete(await newTracer(t, { leaseDir: directory.path }).attach('usdt:t:plain', { pid: target.pid }), 0)
  assert.deepEqual([value(), counterValue(child, target.program, refCtrOffset)], [0, CLAIMED])
  await detachComplete(probe, 0)
  assert.equal(counterValue(child, target.program, refCtrOffset), 0)
})
