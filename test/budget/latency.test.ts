/**
 * Latencies whose budget is kept: what is measured of calls and pairs within each other, while their probes come and go all the time, is what took place. test/integration/latency-budget.test.ts tries each case by itself.
 *
 * Not for guests: what is hit as often as it can be needs a processor of its own speed.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { PairedArming } from '../../lib/aggregate/paired-arming.js'
import type { AggregateOptions, AggregateSpec, AggregationSnapshot } from '../../lib/index.js'
import { Probe } from '../../lib/probe.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { newTracer } from '../support/tracing.js'
import { turns, waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const PAIR = { from: 'usdt:t:begin', to: 'usdt:t:end' }
/** The outer ones sleep for so long, and whatever meets the beginning of one too soon has taken it for its own. */
const OUTER_NS = 5_000_000n
const BETWEEN_MS = 2
/** How many of each kind there have to be. */
const ENOUGH = 3

const WAYS: readonly { name: string; spec: AggregateSpec; options: AggregateOptions }[] = [
  { name: 'calls', spec: 'uprobe:f_*', options: {} },
  { name: 'calls, by perf events', spec: 'uprobe:f_*', options: { registration: 'perf' } },
  { name: 'pairs by thread', spec: PAIR, options: {} },
  { name: 'claimed pairs by thread', spec: PAIR, options: { counter: 'msb' } },
  { name: 'pairs by an argument', spec: { ...PAIR, match: 'arg0' }, options: {} },
]

for (const { name, spec, options } of WAYS) {
  test(`no latency is false, and every beginning is accounted for, while a budget takes the probes out: ${name}`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    // Every other time what has begun is cut off, and not waited for.
    const { patienceMs } = PairedArming.prototype
    let times = 0
    // And what is between two switches takes its time, in which threads end and begin.
    const { ignoreHits } = Probe.prototype
    t.mock.method(Probe.prototype, 'ignoreHits', function (this: Probe) {
      ignoreHits.call(this)
      for (const until = performance.now() + BETWEEN_MS; performance.now() < until; );
    })
    t.mock.method(PairedArming.prototype, 'patienceMs', (seenMs: number) => (times++ % 2 === 0 ? 0 : patienceMs(seenMs)))
    const tracer = newTracer(t, { leaseDir: leaseDirectory() })
    const measured = { min: 'latency', max: 'latency', by: 'arg0' }
    // It is attached in the midst of it.
    await target.ask('pace-nested 150')
    const aggregation = await tracer.aggregate(spec, { pid: target.pid, ...measured, ...options, budget: { hitsPerSecond: 2000 } })
    const snapshots: AggregationSnapshot[] = []
    const outer = { count: 0, least: 1n << 63n }
    const look = async (): Promise<boolean> => {
      const snapshot = await aggregation.snapshot({ reset: true })
      snapshots.push(snapshot)
      for (const { key, count, min } of snapshot.groups) {
        if (key[0] !== 1 && key[0] !== 1n) continue
        outer.count += count
        if (min !== null && min < outer.least) outer.least = min
      }
      const { cutOff, begunUnseen } = aggregation.stats()
      // Of calls, the kernel may know by itself which began unseen, and tell of few or none.
      return outer.count >= ENOUGH && cutOff >= ENOUGH && (begunUnseen >= ENOUGH || typeof spec === 'string')
    }
    await waitFor('latencies that were measured, cut off and begun unseen', look)
    await target.ask('stop')
    await waitFor('the probes to be armed', async () => {
      const { seenMs } = aggregation.stats()
      await turns(1)
      return aggregation.stats().seenMs > seenMs
    })
    await aggregation.detach()
    await look()
    assert.ok(outer.least >= OUTER_NS, `one took ${outer.least} ns`)
    const { hits, aggregated, lost, unfinished, abandoned, cutOff, seenFraction, begunUnseen } = aggregation.stats()
    t.diagnostic(
      `${aggregated} of ${hits} measured, ${cutOff} cut off, ${begunUnseen} begun unseen, ${seenFraction.toFixed(3)} of the time seen`,
    )
    assert.deepEqual({ hits, unfinished, lost, abandoned }, { hits: aggregated + cutOff, unfinished: cutOff, lost: 0, abandoned: 0 })
    assert.ok(seenFraction > 0 && seenFraction < 1)
    assert.equal(
      snapshots.flatMap(({ groups }) => groups).reduce((sum, { count }) => sum + count, 0),
      aggregated,
    )
  })
}
