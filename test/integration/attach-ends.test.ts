/**
 * What an attach leaves in this process, whether it succeeds, fails or is overtaken by its target.
 *
 * In guests on 5.10 only: it takes long, and kernels do not differ here.
 */
import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import test from 'node:test'
import { type Probe, UprobeError } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { descriptors } from '../support/descriptors.js'
import { assertLeavesNothing } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer, refused } from '../support/tracing.js'
import { turns, waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

/** The regular files that this process holds open. */
function openFiles(): Set<string> {
  return new Set(descriptors().filter((link) => link.startsWith('/')))
}

/** What came of an attach to a process that called exec meanwhile: it was refused, or the probe ends. */
async function assertNoticed(outcome: unknown): Promise<'refused' | 'ended'> {
  if (outcome instanceof Error) {
    assert.ok(outcome instanceof UprobeError && outcome.code === 'ERR_UPROBE_TARGET_GONE', `${outcome}`)
    return 'refused'
  }
  const probe = outcome as Probe
  await waitFor('the exec to be noticed', () => probe.state === 'target-exited')
  return 'ended'
}

test(
  'a target that calls exec at any turn of an attach is refused as gone, or ends the probe; it is never traced as another program',
  GCC,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const endings = new Set<string>()
    await assertLeavesNothing(async () => {
      const tracer = newTracer(t)
      for (let delay = 0; delay < 30; delay++) {
        const work = tracer.attach('usdt:t:gated', { pid: target.pid }).catch((error: unknown) => error)
        await turns(delay)
        const ready = target.ask('exec')
        const outcome = await work
        assert.equal(await ready, 'ready')
        endings.add(await assertNoticed(outcome))
        assert.equal(await target.ask('counters'), '0 0 0 0')
      }
      await tracer.close()
    })
    assert.ok(endings.has('refused'))
  },
)

test('a target that calls exec while the cost of a hit is measured for a budget is not traced as another program', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t)
  const options = { pid: target.pid, budget: { cpuPercent: 50 } }
  const attaching = tracer.attach('usdt:t:gated', options).catch((error: unknown) => error)
  assert.equal(await target.ask('exec'), 'ready')
  await assertNoticed(await attaching)
  // The program that it has become can be attached to.
  await (await tracer.attach('usdt:t:gated', options)).detach()
  assert.equal(await target.ask('counters'), '0 0 0 0')
})

test('only files with sites stay open while a probe is attached', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const before = openFiles()
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  assert.deepEqual(
    new Set([...openFiles()].filter((path) => !before.has(path))),
    new Set([target.program, ...['mem', 'stat'].map((file) => `/proc/${target.pid}/task/${target.pid}/${file}`)]),
  )
  await detachComplete(probe, 0)
})

test('a signal that outlives its probes has one listener while there are any, and none when they are gone', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { signal } = new AbortController()
  const tracer = newTracer(t)
  const warnings: Error[] = []
  const onWarning = (warning: Error) => warnings.push(warning)
  process.on('warning', onWarning)
  t.after(() => process.off('warning', onWarning))
  const attach = () => tracer.attach('usdt:t:gated', { pid: target.pid, signal })
  const probes = await Promise.all(Array.from({ length: 20 }, attach))
  await refused(tracer.attach('usdt:t:absent', { pid: target.pid, signal }), 'ERR_UPROBE_NOT_FOUND')
  assert.equal(getEventListeners(signal, 'abort').length, 1)
  await probes[0]?.detach()
  assert.equal(getEventListeners(signal, 'abort').length, 1)
  await tracer.close()
  assert.equal(getEventListeners(signal, 'abort').length, 0)
  await refused(attach(), 'ERR_UPROBE_CLOSED')
  assert.equal(getEventListeners(signal, 'abort').length, 0)
  await turns(2)
  assert.deepEqual(warnings, [])
})
