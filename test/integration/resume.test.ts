/**
 * What happens to a probe that is paused, and to one that resumes.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { Probe } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { leaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { registerForOwnProcess } from '../support/other-tracer.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer, refused } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

/** Resumes a probe whose leader thread has exited while it was paused; returns the reasons of all its changes, also of those to come. */
async function resumeWithoutLeader(probe: Probe, target: Target): Promise<readonly string[]> {
  const reasons: string[] = []
  probe.on('state', (change) => reasons.push(change.reason))
  await probe.pause()
  assert.equal(await target.ask('leader-exit'), 'leader gone')
  await waitFor('the exit of the leader to be noticed', () => reasons.includes('leader-exit'))
  await probe.resume()
  return reasons
}

for (const registration of REGISTRATIONS) {
  test(
    `the leader thread exits while a probe is paused: resuming arms it for the threads that are left (${registration})`,
    GCC,
    async (t) => {
      const target = await Target.start(t, buildTarget(t, 'usdt'))
      const probe = await newTracer(t).attach('usdt:t:shared', { pid: target.pid, registration })
      const reasons = await resumeWithoutLeader(probe, target)
      assert.equal(await target.ask('counters'), '0 0 3 0')
      assert.equal(await target.askNumber('shared 2'), 6)
      await probe.pause()
      await probe.resume()
      assert.equal(await target.askNumber('shared 1'), 3)
      await detachComplete(probe, 9)
      assert.equal(await target.ask('counters'), '0 0 0 0')
      assert.deepEqual(reasons, ['pause', 'leader-exit', 'resume', 'pause', 'resume', 'detach'])
    },
  )

  test(
    `the leader thread exits while a claimed probe is paused: resuming sees the threads that are left (${registration})`,
    GCC,
    async (t) => {
      const target = await Target.start(t, buildTarget(t, 'usdt'))
      const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:t:shared', {
        pid: target.pid,
        registration,
        counter: 'msb',
      })
      await resumeWithoutLeader(probe, target)
      assert.equal(await target.askNumber('shared 2'), 6)
      await detachComplete(probe, 6)
      assert.equal(await target.ask('counters'), '0 0 0 0')
    },
  )

  test(
    `a site that is refused when a probe resumes is refused as long as the reason lasts, and not forgotten (${registration})`,
    GCC,
    async (t) => {
      const target = await Target.start(t, buildTarget(t, 'usdt'))
      const second = notesOf(target.program, 't:shared')[1]
      assert.ok(second !== undefined)
      const probe = await newTracer(t).attach('usdt:t:shared', { pid: target.pid, registration })
      await probe.pause()
      const other = await registerForOwnProcess(target.program, second.fileOffset, 0)
      for (let attempt = 0; attempt < 2; attempt++) {
        await refused(probe.resume(), 'ERR_UPROBE_COUNTER_MISMATCH')
        assert.equal(probe.state, 'paused')
        assert.equal(await target.ask('counters'), '0 0 0 0')
      }
      await other.close()
      await probe.resume()
      assert.equal(await target.ask('counters'), '0 0 3 0')
      assert.equal(await target.askNumber('shared 2'), 6)
      await detachComplete(probe, 6)
    },
  )
}
