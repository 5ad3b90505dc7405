/**
 * Recovery of a claim whose process forks all the time.
 *
 * Not for guests: on an emulated processor none of those children lives until it is asked whether it has the bit, and then the lease stays, rightly, since nobody could be asked.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { leaseFiles } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { CLAIMED, onTheirParent, scene } from './orphans.js'

const GCC = needs({ programs: ['gcc'] })

test('a claim goes while the process forks all the time, and a child that lives is cleared', GCC, async (t) => {
  const { target, directory, claim, value, write, orphan, recover } = await scene(t, 'churn', 'c:gated')
  orphan(claim)
  // And of children that were claimed themselves.
  for (let time = 0; time < 300; time++) orphan(onTheirParent(claim))
  write(CLAIMED)
  const child = Number(await target.ask('fork 1'))
  await target.ask('churn 8')
  const recovered = await recover()
  assert.deepEqual(new Set(recovered.flatMap(({ cleared }) => cleared.map(({ pid }) => pid))).has(child), true)
  assert.deepEqual([value(), value(child)], [0, 0])
  assert.deepEqual(leaseFiles(directory.path), ['locks'])
  await target.ask('stop')
})
