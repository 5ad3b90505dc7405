/**
 * The time of `stats().seenMs` is that in which hits are counted, however long the kernel takes to put a probe in or to take it out. So the kernel is made to take long here: as long as it takes a target to hit the probe a few
 * hundred times.
 */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { AttachOptions, Probe } from '../../lib/index.js'
import { Attachment } from '../../lib/register/attachment.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { newTracer } from '../support/tracing.js'

const GCC = needs({ programs: ['gcc'] })

const WAYS: readonly { name: string; command: string; spec: string; options: AttachOptions }[] = [
  { name: 'a perf event', command: 'calls 1', spec: 'uprobe:f_hot', options: { registration: 'perf' } },
  { name: 'several perf events', command: 'fires 1', spec: 'usdt:t:*', options: { registration: 'perf' } },
  { name: 'whatever the kernel takes', command: 'fires 1', spec: 'usdt:t:*', options: {} },
  { name: 'a claim', command: 'fires 1', spec: 'usdt:t:hot', options: { counter: 'msb' } },
]

/** Does something while everything is in: before it is said to be, and before anything is taken out. */
function whileSwitching(t: TestContext, work: () => Promise<void>): void {
  const { register, unregister } = Attachment.prototype
  t.mock.method(Attachment.prototype, 'register', async function (this: Attachment, ...given: Parameters<typeof register>) {
    const failures = await register.apply(this, given)
    await work()
    return failures
  })
  t.mock.method(Attachment.prototype, 'unregister', async function (this: Attachment, ...given: Parameters<typeof unregister>) {
    await work()
    await unregister.apply(this, given)
  })
}

for (const { name, command, spec, options } of WAYS) {
  test(`hits and time are those from when all is in until the first goes: ${name}`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const hit = async (times: number): Promise<void> => assert.equal(await target.askNumber(`${command} ${times}`), times)
    let probe: Probe | null = null
    let switches = 0
    let allIn = 0
    whileSwitching(t, async () => {
      const before = probe?.stats()
      await hit(300)
      assert.deepEqual(probe?.stats(), before)
      allIn = performance.now()
      switches++
    })
    const tracer = newTracer(t, { leaseDir: leaseDirectory() })
    probe = await tracer.attach(spec, { pid: target.pid, countOnly: true, ...options })
    assert.ok(probe.stats().seenMs <= performance.now() - allIn)
    await hit(10)
    assert.equal(probe.stats().hits, 10)
    await probe.pause()
    const { seenMs } = probe.stats()
    await probe.resume()
    await hit(10)
    assert.equal(probe.stats().hits, 20)
    assert.ok(probe.stats().seenMs > seenMs)
    await probe.detach()
    assert.equal(probe.stats().hits, 20)
    assert.equal(probe.stats().seenFraction, 1)
    // With a claim, pausing and coming back are one store.
    assert.equal(switches, options.counter === 'msb' ? 2 : 4)
  })
}
