/**
 * One ring serves all probes of a tracer: what floods one of them must not keep another from ending.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { assertStats, collect, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

test('a probe can be paused and detached while another one is hit faster than its listeners can follow', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t, { ringBytes: 64 * 1024, pendingLimitBytes: 64 * 1024 })
  const quiet = await tracer.attach('usdt:t:gated', { pid: target.pid })
  const hits = collect(quiet)
  const flooded = await tracer.attach('usdt:t:plain', { pid: target.pid })
  let delivered = 0
  flooded.on('hit', () => {
    delivered++
    for (const end = performance.now() + 0.02; performance.now() < end; );
  })
  await target.ask('gated 5')
  await target.ask('spin 2')
  await waitFor('hits to be lost', () => flooded.stats().lostRing > 0)

  let ended = false
  const ending = quiet
    .pause()
    .then(() => quiet.detach())
    .then(() => {
      ended = true
    })
  try {
    await waitFor('the probe to end', () => ended)
  } finally {
    // The flood goes on until here.
    await target.ask('spin-stop')
  }
  await ending
  assertStats(quiet.stats(), { hits: 5, delivered: 5 })
  assert.equal(hits.length, 5)
  await flooded.detach()
  assert.equal(flooded.stats().delivered, delivered)
})

test(
  'hits that do not end leave the event loop a turn behind each batch whose listener takes long, also once it has returned',
  GCC,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const probe = await newTracer(t).attach('usdt:t:plain', { pid: target.pid })
    let turn = 0
    let turning = setImmediate(function next() {
      turn++
      turning = setImmediate(next)
    })
    t.after(() => clearImmediate(turning))
    const turns: number[] = []
    probe.on('batch', async () => {
      turns.push(turn)
      await null
      for (const end = performance.now() + 3; performance.now() < end; );
    })
    await target.ask('spin 2')
    let during: readonly number[] = []
    try {
      await waitFor('batches', () => turns.length > 30)
      // What waits at the end is taken by the end itself.
      during = [...turns]
    } finally {
      await target.ask('spin-stop')
    }
    await probe.detach()
    assert.equal(new Set(during).size, during.length)
  },
)
