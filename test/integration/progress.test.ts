/**
 * How far an attach and a detach are, as their tracer tells it: a percentage can be made of each event.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { Progress } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { newTracer } from '../support/tracing.js'

const GCC = needs({ programs: ['gcc'] })

for (const counter of ['kernel', 'msb'] as const) {
  for (const named of [true, false]) {
    const whose = named ? 'in two processes that are named' : 'in every process, of which there are two'
    test(`each step begins with 0 of its total and ends with all of it, ${whose} (${counter})`, GCC, async (t) => {
      const program = buildTarget(t, 'usdt')
      const pids = [(await Target.start(t, program)).pid, (await Target.start(t, program)).pid]
      const tracer = newTracer(t, { leaseDir: leaseDirectory() })
      const seen: Progress[] = []
      tracer.on('progress', (progress) => seen.push(progress))
      const probe = await tracer.attach(`usdt:${program}:t:*`, { ...(named && { pid: pids }), counter })
      const sites = probe.sites.length
      await probe.detach()
      assert.ok(seen.every(({ total }) => total > 0))
      const claims = counter === 'msb' ? ['attach claim', 'detach claim'] : []
      for (const name of ['attach check', 'attach register', 'attach verify', 'detach unregister', ...claims]) {
        const ofStep = seen.filter(({ action, step }) => `${action} ${step}` === name)
        const [first, last] = [ofStep[0], ofStep.at(-1)]
        assert.deepEqual([first?.done, last?.done], [0, last?.total], name)
        // How many processes map the file is known only in the end.
        if (named || name !== 'attach verify')
          assert.ok(
            ofStep.every(({ total }) => total === first?.total),
            name,
          )
        if (name === 'attach verify') assert.equal(last?.total, 2 * sites)
      }
    })
  }
}
