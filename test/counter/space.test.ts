/**
 * How agents agree on which memory is meant: through forks and exec.
 */
import assert from 'node:assert/strict'
import { readFileSync, readlinkSync } from 'node:fs'
import test from 'node:test'
import { machineTicks, ticksSinceBoot } from '../../lib/counter/boot-clock.js'
import { readSpace, sameSpace } from '../../lib/counter/space.js'
import { loadNative } from '../../lib/native.js'
import { TargetProcess } from '../../lib/target/process.js'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { identityOf } from './orphans.js'

const GCC = needs({ programs: ['gcc'] })

test(
  'a fork has the fingerprint of its parent and a number of its own; exec keeps the number and changes the fingerprint',
  GCC,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const [parent, again] = [identityOf(target.pid).space, identityOf(target.pid).space]
    assert.equal(sameSpace(parent, again), true)
    assert.match(parent.fingerprint, /^[0-9a-f]{32}$/)
    assert.deepEqual([parent.pid, parent.pidNamespace], [target.pid, /\d+/.exec(readlinkSync('/proc/self/ns/pid'))?.[0]])
    const child = identityOf(await target.askNumber('fork-hold')).space
    assert.equal(child.fingerprint, parent.fingerprint)
    assert.equal(sameSpace(child, parent), false)
    await target.askNumber('fork-release 0')

    assert.equal(await target.ask('exec'), 'ready')
    const after = identityOf(target.pid).space
    assert.equal(after.pid, parent.pid)
    assert.notEqual(after.fingerprint, parent.fingerprint)
  },
)

test('the random bytes of a process are in none of its names', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const opened = TargetProcess.open(loadNative(), target.pid)
  t.after(() => opened.close())
  const auxv = readFileSync(`/proc/${target.pid}/auxv`)
  let random: Buffer | null = null
  for (let at = 0; at < auxv.length; at += 16)
    if (auxv.readBigUInt64LE(at) === 25n) random = opened.readMemory(auxv.readBigUInt64LE(at + 8), 16)
  assert.ok(random)
  const { fingerprint } = identityOf(target.pid).space
  assert.notEqual(fingerprint, random.toString('hex'))
  assert.equal(fingerprint.includes(random.toString('hex').slice(0, 8)), false)
})

test('a process that has called exec or ended has no space any more, for whoever opened it before', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const opened = TargetProcess.open(loadNative(), target.pid)
  t.after(() => opened.close())
  assert.ok(readSpace(opened))
  assert.equal(await target.ask('exec'), 'ready')
  assert.equal(readSpace(opened), null)
  await target.end()
  assert.equal(readSpace(opened), null)
})

test('what is born after a moment has a start time that is not smaller', GCC, async (t) => {
  const before = ticksSinceBoot()
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const after = ticksSinceBoot()
  const born = machineTicks(identityOf(target.pid).startTime)
  assert.ok(born >= before && born <= after, `${before} <= ${born} <= ${after}`)
})
