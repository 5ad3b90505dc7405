/**
 * What happens to a probe that is paused, and to one that resumes.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'
import type { Probe } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue, isArmed, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
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

  // No breakpoint is in, so that nothing leaks here even if the kernel is asked: it refuses too, and then the error has its errno. Where one was left in it accepts: test/counter/leak.test.ts.
  test(
    `a counter that another tool made negative while a probe was paused is found before the kernel is asked, in each process (${registration})`,
    GCC,
    async (t) => {
      const program = buildTarget(t, 'usdt')
      const targets = [await Target.start(t, program), await Target.start(t, program)] as const
      const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
      const probe = await newTracer(t).attach('usdt:t:gated', { pid: targets.map(({ pid }) => pid), registration })
      for (const { pid } of targets) {
        await probe.pause()
        writeCounter(pid, program, refCtrOffset, 0x8001)
        for (let attempt = 0; attempt < 2; attempt++) {
          const error = await refused(probe.resume(), 'ERR_UPROBE_COUNTER_NEGATIVE')
          assert.deepEqual([error.pid, error.errno, probe.state], [pid, undefined, 'paused'])
          assert.deepEqual(
            targets.map((target) => [counterValue(target.pid, program, refCtrOffset), isArmed(target.pid, program, fileOffset)]),
            targets.map((target) => [target.pid === pid ? 0x8001 : 0, false]),
          )
        }
        writeCounter(pid, program, refCtrOffset, 0)
        await probe.resume()
        for (const target of targets) assert.equal(await target.askNumber('gated 2'), 2)
      }
      await detachComplete(probe, 8)
    },
  )
}

test('a counter that is negative is found also when the leader thread has just exited, whose memory map is empty', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { program, pid } = target
  const { refCtrOffset } = gatedNote(program, 't:gated')
  const probe = await newTracer(t).attach('usdt:t:gated', { pid, registration: 'perf' })
  await probe.pause()
  writeCounter(pid, program, refCtrOffset, 0x8001)
  const gone = target.ask('leader-exit')
  // Without a turn of the event loop, which would tell the probe.
  while (!/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1')));
  const { errno } = await refused(probe.resume(), 'ERR_UPROBE_COUNTER_NEGATIVE')
  assert.equal(errno, undefined)
  assert.equal(await gone, 'leader gone')
})
