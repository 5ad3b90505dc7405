/**
 * Memory that is mapped but not present (test/targets/absent.c): a program that may sleep fetches it, and holds nobody up meanwhile.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { HAS_SLEEPABLE, REGISTRATIONS } from '../support/features.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

// Uprobes take programs that may sleep since 6.0.
const possible = HAS_SLEEPABLE ? needs({ programs: ['gcc'] }) : { skip: 'this kernel has no uprobe programs that may sleep' }

for (const registration of REGISTRATIONS) {
  for (const stringLimit of [256, 4096]) {
    test(`reads a string that is not present (${registration}, limit ${stringLimit})`, possible, async (t) => {
      const target = await Target.start(t, buildTarget(t, 'absent'))
      const probe = await newTracer(t).attach('usdt:t:text', { pid: target.pid, strings: [1], stringLimit, registration })
      const hits = collect(probe)
      for (let i = 0; i < 3; i++) assert.equal(await target.ask('mapped'), 'fired')
      await detachComplete(probe, 3)
      assert.deepEqual(
        hits.map((hit) => hit.args),
        Array.from({ length: 3 }, () => [0, 'ELF\u0002\u0001\u0001']),
      )
    })
  }

  test(`reads a string that is not present for a filter alone (${registration})`, possible, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'absent'))
    const tracer = newTracer(t)
    for (const countOnly of [false, true]) {
      const filter = 'str(arg1) == "ELF\\x02\\x01\\x01"'
      const probe = await tracer.attach('usdt:t:text', { pid: target.pid, registration, filter, countOnly })
      assert.equal(await target.ask('mapped'), 'fired')
      await probe.detach()
      const { hits, filtered } = probe.stats()
      assert.deepEqual({ hits, filtered }, { hits: 1, filtered: 0 })
    }
  })

  test(
    `reads what is not present where hits are added up: for the filter, the key, what is measured, and where a latency begins (${registration})`,
    possible,
    async (t) => {
      const ELF = 'ELF\u0002\u0001\u0001'
      const filter = 'str(arg1) == "ELF\\x02\\x01\\x01"'
      const target = await Target.start(t, buildTarget(t, 'absent'))
      const tracer = newTracer(t)
      const latency = { from: 'usdt:t:text', to: 'usdt:t:number' }
      for (const [spec, options, key, sum] of [
        ['usdt:t:text', { by: 'comm', filter }, ['absent'], null],
        ['usdt:t:text', { by: 'str(arg1)' }, [ELF], null],
        ['usdt:t:number', { by: 'arg0' }, [0x464c457fn], null],
        ['usdt:t:number', { sum: 'arg0', filter: 'arg0 == 0x464c457f' }, [], 0x464c457fn],
        [latency, { by: 'str(arg1)', filter, min: 'latency' }, [ELF], null],
      ] as const) {
        const aggregation = await tracer.aggregate(spec, { pid: target.pid, registration, ...options })
        for (let i = 0; i < 3; i++) assert.equal(await target.ask('mapped'), 'fired')
        await aggregation.detach()
        const { hits, filtered, aggregated, lost } = aggregation.stats()
        assert.deepEqual({ hits, filtered, aggregated, lost }, { hits: 3, filtered: 0, aggregated: 3, lost: 0 })
        const { groups } = await aggregation.snapshot()
        assert.deepEqual(
          groups.map((group) => [group.key.map((part) => (typeof part === 'number' ? BigInt(part) : part)), group.count, group.sum]),
          [[key, 3, sum === null ? null : 3n * sum]],
        )
      }
    },
  )

  test(`reads a number that is not present, also for a filter (${registration})`, possible, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'absent'))
    const tracer = newTracer(t)
    const probe = await tracer.attach('usdt:t:number', { pid: target.pid, registration })
    const filtered = await tracer.attach('usdt:t:number', { pid: target.pid, registration, filter: 'arg0 == 0x464c457f' })
    const [hits, passed] = [collect(probe), collect(filtered)]
    assert.equal(await target.ask('mapped'), 'fired')
    await detachComplete(probe, 1)
    await detachComplete(filtered, 1)
    assert.deepEqual([hits[0]?.args, passed[0]?.args], [[0x464c457f], [0x464c457f]])
  })
}

for (const stringLimit of [256, 4096]) {
  test(`a hit that waits for memory does not hold up the hits of others (limit ${stringLimit})`, possible, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'absent'))
    const probe = await newTracer(t).attach('usdt:t:text', { pid: target.pid, strings: [1], stringLimit })
    const hits = collect(probe)
    if ((await target.ask('wait')) !== 'waiting') return t.skip('this kernel has no userfaultfd for root')
    assert.equal(await target.ask('other 5'), 'fired')
    await waitFor('the hits behind the one that waits', () => hits.length === 5)
    assert.deepEqual(
      hits.map((hit) => hit.args),
      Array.from({ length: 5 }, (_, i) => [i, 'other']),
    )
    assert.equal(await target.ask('fill'), 'filled')
    await detachComplete(probe, 6)
    assert.deepEqual(hits[5]?.args, [-1, 'late'])
  })
}

test(
  'a hit that waits for memory is in no snapshot before, does not hold one up, and is in exactly one that resets',
  possible,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'absent'))
    const aggregation = await newTracer(t).aggregate('usdt:t:text', { pid: target.pid, by: 'str(arg1)' })
    const counts = async (): Promise<unknown[]> =>
      (await aggregation.snapshot({ reset: true })).groups.map(({ key, count }) => [...key, count])
    if ((await target.ask('wait')) !== 'waiting') return t.skip('this kernel has no userfaultfd for root')
    assert.equal(await target.ask('other 5'), 'fired')
    assert.deepEqual(await counts(), [['other', 5]])
    assert.equal(await target.ask('other 2'), 'fired')
    assert.deepEqual(await counts(), [['other', 2]])
    assert.equal(await target.ask('fill'), 'filled')
    assert.deepEqual(await counts(), [['late', 1]])
    await aggregation.detach()
    const { hits, aggregated, lost } = aggregation.stats()
    assert.deepEqual({ hits, aggregated, lost }, { hits: 8, aggregated: 8, lost: 0 })
  },
)
