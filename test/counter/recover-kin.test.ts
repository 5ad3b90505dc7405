/**
 * Whose bit it is: of a child that was forked under a dead agent's claim, of a process that has the very memory of another, of one that only looks like a child.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { ticksSinceBoot } from '../../lib/counter/boot-clock.js'
import { counterKey } from '../../lib/counter/counter-locks.js'
import { type LeaseClaim, LeaseOwner } from '../../lib/counter/lease-owner.js'
import { loadNative } from '../../lib/native.js'
import { leaseFiles } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { waitFor } from '../support/wait.js'
import { CLAIMED, identityOf, onTheirParent, outcomes, scene } from './orphans.js'

const GCC = needs({ programs: ['gcc'] })

/** A claim as a living agent has it: a lease, and presence at the counter. The function that is returned gives it back. */
function living(directory: Parameters<typeof LeaseOwner.create>[0], claim: LeaseClaim): LeaseOwner {
  const owner = LeaseOwner.create(directory, loadNative())
  owner.write(claim)
  for (const { address } of claim.counters) owner.locks.enter(counterKey(claim.target.space, address))
  return owner
}

/** Lets a tick of the kernel's clock of start times go by. */
async function nextTick(): Promise<void> {
  const now = ticksSinceBoot()
  await waitFor('two ticks', () => ticksSinceBoot() > now + 1n)
}

test('children are found when the claimed process is gone', GCC, async (t) => {
  const { target, directory, claim, value, write, orphan, recover } = await scene(t, 'kin', 'k:gated')
  orphan(onTheirParent(claim))
  write(CLAIMED)
  const children = [await target.askNumber('fork'), await target.askNumber('fork')]
  write(0)
  const recovered = await recover()
  assert.deepEqual(new Set(recovered.flatMap(({ cleared }) => cleared.map(({ pid }) => pid))), new Set(children))
  assert.deepEqual(
    children.map((child) => value(child)),
    [0, 0],
  )
  assert.deepEqual(leaseFiles(directory.path), ['locks'])
})

test(
  'a bit that children hand on to children of theirs while they are looked through is found, or the lease stays until it is',
  GCC,
  async (t) => {
    const { target, directory, claim, value, write, orphan, recover } = await scene(t, 'kin', 'k:gated')
    orphan(claim)
    write(CLAIMED)
    await target.ask('relay 100')
    await recover()
    const last = await target.askNumber('relay-end')
    // They have come to rest.
    await recover()
    assert.deepEqual([value(), value(last)], [0, 0])
    assert.deepEqual(leaseFiles(directory.path), ['locks'])
  },
)

test('a process that is older than the lease has inherited nothing, and is left as it is', GCC, async (t) => {
  const { target, claim, value, write, orphan, recover } = await scene(t, 'kin', 'k:gated')
  const older = await target.askNumber('fork')
  write(CLAIMED, older)
  await nextTick()
  orphan(claim)
  write(CLAIMED)
  const younger = await target.askNumber('fork')
  assert.deepEqual(outcomes(await recover()), [
    [
      'cleared',
      [
        [CLAIMED, 0],
        [CLAIMED, 0],
      ],
    ],
  ])
  assert.deepEqual([value(), value(younger), value(older)], [0, 0, CLAIMED])
})

test('a child whose counter reads anything but 0x8000 is left as it is', GCC, async (t) => {
  const { target, claim, value, write, orphan, recover } = await scene(t, 'kin', 'k:gated')
  orphan(claim)
  write(CLAIMED)
  const child = await target.askNumber('fork')
  for (const odd of [CLAIMED + 1, 0x8100, 0xffff, 1]) {
    write(odd, child)
    orphan(claim)
    await recover()
    assert.equal(value(child), odd)
  }
})

test('a process that has the memory of another is no child: the bit of a living agent stays, whoever died', GCC, async (t) => {
  const { target, directory, claim, value, write, orphan, recover } = await scene(t, 'kin', 'k:gated')
  // The parent of all is gone, and its agent too; a living agent has claimed one of its children.
  orphan(onTheirParent(claim))
  const owner = living(directory, claim)
  write(CLAIMED)
  const same = await target.askNumber('share')
  assert.notDeepEqual(identityOf(same).space, claim.target.space)
  assert.equal(identityOf(same).space.fingerprint, claim.target.space.fingerprint)
  assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
  assert.equal(value(), CLAIMED)

  owner.close()
  assert.deepEqual(outcomes(await recover()), [['cleared', [[CLAIMED, 0]]]])
  assert.deepEqual([value(), value(same)], [0, 0])
})

test('a second agent at the counter keeps the bit while the lease of the dead one goes', GCC, async (t) => {
  const { directory, claim, value, write, orphan, recover } = await scene(t, 'kin', 'k:gated')
  const owner = living(directory, claim)
  write(CLAIMED)
  orphan(claim)
  assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
  assert.equal(value(), CLAIMED)
  assert.deepEqual(leaseFiles(directory.path), ['lease.json', 'locks', 'owner.json'])
  assert.deepEqual(await recover(), [])
  owner.close()
  assert.deepEqual(outcomes(await recover()), [['cleared', [[CLAIMED, 0]]]])
})

test('only one process is asked for: the claim on it, or what it inherited, and nothing else', GCC, async (t) => {
  const { target, directory, claim, value, write, orphan, recover } = await scene(t, 'kin', 'k:gated')
  orphan(claim)
  write(CLAIMED)
  const [one, two] = [await target.askNumber('fork'), await target.askNumber('fork')]
  assert.deepEqual(outcomes(await recover({ pid: one, dryRun: true })), [['cleared', [[CLAIMED, 0]]]])
  assert.deepEqual(outcomes(await recover({ pid: one })), [['cleared', [[CLAIMED, 0]]]])
  assert.deepEqual([value(), value(one), value(two)], [CLAIMED, 0, CLAIMED])
  assert.equal(leaseFiles(directory.path).filter((name) => name === 'lease.json').length, 1)
  assert.deepEqual(await recover({ pid: process.pid }), [])
  await recover({ pid: target.pid })
  assert.deepEqual([value(), value(two)], [0, 0])
  assert.deepEqual(leaseFiles(directory.path), ['locks'])
})

test('an agent that holds a step is waited for', GCC, async (t) => {
  const { directory, claim, value, write, orphan, recover } = await scene(t, 'kin', 'k:gated')
  const native = loadNative()
  write(CLAIMED)
  orphan(claim)
  const fd = directory.openLocks()
  const { stepByte } = counterKey(claim.target.space, claim.counters[0]?.address ?? 0n)
  native.lockByte(fd, stepByte, 'exclusive')
  let done = false
  const recovering = recover().then((found) => {
    done = true
    return outcomes(found)
  })
  await delay(50)
  assert.deepEqual([done, value()], [false, CLAIMED])
  native.closeFd(fd)
  assert.deepEqual(await recovering, [['cleared', [[CLAIMED, 0]]]])
})
