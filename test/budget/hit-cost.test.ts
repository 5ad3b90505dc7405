/**
 * What a hit is taken to cost, against what it costs a target.
 *
 * Not for guests: what is hit as often as it can be needs a processor of its own speed.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { type HitKind, hitCost } from '../../lib/budget/hit-cost.js'
import { Tracer } from '../../lib/index.js'
import { loadNative } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { newTracer } from '../support/tracing.js'

const GCC = needs({ programs: ['gcc'] })
const LOOP_MS = 300
const MOST_ROUNDS = 40

async function priceNs(strings: number, stringLimit: number, probe: HitKind['probe'] = 'usdt'): Promise<number> {
  const { ns, guessed } = await hitCost(loadNative(), { probe, strings, stringLimit, stack: false, countOnly: false }, () => new Tracer())
  assert.equal(guessed, null)
  return ns
}

for (const [what, stringLimit] of [
  ['a string of 256 bytes', 256],
  ['a string of 4,000 bytes', 4096],
] as const) {
  test(`a hit with ${what} is not taken to cost less than it does`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const probe = await newTracer(t).attach('usdt:t:hot', { pid: target.pid, strings: [1], stringLimit })
    probe.on('batch', () => undefined)
    const price = await priceNs(1, stringLimit)
    // The least: what others did on the machine meanwhile is no cost of it. And it may have been quick when the price was found, and slow ever since; so it gets many chances, of which a hit that is taken for too cheap passes none.
    let cost = Number.POSITIVE_INFINITY
    for (let round = 0; round < MOST_ROUNDS && cost > price; round++) {
      cost = Math.min(cost, (LOOP_MS * 1e6) / (await target.askNumber(`gated ${LOOP_MS}`)))
    }
    await probe.detach()
    assert.ok(price >= cost, `it costs ${cost} ns, and is taken to cost ${price}`)
  })
}

test('each string adds to the price what the first does, whatever the probe', GCC, async () => {
  for (const probe of ['usdt', 'uprobe', 'uretprobe'] as const) {
    const [none, one, three] = [await priceNs(0, 1024, probe), await priceNs(1, 1024, probe), await priceNs(3, 1024, probe)]
    assert.ok(one > none)
    assert.ok(Math.abs(three - none - 3 * (one - none)) < 1, `${none}, ${one}, ${three}`)
  }
})
