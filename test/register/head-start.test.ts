/**
 * What makes the kernel ready for an attach: it happens beside it, once at a time, and nothing of it outlives the attach that fails, or the probe.
 */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import pino from 'pino'
import { Tracer } from '../../lib/index.js'
import { loadNative, type Native, type UprobeMulti } from '../../lib/native.js'
import { headStart } from '../../lib/register/head-start.js'
import { multiSupport } from '../../lib/register/multi-support.js'
import { buildTarget } from '../support/build.js'
import { assertLeavesNothing, holdings } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { waitFor } from '../support/wait.js'

const log = pino({ level: 'silent' })

/** The real addon, which tells what was linked and what was closed. */
function watched(create?: Native['bpfLinkCreateUprobeMulti']): { native: Native; links: UprobeMulti[]; closed: () => number } {
  const real = loadNative()
  const links: UprobeMulti[] = []
  let closed = 0
  const native: Native = Object.assign(Object.create(real) as Native, {
    bpfLinkCreateUprobeMulti(link: UprobeMulti) {
      links.push(link)
      return (create ?? real.bpfLinkCreateUprobeMulti)(link)
    },
    async closeFds(fds: readonly number[]) {
      await real.closeFds(fds)
      closed += fds.length
    },
  })
  return { native, links, closed: () => closed }
}

it('links memory that nobody maps, one at a time, and closes each', needs(), async (t) => {
  if (!(await multiSupport(loadNative())).allProcesses) return t.skip('this kernel has no uprobe_multi link')
  await assertLeavesNothing(async () => {
    const { native, links, closed } = watched()
    const first = headStart(native, log)
    assert.equal(headStart(native, log), first)
    await first
    assert.deepEqual([links.length, closed()], [1, 1])
    await headStart(native, log)
    assert.deepEqual([links.length, closed()], [2, 2])
  })
})

it('leaves nothing where an attach fails or is aborted, nor where a probe is detached at once', needs({ programs: ['gcc'] }), async (t) => {
  const { pid } = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = new Tracer()
  t.after(() => tracer.close())
  // What the tracer keeps by design is there after this.
  await (await tracer.attach('usdt:t:gated', { pid })).detach()
  const before = holdings()
  await assert.rejects(tracer.attach('usdt:no:such', { pid }), { code: 'ERR_UPROBE_NOT_FOUND' })
  assert.deepEqual(holdings().descriptors, before.descriptors)
  const stop = new AbortController()
  const aborted = tracer.attach('usdt:t:gated', { pid, signal: stop.signal })
  await nextTurn()
  stop.abort(new Error('stopped'))
  await assert.rejects(aborted, /stopped/)
  assert.deepEqual(holdings().descriptors, before.descriptors)
  await (await tracer.attach('usdt:t:gated', { pid })).detach()
  assert.deepEqual(holdings().descriptors, before.descriptors)
})

it('is waited for by the end of the probe', needs({ programs: ['gcc'] }), async (t) => {
  const native = loadNative()
  if (!(await multiSupport(native)).allProcesses) return t.skip('this kernel has no uprobe_multi link')
  const { pid } = await Target.start(t, buildTarget(t, 'usdt'))
  const { closeFds } = native
  let letGo = (): void => undefined
  const held = new Promise<void>((resolve) => {
    letGo = resolve
  })
  t.after(() => letGo())
  const tracer = new Tracer()
  t.after(() => tracer.close())
  let closing = 0
  let closed = 0
  // The first that is closed is the link of the head start.
  t.mock.method(native, 'closeFds', async (fds: readonly number[]) => {
    if (closing++ === 0) await held
    await closeFds(fds)
    closed++
  })
  const probe = await tracer.attach('usdt:t:gated', { pid })
  let ended = false
  const end = probe.detach().then(() => {
    ended = true
  })
  await waitFor('the registrations to be closed', () => closed > 0 && closed === closing - 1)
  for (let turn = 0; turn < 10; turn++) await nextTurn()
  assert.equal(ended, false)
  letGo()
  await end
  assert.equal(closed, closing)
})

// Last: it is known of the kernel from then on.
it('tries no more where the kernel refuses, but for want of descriptors', needs(), async () => {
  const refusing = (errno: number) => watched(() => Promise.reject(Object.assign(new Error('no'), { syscall: 'bpf', errno, code: 'E' })))
  await assertLeavesNothing(async () => {
    const full = refusing(24)
    await headStart(full.native, log)
    await headStart(full.native, log)
    const without = refusing(22)
    await headStart(without.native, log)
    await headStart(without.native, log)
    assert.deepEqual([full.links.length, without.links.length], full.links.length === 0 ? [0, 0] : [2, 1])
  })
})
