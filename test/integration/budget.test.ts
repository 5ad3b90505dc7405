/**
 * A budget on every kernel: the probe is taken out when it is used up, comes back when time has paid for it, and counts exactly what it sees. test/budget has the rest.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { leaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { assertStats, collect, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

for (const counter of ['kernel', 'msb'] as const) {
  for (const registration of REGISTRATIONS) {
    test(`a probe that is over its budget is out until it is paid for (${counter}, ${registration})`, GCC, async (t) => {
      const target = await Target.start(t, buildTarget(t, 'usdt'))
      const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:t:shared', {
        pid: target.pid,
        counter,
        registration,
        // What a hit costs is measured for it, and may be this much.
        budget: { hitsPerSecond: 300, cpuPercent: 100_000 },
      })
      assert.deepEqual(probe.warnings, [])
      const hits = collect(probe)
      const states: string[] = []
      probe.on('state', ({ state, reason }) => states.push(`${state} ${reason}`))
      // On a slow machine it is taken out while they are still being executed.
      const executed = await target.askNumber('shared 300')
      await waitFor('the probe to be out', () => probe.out)
      assert.equal(await target.ask('counters'), '0 0 0 0')
      assert.equal(await target.askNumber('shared 5'), 0)
      await waitFor('the probe to be armed again', () => probe.armed)
      assert.equal(await target.ask('counters'), counter === 'msb' ? '0 0 32768 0' : '0 0 3 0')
      assert.equal(await target.askNumber('shared 2'), 6)
      await waitFor('the budget to be kept', () => probe.state === 'attached')
      await probe.detach()
      assert.deepEqual(states, ['throttled over-budget', 'attached within-budget', 'detached detach'])
      const { seenFraction } = probe.stats()
      assert.ok(seenFraction > 0 && seenFraction < 1)
      assert.ok(hits.length > 300 && hits.length <= executed + 6, `${hits.length} hits of ${executed} and 6`)
      assertStats(probe.stats(), { hits: hits.length, delivered: hits.length, seenFraction })
      assert.equal(await target.ask('counters'), '0 0 0 0')
    })
  }
}
