/**
 * Listeners of a real probe: what they throw, in which async context they run, and what becomes of the hits behind the one at which they leave.
 */
import assert from 'node:assert/strict'
import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { UprobeError } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { assertStats, collect, detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

describe('what a listener throws', () => {
  it('is an uncaught exception in the context of the attach, and costs no hit', GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const agent = await Target.start(t, process.execPath, {
      args: ['--import', require.resolve('tsx'), join(__dirname, 'fixtures', 'throwing-listener.ts'), String(target.pid)],
    })
    await target.ask('gated 10')
    const seen = JSON.parse(await agent.ask('report')) as unknown
    // `gated` gives its hits the arguments 0, -1, -2 and so on; the listener throws at every third.
    assert.deepEqual(seen, {
      hits: [0, -1, -2, -3, -4, -5, -6, -7, -8, -9],
      batched: 10,
      uncaught: [0, -3, -6, -9].map((argument) => ({ message: `hit ${argument}`, context: 'attach' })),
      stats: { hits: 10, filtered: 0, delivered: 10, lost: 0, lostRing: 0, lostQueue: 0, seenFraction: 1 },
    })
    assert.deepEqual(await agent.end(), { code: 0, signal: null })
  })
})

describe('the async context of a listener', () => {
  it('is that of the attach, for each probe of a tracer, for hits, batches and the end of the target', GCC, async (t) => {
    const storage = new AsyncLocalStorage<string>()
    const tracer = newTracer(t)
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const contexts = new Set<string>()
    const note = (event: string) => (): void => {
      contexts.add(`${event} in ${storage.getStore()}`)
    }
    const attach = (name: string) => storage.run(name, () => tracer.attach(`usdt:t:${name}`, { pid: target.pid }))
    const probes = [await attach('plain'), await attach('gated')]
    for (const probe of probes) {
      storage.run('elsewhere', () => probe.on('hit', note('hit')).on('batch', note('batch')).on('state', note('state')))
    }
    await target.ask('plain 1')
    await target.ask('gated 1')
    await target.end()
    await waitFor('the end of the target', () => probes.every((probe) => probe.state === 'target-exited'))
    assert.deepEqual([...contexts].sort(), [
      'batch in gated',
      'batch in plain',
      'hit in gated',
      'hit in plain',
      'state in gated',
      'state in plain',
    ])
  })
})

describe('a listener for one hit', () => {
  it('takes one hit; those behind it wait for whoever comes next', GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
    const first = once(probe, 'hit')
    await target.ask('gated 6')
    assert.equal((await first)[0].args[0], 0)
    assert.equal((await once(probe, 'hit'))[0].args[0], -1)
    await waitFor('all hits to arrive', () => probe.stats().delivered === 6)
    const others = collect(probe)
    await detachComplete(probe, 6)
    assert.deepEqual(
      others.map((hit) => hit.args[0]),
      [-2, -3, -4, -5],
    )
  })

  it('leaves hits that the queue has no room for lost, and counted', GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, queueLimit: 2 })
    const first = once(probe, 'hit')
    await target.ask('gated 6')
    await first
    await probe.detach()
    assertStats(probe.stats(), { hits: 6, delivered: 3, lost: 3, lostQueue: 3 })
  })
})

describe('listeners and an iterator', () => {
  it('exclude one another, also in the middle of a loop', GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
    const isRefused = (error: unknown): boolean => error instanceof UprobeError && error.code === 'ERR_UPROBE_BAD_OPTION'
    const hits = collect(probe)
    assert.throws(() => probe[Symbol.asyncIterator](), isRefused)
    probe.removeAllListeners('hit')
    await target.ask('gated 1')
    for await (const hit of probe) {
      assert.equal(hit.args[0], 0)
      for (const event of ['hit', 'batch'] as const) assert.throws(() => probe.on(event, () => undefined), isRefused)
      assert.throws(() => probe[Symbol.asyncIterator](), isRefused)
      break
    }
    assert.equal(hits.length, 0)
    assertStats(probe.stats(), { hits: 1, delivered: 1 })
  })

  it('may follow one another after the end', GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
    await target.ask('gated 3')
    await target.end()
    let seen = 0
    for await (const _ of probe) seen++
    assert.equal(seen, 3)
    for await (const _ of probe) assert.fail('all hits were taken')
    assert.equal(collect(probe).length, 0)
  })
})
