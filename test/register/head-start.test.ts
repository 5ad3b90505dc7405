/**
 * What makes the kernel ready for an attach: it happens beside it, once at a time, and is gone with the tracer.
 */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import pino from 'pino'
import { Tracer } from '../../lib/index.js'
import { loadNative, type Native, type UprobeMulti } from '../../lib/native.js'
import { HeadStart } from '../../lib/register/head-start.js'
import { multiSupport } from '../../lib/register/multi-support.js'
import { assertLeavesNothing } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
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

async function linksWork(): Promise<boolean> {
  return (await multiSupport(loadNative())).allProcesses
}

it('links memory that nobody maps, one at a time, and closes each', needs(), async (t) => {
  if (!(await linksWork())) return t.skip('this kernel has no uprobe_multi link')
  await assertLeavesNothing(async () => {
    const { native, links, closed } = watched()
    const start = new HeadStart(log)
    start.begin(native)
    start.begin(native)
    await waitFor('the link to be closed', () => closed() === 1)
    assert.equal(links.length, 1)
    // Where the first has come to its end the next one begins.
    await waitFor('another', () => {
      start.begin(native)
      return links.length === 2
    })
    await start.close()
    assert.equal(closed(), 2)
    start.begin(native)
    assert.equal(links.length, 2)
  })
})

it('tries no more where the kernel refuses, and leaves nothing', needs(), async () => {
  const refused = watched(() => Promise.reject(Object.assign(new Error('EINVAL'), { syscall: 'bpf', errno: 22, code: 'EINVAL' })))
  await assertLeavesNothing(async () => {
    refused.links.length = 0
    const start = new HeadStart(log)
    start.begin(refused.native)
    await waitFor('the refusal', async () => refused.links.length === 1 || !(await linksWork()))
    for (let turn = 0; turn < 10; turn++) {
      start.begin(refused.native)
      await nextTurn()
    }
    assert.ok(refused.links.length <= 1)
    await start.close()
  })
})

it('is over with the tracer, also where the attach fails', needs(), async () => {
  await assertLeavesNothing(async () => {
    const tracer = new Tracer()
    await assert.rejects(tracer.attach('usdt:no:such', { pid: process.pid }), { code: 'ERR_UPROBE_NOT_FOUND' })
    await tracer.close()
  })
})
