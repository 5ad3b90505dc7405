/**
 * Hits come by themselves: none waits for another, or for a drain, to be delivered.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

/** Some alone, some in twos, and some behind a burst, so that the reader is met in each of its moods. */
const GROUPS = [1, 1, 1, 1, 1, 1, 2, 1000, 1, 2, 1, 1, 1, 1, 1, 1, 50, 1]

for (const flushIntervalMs of [1, 20]) {
  test(`each hit is delivered without another, with an interval of ${flushIntervalMs} ms`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const tracer = newTracer(t, { flushIntervalMs })
    const probe = await tracer.attach('usdt:t:plain', { pid: target.pid })
    const hits = collect(probe)
    let made = 0
    for (const group of GROUPS) {
      await target.ask(`plain ${group}`)
      made += group
      await waitFor(`${made} hits`, () => hits.length === made)
    }
    assert.equal(probe.stats().delivered, made)
    await detachComplete(probe, made)
  })
}
