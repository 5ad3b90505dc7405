/**
 * The soak of bench/soak.ts, in short: a steady load, and other probes that come and go.
 *
 * Not for guests: it needs a target that keeps its pace.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { growthOf, soak } from '../../bench/support/soaking.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'

const ROUNDS = 24
/** The first probes of each kind compile code and start threads. */
const WARM_UP_ROUNDS = 6
const MIB = 2 ** 20

test(
  'probes that come and go beside one that is hit all the time leave nothing, and cost it no hit',
  needs({ programs: ['gcc'] }),
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const { samples, executed, stats, outOfOrder, made, left } = await soak(t, {
      target,
      leaseDir: leaseDirectory(),
      rate: 10_000,
      rounds: ROUNDS,
      roundMs: 700,
    })
    assert.ok(executed > 0)
    assert.deepEqual([stats.hits, stats.delivered, stats.lost, outOfOrder], [executed, executed, 0, 0])
    // Each of the others has at least a program and its counts.
    assert.ok(made >= 2 * ROUNDS)
    assert.equal(left, 0)
    const warm = samples.slice(WARM_UP_ROUNDS)
    for (const what of ['descriptors', 'threads', 'programs', 'maps'] as const) assert.equal(growthOf(warm, what), 0, what)
    assert.ok(growthOf(warm, 'heldBytes') < 4 * MIB)
    assert.ok(growthOf(warm, 'residentBytes') < 32 * MIB)
  },
)
