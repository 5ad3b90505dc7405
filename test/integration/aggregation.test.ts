/**
 * Hits that are added up in the kernel, against the same sums made in JavaScript.
 *
 * In guests on 5.10, newest and arm64-6.12 only: it takes long, and the others lie between the first two.
 */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import fc from 'fast-check'
import { LEAST_SCALE, MOST_SCALE } from '../../lib/aggregate/buckets.js'
import { hasCompareExchange } from '../../lib/aggregate/compare-exchange.js'
import { layoutGroups } from '../../lib/aggregate/layout.js'
import { checkAggregateOptions } from '../../lib/aggregate/options.js'
import { PairedArming } from '../../lib/aggregate/paired-arming.js'
import { GroupStore } from '../../lib/aggregate/store.js'
import { TURNS, TURNS_BYTES } from '../../lib/aggregate/turn-code.js'
import { ValueSink } from '../../lib/aggregate/value-code.js'
import { compileCapture, STATS_VALUE_BYTES } from '../../lib/capture/compile.js'
import { bindOperands, parseOperands } from '../../lib/capture/operands.js'
import type { AggregateGroup, Aggregation, AggregationStats } from '../../lib/index.js'
import { loadNative } from '../../lib/native.js'
import {
  BPF_LICENSE,
  BPF_MAP_TYPE_PERCPU_ARRAY,
  BPF_PROG_TYPE_KPROBE,
  BPF_TRACE_UPROBE_MULTI,
  createMap,
  loadProgram,
} from '../../lib/register/bpf-objects.js'
import { NOTHING_ELSE } from '../aggregate/counts.js'
import { histogramOf, nearBounds } from '../aggregate/model.js'
import { buildTarget } from '../support/build.js'
import { HAS_MULTI, REGISTRATIONS } from '../support/features.js'
import { leaseDirectory } from '../support/leases.js'
import { assertLeavesNothing } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
import { testSeed } from '../support/random.js'
import { Target } from '../support/target.js'
import { newTracer, refused } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

/** Detaches and asserts the counts; those that are not named must be 0. */
async function detachWith(aggregation: Aggregation, expected: Partial<AggregationStats>): Promise<void> {
  await aggregation.detach()
  const { seenMs, ...counts } = aggregation.stats()
  assert.ok(seenMs > 0)
  assert.deepEqual(counts, { hits: 0, aggregated: 0, seenFraction: 1, ...NOTHING_ELSE, ...expected })
}

async function only(aggregation: Aggregation): Promise<AggregateGroup> {
  const { groups, other } = await aggregation.snapshot()
  const [group] = groups
  assert.ok(group !== undefined && groups.length === 1 && other === null)
  return group
}

async function startFiltered(t: TestContext): Promise<Target> {
  return Target.start(t, buildTarget(t, 'filtered'))
}

/** Fires with the first two arguments, which are unsigned and signed, of 8 bytes. */
async function fire(target: Target, first: bigint, second = first): Promise<void> {
  const words = [first, second, 0n, 0n, 0n, 0n, 0n, 0n].map((word) => BigInt.asUintN(64, word).toString(16))
  assert.equal(await target.ask(`fire ${words.join(' ')}`), 'fired')
}

for (const registration of REGISTRATIONS) {
  test(`count, sum, least, largest and histogram of an argument, by its sign (${registration})`, GCC, async (t) => {
    const target = await startFiltered(t)
    const tracer = newTracer(t)
    const options = { pid: target.pid, registration } as const
    const all = (term: string) => ({ ...options, sum: term, min: term, max: term, histogram: term, scale: 2 })
    const unsigned = await tracer.aggregate('usdt:t:values', all('arg0'))
    const signed = await tracer.aggregate('usdt:t:values', all('arg1'))
    const simple = await tracer.aggregate('usdt:t:values', { ...options, max: 'arg1', min: 'arg0' })
    const values = [5n, -7n, 0n, 1n, -(1n << 63n), (1n << 63n) - 1n, -1n, 300n]
    for (const value of values) await fire(target, value)
    const words = values.map((value) => BigInt.asUintN(64, value))
    const sum = (numbers: readonly bigint[]): bigint => numbers.reduce((total, number) => total + number, 0n)
    const none = { sum: null, min: null, max: null, histogram: null }
    // Sums are kept modulo 2^64 on each CPU, so that of these the low 64 bits are compared.
    const { sum: unsignedSum, ...unsignedRest } = await only(unsigned)
    assert.equal(BigInt.asUintN(64, unsignedSum ?? 0n), BigInt.asUintN(64, sum(words)))
    assert.deepEqual(unsignedRest, { key: [], count: 8, min: 0n, max: (1n << 64n) - 1n, histogram: histogramOf(words, 2) })
    const { sum: signedSum, ...signedRest } = await only(signed)
    assert.equal(BigInt.asIntN(64, signedSum ?? 0n), BigInt.asIntN(64, sum(values)))
    assert.deepEqual(signedRest, { key: [], count: 8, min: -(1n << 63n), max: (1n << 63n) - 1n, histogram: histogramOf(values, 2) })
    assert.deepEqual(await only(simple), { key: [], count: 8, ...none, min: 0n, max: (1n << 63n) - 1n })
    for (const aggregation of [unsigned, signed, simple]) await detachWith(aggregation, { hits: 8, aggregated: 8 })
  })
}

test('every value falls into its bucket, at every scale, on both sides of the bounds', GCC, async (t) => {
  const seed = testSeed()
  t.diagnostic(`UPROBE_TEST_SEED=${seed}`)
  const target = await startFiltered(t)
  const tracer = newTracer(t)
  const scales = Array.from({ length: MOST_SCALE - LEAST_SCALE + 1 }, (_, index) => LEAST_SCALE + index)
  const attached = await Promise.all(
    scales.map(async (scale) => {
      const signed = scale % 2 !== 0
      const aggregation = await tracer.aggregate('usdt:t:values', { pid: target.pid, histogram: signed ? 'arg1' : 'arg0', scale })
      return { scale, signed, aggregation }
    }),
  )
  const place = fc.record({ scale: fc.integer({ min: 1, max: MOST_SCALE }), exponent: fc.integer({ min: 0, max: 63 }), step: fc.nat(31) })
  const bounds = fc.sample(place, { seed, numRuns: 25 }).flatMap(({ scale, exponent, step }) => nearBounds(scale, exponent, step))
  const values = [...bounds, ...Array.from({ length: 64 }, (_, exponent) => 1n << BigInt(exponent)), 0n, 3n, (1n << 64n) - 1n]
  for (const value of values) await fire(target, value)
  for (const { scale, signed, aggregation } of attached) {
    const seen = signed ? values.map((value) => BigInt.asIntN(64, value)) : values
    assert.deepEqual((await only(aggregation)).histogram, histogramOf(seen, scale), `scale ${scale}`)
  }
})

test('groups by numbers and strings; what does not fit is counted together', GCC, async (t) => {
  const target = await startFiltered(t)
  const tracer = newTracer(t)
  const options = { pid: target.pid, by: ['str(arg10)', 'arg7', 'arg9', 'tid', 'comm'], stringLimit: 4, sum: 'arg1' }
  const all = await tracer.aggregate('usdt:t:values', options)
  const few = await tracer.aggregate('usdt:t:values', { ...options, by: 'arg1', maxGroups: 2, min: 'arg1', max: 'arg1' })
  const texts = [
    ['abc', 1],
    ['abcd', 2],
    ['abcde', 3],
    ['abcdx', 4],
    [null, 5],
    ['', 6],
    ['abc', 7],
  ] as const
  for (const [text, number] of texts) {
    assert.equal(await target.ask(`text ${text === null ? 'null' : Buffer.from(text).toString('hex')}`), 'set')
    await fire(target, BigInt(number))
  }
  const rest = [target.pid, 'filtered']
  const key = (text: unknown, ninth: unknown): unknown[] => [text, 0, ninth, ...rest]
  const snapshot = await all.snapshot()
  assert.equal(snapshot.other, null)
  assert.deepEqual(
    snapshot.groups.map(({ key: parts, count, sum }) => ({ parts, count, sum })).sort((one, other) => Number(one.sum) - Number(other.sum)),
    [
      { parts: key('abc', 1), count: 1, sum: 1n },
      { parts: key('abcd', 2), count: 1, sum: 2n },
      { parts: key({ string: 'abcd', truncated: true }, 3), count: 1, sum: 3n },
      { parts: key({ string: 'abcd', truncated: true }, 4), count: 1, sum: 4n },
      { parts: key({ unreadable: 'str(arg10)' }, { unreadable: 'arg9' }), count: 1, sum: 5n },
      { parts: key('', 6), count: 1, sum: 6n },
      { parts: key('abc', 7), count: 1, sum: 7n },
    ],
  )
  const { groups, other } = await few.snapshot()
  assert.deepEqual(
    groups.map((group) => [...group.key, group.count]),
    [
      [1n, 1],
      [2n, 1],
    ],
  )
  assert.deepEqual(other, { count: 5, sum: 25n, min: 3n, max: 7n, histogram: null })
  await detachWith(all, { hits: 7, aggregated: 7 })
  await detachWith(few, { hits: 7, aggregated: 7 })
})

test('strings that are cut alike are one group', GCC, async (t) => {
  const target = await startFiltered(t)
  const aggregation = await newTracer(t).aggregate('usdt:t:values', { pid: target.pid, by: 'str(arg11)', stringLimit: 4 })
  for (const text of ['abcde', 'abcdx', 'abcd\xc3']) {
    await target.ask(`text ${Buffer.from(text, 'latin1').toString('hex')}`)
    await fire(target, 0n)
  }
  const { groups } = await aggregation.snapshot()
  assert.deepEqual(
    groups.map(({ key, count }) => ({ key, count })),
    [{ key: [{ string: 'abcd', truncated: true }], count: 3 }],
  )
})

test('what the filter rejects, and what cannot be read, is counted and not added', GCC, async (t) => {
  const target = await startFiltered(t)
  const aggregation = await newTracer(t).aggregate('usdt:t:values', { pid: target.pid, filter: 'arg0 != 2', sum: 'arg9' })
  for (const [text, number] of [
    ['null', 1],
    ['null', 2],
    ['61', 3],
    ['61', 2],
    ['61', 4],
  ] as const) {
    await target.ask(`text ${text}`)
    await fire(target, BigInt(number))
  }
  assert.deepEqual(await only(aggregation), { key: [], count: 2, sum: 7n, min: null, max: null, histogram: null })
  await detachWith(aggregation, { hits: 5, filtered: 2, aggregated: 2, lost: 1, lostUnreadable: 1 })
})

test('a group that has its own keeps it over snapshots, and what comes later is counted together', GCC, async (t) => {
  const target = await startFiltered(t)
  const aggregation = await newTracer(t).aggregate('usdt:t:values', { pid: target.pid, by: 'arg1', maxGroups: 2, sum: 'arg1' })
  const fireAll = async (...values: bigint[]): Promise<void> => {
    for (const value of values) await fire(target, value)
  }
  const seen = async (options?: { reset: boolean }): Promise<unknown[]> => {
    const { groups, other } = await aggregation.snapshot(options)
    return [...groups.map(({ key, count, sum }) => [...key, count, sum]), other === null ? null : [other.count, other.sum]]
  }
  await fireAll(1n, 2n)
  assert.deepEqual(await seen(), [[1n, 1, 1n], [2n, 1, 2n], null])
  // Those that come first now have no place.
  await fireAll(3n, 4n, 1n, 1n, 1n)
  assert.deepEqual(await seen(), [
    [1n, 4, 4n],
    [2n, 1, 2n],
    [2, 7n],
  ])
  await fireAll(5n, 2n)
  assert.deepEqual(await seen({ reset: true }), [
    [1n, 4, 4n],
    [2n, 2, 4n],
    [3, 12n],
  ])
  // After a reset, those that come first have the places again.
  await fireAll(6n, 7n, 1n)
  assert.deepEqual(await seen(), [
    [6n, 1, 6n],
    [7n, 1, 7n],
    [1, 1n],
  ])
  await fireAll(1n, 6n)
  assert.deepEqual(await seen(), [
    [6n, 2, 12n],
    [7n, 1, 7n],
    [2, 2n],
  ])
  await detachWith(aggregation, { hits: 14, aggregated: 14, lost: 0 })
})

test('a generation is read when all that had entered it have left', needs({}), async (t) => {
  const native = loadNative()
  const layout = layoutGroups(checkAggregateOptions('usdt:t:x', { count: true }).question, [])
  const [store, other] = [await GroupStore.open(native, layout, null), await GroupStore.open(native, layout, null)]
  t.after(() => {
    store.close()
    other.close()
  })
  // As a program would: it begins on one CPU, adds there, and is counted as having left, in the end, on another.
  const cpus = native.possibleCpus()
  const setTurns = (entered: bigint, left: bigint): void => {
    const words = new BigUint64Array((TURNS_BYTES / 8) * cpus)
    words[TURNS.entered / 8] = entered
    words[(TURNS_BYTES / 8) * (cpus - 1) + TURNS.left / 8] = left
    native.bpfMapUpdate(store.maps.turnsFd, 0, new Uint8Array(words.buffer))
  }
  const setCount = (count: bigint): void => {
    const words = new BigUint64Array(cpus)
    words[0] = count
    native.bpfMapUpdate(store.maps.othersFd, 0, new Uint8Array(words.buffer))
  }
  setTurns(5n, 4n)
  setCount(4n)
  const taken: bigint[] = []
  const done = store.take((_, values) => taken.push(values.getBigUint64(0, true)))
  // The other one waits for as many grace periods.
  for (let round = 0; round < 5; round++) await other.take(() => undefined)
  assert.deepEqual(taken, [])
  setCount(5n)
  setTurns(5n, 5n)
  await done
  assert.deepEqual(taken, [5n])
})

const [THREADS, EACH] = [4, 5000]
/** Hits are fired in rounds until so many snapshots were taken meanwhile. */
const LOOKS = 8

for (const registration of REGISTRATIONS) {
  test(`snapshots that reset see each hit of 4 threads once and whole (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const tracer = newTracer(t)
    const options = { pid: target.pid, registration, sum: '3', min: 'arg0', max: 'arg0', histogram: 'arg0' } as const
    const whole = await tracer.aggregate('usdt:t:gated', { ...options, filter: 'arg0 >= 0' })
    const grouped = await tracer.aggregate('usdt:t:gated', { ...options, by: ['arg1 % 4', 'arg0 % 50'], maxGroups: 150 })
    const seen = { whole: 0, grouped: 0, other: 0 }
    const parts = new Map<string, number>()
    const look = async (): Promise<void> => {
      const [one, other] = await Promise.all([whole.snapshot({ reset: true }), grouped.snapshot({ reset: true })])
      for (const aggregates of [...one.groups, ...other.groups, ...(other.other === null ? [] : [other.other])]) {
        const { count, sum, histogram } = aggregates
        // A hit that was only half added would show here.
        assert.equal(sum, 3n * BigInt(count))
        assert.equal(
          count,
          [...(histogram?.positive.bucketCounts ?? [])].reduce((total, part) => total + part, histogram?.zeroCount ?? 0),
        )
      }
      seen.whole += one.groups[0]?.count ?? 0
      for (const { key, count } of other.groups) {
        seen.grouped += count
        parts.set(key.join(), (parts.get(key.join()) ?? 0) + count)
      }
      seen.other += other.other?.count ?? 0
    }
    let [looking, rounds] = [true, 0]
    const fired = (async () => {
      for (; looking; rounds++) assert.equal(await target.askNumber(`threads ${THREADS} ${EACH}`), THREADS * EACH)
    })()
    try {
      for (let looks = 0; looks < LOOKS; looks++) await look()
    } finally {
      looking = false
      await fired
    }
    await Promise.all([whole.detach(), grouped.detach()])
    await look()
    t.diagnostic(`${rounds} rounds`)
    const hits = rounds * THREADS * EACH
    assert.equal(seen.whole, hits)
    assert.equal(seen.grouped + seen.other, hits)
    assert.ok(seen.other > 0)
    assert.ok([...parts.values()].every((count) => count <= (rounds * EACH) / 50))
    for (const aggregation of [whole, grouped]) assert.equal(aggregation.stats().aggregated, hits)
  })
}

test('without reset a snapshot is all since the beginning; after the end it stays', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t)
  const aggregation = await tracer.aggregate('usdt:t:plain', { pid: target.pid, by: 'arg0', maxGroups: 3 })
  assert.deepEqual([tracer.aggregations, tracer.probes], [[aggregation], []])
  const states: string[] = []
  aggregation.on('state', ({ state, reason }) => states.push(`${state} ${reason}`))
  const counts = async (): Promise<unknown> => {
    const { groups, other } = await aggregation.snapshot()
    return [Object.fromEntries(groups.map(({ key, count }) => [String(key), count])), other?.count]
  }
  await target.ask('plain 2')
  assert.deepEqual(await counts(), [{ 0: 1, 1: 1 }, undefined])
  await target.ask('plain 5')
  assert.deepEqual(await counts(), [{ 0: 2, 1: 2, 2: 1 }, 2])
  await target.ask('plain 1')
  await target.end()
  // An event alone does not keep the process alive.
  await waitFor('the end of the aggregation', () => aggregation.state !== 'attached')
  await aggregation.detach()
  assert.deepEqual(await counts(), [{ 0: 3, 1: 2, 2: 1 }, 2])
  assert.deepEqual(states, ['target-exited exit'])
  assert.equal(aggregation.stats().hits, 8)
  assert.deepEqual(tracer.aggregations, [])
})

for (const counter of ['kernel', 'msb'] as const) {
  test(`an aggregation that is paused counts neither hits nor time until it is resumed (${counter})`, GCC, async (t) => {
    for (const spec of ['usdt:t:begin', { from: 'usdt:t:begin', to: 'usdt:t:end' }]) {
      t.mock.method(PairedArming.prototype, 'patienceMs', () => 0)
      const target = await Target.start(t, buildTarget(t, 'mixed'))
      const aggregation = await newTracer(t, { leaseDir: leaseDirectory() }).aggregate(spec, { pid: target.pid, by: 'arg0', counter })
      const told: string[] = []
      aggregation.on('state', ({ state, reason }) => told.push(`${state} ${reason}`))
      const run = async (...commands: readonly string[]): Promise<void> => {
        for (const command of commands) assert.equal(await target.ask(command), 'done')
      }
      await run('begin 1', 'end 1', 'begin 2')
      await aggregation.pause()
      await aggregation.pause()
      const { seenMs } = aggregation.stats()
      await run('end 2', 'begin 3', 'end 3')
      assert.ok(seenMs > 0 && aggregation.stats().seenMs === seenMs)
      await aggregation.resume()
      await aggregation.resume()
      await run('end 2', 'begin 4', 'end 4')
      assert.deepEqual(told, ['paused pause', 'attached resume'])
      const { groups, seenFraction, ...snapshot } = await aggregation.snapshot()
      await aggregation.detach()
      const seen = typeof spec === 'string' ? [1, 2, 4] : [1, 4]
      assert.deepEqual(
        groups.map(({ key, count }) => [...key, count]),
        seen.map((id) => [id, 1]),
      )
      const { hits, aggregated, unfinished, cutOff, begunUnseen, ...stats } = aggregation.stats()
      const open = 3 - seen.length
      assert.deepEqual([hits, aggregated, unfinished, cutOff, begunUnseen], [3, seen.length, open, open, open])
      assert.ok(snapshot.seenMs > seenMs)
      assert.deepEqual([seenFraction, stats.seenFraction], [1, 1])
      await refused(aggregation.pause(), 'ERR_UPROBE_CLOSED')
      await refused(aggregation.resume(), 'ERR_UPROBE_CLOSED')
      t.mock.reset()
    }
  })
}

test('snapshot refuses an option that it does not know, and goes on', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const aggregation = await newTracer(t).aggregate('usdt:t:gated', { pid: target.pid })
  for (const [options, message] of [
    [{ rest: true }, /^Option rest: there is no such option; there are reset\.$/],
    [{ reset: 1 }, /^Option reset: give true or false\.$/],
    [true, /^Option options: give an object, such as \{ reset: true \}\.$/],
  ] as const) {
    await assert.rejects(aggregation.snapshot(options as object), { code: 'ERR_UPROBE_BAD_OPTION', message })
  }
  await target.ask('gated 3')
  const { groups } = await aggregation.snapshot({ reset: true })
  assert.deepEqual(
    groups.map(({ count }) => count),
    [3],
  )
})

test('a question that the probe has no answer to is refused, and points at the place', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t)
  const ask = (options: object): Promise<Error> =>
    refused(tracer.aggregate('usdt:t:gated', { pid: target.pid, ...options }), 'ERR_UPROBE_BAD_OPTION')
  assert.match((await ask({ sum: 'arg7' })).message, /^Option sum: column 1: usdt:t:gated has 3 arguments/)
  assert.match((await ask({ by: ['arg0', 'str(arg0)'] })).message, /^Option by: column 1: arg0 of usdt:t:gated is no pointer/)
  assert.match((await ask({ histogram: 'str(arg2)' })).message, /a string, and a number is wanted/)
  assert.match((await ask({ max: 'arg0 >' })).message, /^Option max: column 7: something is missing/)
  assert.match((await ask({ histogram: 'arg0', scale: 6 })).message, /^Option scale: give an integer from -5 to 5/)
  assert.match((await ask({ by: ['str(arg2)', 'str(arg2)'], stringLimit: 200 })).message, /^Option by: a key of 416 bytes/)
  assert.match((await ask({ by: 'arg0', maxGroups: 2 ** 20, histogram: 'arg0', scale: 5 })).message, /^Option maxGroups: a group takes/)
  assert.match((await ask({ histogram: 'latency' })).message, /^Option spec: the latency of a function/)
})

test('an aggregation that ended, and one that could not begin, leave nothing open', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'latency'))
  const tracer = newTracer(t)
  const pair = { from: 'usdt:t:begin', to: 'usdt:t:end' }
  const once = async (): Promise<void> => {
    const options = { pid: target.pid, by: 'tid' }
    const attached = [
      await tracer.aggregate('usdt:t:begin', options),
      await tracer.aggregate(pair, options),
      await tracer.aggregate({ ...pair, match: 'arg0' }, options),
      await tracer.aggregate('uprobe:f_*', { ...options, histogram: 'latency' }),
    ]
    await refused(tracer.aggregate({ ...pair, to: 'usdt:t:nowhere' }, options), 'ERR_UPROBE_NOT_FOUND')
    await refused(tracer.aggregate('usdt:t:begin', { ...options, sum: 'arg1' }), 'ERR_UPROBE_BAD_OPTION')
    await Promise.all(attached.map((aggregation) => aggregation.detach()))
  }
  await assertLeavesNothing(once)
})

test('programs with many kinds of operands, the finest buckets and long keys are taken by the kernel', needs({}), async (t) => {
  const native = loadNative()
  const terms = {
    by: ['arg0', 'str(arg1)', 'comm', 'arg2 / arg0'],
    stringLimit: 200,
    histogram: 'arg0 - 0',
    scale: MOST_SCALE,
    sum: 'arg3',
    min: 'arg4',
    max: 'arg5',
  }
  const { question } = checkAggregateOptions('usdt:t:x', terms)
  const arch = process.arch === 'arm64' ? 'arm64' : 'x64'
  const shapes = Array.from({ length: 12 }, (_, index) => {
    const text = Array.from({ length: 6 }, (_, place) =>
      arch === 'x64' ? `8@${8 * (index + place)}(%rsp)` : `8@[sp, ${8 * (index + place)}]`,
    )
    return { operands: bindOperands(parseOperands(text.join(' '), arch), 0n, new Map()), strings: [], stringLimit: 64 }
  })
  const layout = layoutGroups(
    question,
    shapes.map((shape) => ({ shape, probe: 'usdt:t:x' })),
  )
  const store = await GroupStore.open(native, layout, 2)
  const statsFd = createMap(native, {
    type: BPF_MAP_TYPE_PERCPU_ARRAY,
    keyBytes: 4,
    valueBytes: STATS_VALUE_BYTES,
    maxEntries: 1,
    name: 'test_stats',
  })
  t.after(() => {
    store.close()
    native.closeFd(statsFd)
  })
  for (const attach of HAS_MULTI ? (['perf', 'multi'] as const) : (['perf'] as const)) {
    const insns = compileCapture({
      ...{ arch, attach, probeId: 1, slot: 0, statsFd, ringFd: null, ringBytes: 0, excludeTid: null },
      shapes: attach === 'perf' ? shapes.slice(0, 1) : shapes,
      sink: new ValueSink({ layout, maps: store.maps, compareExchange: await hasCompareExchange(native) }),
    })
    t.diagnostic(`${attach}: ${insns.length / 8} instructions`)
    const expectedAttachType = attach === 'multi' ? BPF_TRACE_UPROBE_MULTI : 0
    native.closeFd(
      await loadProgram(native, { type: BPF_PROG_TYPE_KPROBE, expectedAttachType, insns, license: BPF_LICENSE, name: 'test_capture' }),
    )
  }
})
