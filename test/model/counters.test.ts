/**
 * Random sequences of everything that can happen to counters, against a model, on the real kernel.
 *
 * After every step each counter of each process must read what the model says, and each process must answer; at the end nothing may be left. A failure is shrunk, and
 * printed with its seed; UPROBE_MODEL_SEED repeats it, UPROBE_MODEL_RUNS says how many sequences there are.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { sequences } from './commands.js'
import { Model } from './model.js'
import { MortalAgent, Real } from './real.js'

const RUNS = Number(process.env.UPROBE_MODEL_RUNS ?? 300)
const SEED = Number(process.env.UPROBE_MODEL_SEED ?? Date.now() % 2 ** 31)
const COMMANDS = 14

test(`${RUNS} sequences: every counter reads what the model says, and nothing is left`, needs({ programs: ['gcc'] }), async (t) => {
  t.diagnostic(`seed ${SEED}`)
  const mortal = new MortalAgent(t, leaseDirectory())
  let steps = 0
  await fc.assert(
    fc.asyncProperty(sequences(COMMANDS), async (commands) => {
      const model = new Model()
      const real = new Real(t, buildTarget(t, 'usdt'), mortal)
      try {
        model.addProcess(await real.spawn())
        await fc.asyncModelRun(() => ({ model, real }), commands)
        steps += [...commands].length
        await real.windUp(model)
      } catch (error) {
        await mortal.reset(leaseDirectory())
        throw error
      } finally {
        await real.stop()
      }
    }),
    { seed: SEED, numRuns: RUNS, endOnFailure: false },
  )
  t.diagnostic(`${steps} steps`)
  assert.ok(steps > 0)
})
