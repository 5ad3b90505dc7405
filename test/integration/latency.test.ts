/**
 * The time between two probes, measured in the kernel (test/targets/latency.c): which end belongs to which beginning, and what becomes of those that have no other.
 *
 * In guests on 5.10, newest and arm64-6.12 only: it takes long, and the others lie between the first two.
 */
import assert from 'node:assert/strict'
import { linkSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import type { Aggregation, AggregationStats } from '../../lib/index.js'
import { loadNative } from '../../lib/native.js'
import { Attachment } from '../../lib/register/attachment.js'
import { NOTHING_ELSE } from '../aggregate/counts.js'
import { buildTarget } from '../support/build.js'
import { HAS_LAST_THREAD, HAS_MULTI, REGISTRATIONS } from '../support/features.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { newTracer, refused } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const MULTI = { ...GCC, ...(HAS_MULTI ? {} : { skip: 'the kernel has no uprobe_multi link' }) }
const PAIR = { from: 'usdt:t:begin', to: 'usdt:t:end' }

async function start(t: TestContext): Promise<Target> {
  return Target.start(t, buildTarget(t, 'latency'))
}

async function run(target: Target, ...commands: readonly string[]): Promise<void> {
  for (const command of commands) assert.equal(await target.ask(command), 'done')
}

/** Asserts the counts; those that are not named must be 0. */
function assertCounts(aggregation: Aggregation, expected: Partial<AggregationStats>): void {
  const { seenMs, ...counts } = aggregation.stats()
  assert.ok(seenMs > 0)
  assert.deepEqual(counts, { hits: 0, aggregated: 0, seenFraction: 1, ...NOTHING_ELSE, ...expected })
}

for (const registration of REGISTRATIONS) {
  test(`every call of a recursive function is timed by itself, and takes longer than those inside it (${registration})`, GCC, async (t) => {
    const target = await start(t)
    const options = {
      pid: target.pid,
      registration,
      by: 'arg0',
      min: 'latency',
      max: 'latency',
      sum: 'latency',
      histogram: 'latency',
    } as const
    const aggregation = await newTracer(t).aggregate('uprobe:f_down', options)
    await run(target, 'down 5', 'down 5')
    await aggregation.detach()
    const { groups } = await aggregation.snapshot()
    assert.deepEqual(
      groups.map(({ key, count }) => [...key, count]),
      [0n, 1n, 2n, 3n, 4n, 5n].map((depth) => [depth, 2]),
    )
    for (const [depth, { min, max, sum, histogram }] of groups.entries()) {
      const below = groups[depth - 1]
      assert.ok((below?.min ?? 0n) < (min ?? 0n) && (below?.max ?? 0n) < (max ?? 0n))
      assert.equal(sum, (min ?? 0n) + (max ?? 0n))
      assert.equal(
        histogram?.positive.bucketCounts.reduce((total, count) => total + count, histogram.zeroCount),
        2,
      )
    }
    assertCounts(aggregation, { hits: 12, aggregated: 12 })
  })
}

test('calls that are left by longjmp do not end, and are not taken for those that come after them', GCC, async (t) => {
  const target = await start(t)
  const aggregation = await newTracer(t).aggregate('uprobe:f_*', { pid: target.pid, histogram: 'latency', by: 'arg0' })
  await run(target, 'leave 3 5', 'down 2', 'leave 30 1', 'down 0')
  await aggregation.detach()
  const { groups } = await aggregation.snapshot()
  assert.deepEqual(
    groups.map(({ key, count }) => [...key, count]),
    [
      [0n, 2],
      [1n, 1],
      [2n, 1],
    ],
  )
  const left = 5 * 4 + 31
  assertCounts(aggregation, { hits: left + 4, aggregated: 4, unfinished: left, abandoned: left })
})

test('a function that goes on in another one ends when that returns for both', GCC, async (t) => {
  const target = await start(t)
  const aggregation = await newTracer(t).aggregate('uprobe:f_*', { pid: target.pid, min: 'latency' })
  await run(target, 'tail 2', 'tail 0')
  await aggregation.detach()
  assertCounts(aggregation, { hits: 6, aggregated: 6 })
})

test('of calls within each other, the outer 64 are timed, as the kernel sees no more of them return', GCC, async (t) => {
  const target = await start(t)
  const aggregation = await newTracer(t).aggregate('uprobe:f_down', { pid: target.pid, by: 'arg0', max: 'latency' })
  await run(target, 'down 99', 'down 1')
  await aggregation.detach()
  const { groups } = await aggregation.snapshot()
  assert.deepEqual(
    groups.map(({ key }) => Number(key[0])),
    [0, 1, ...Array.from({ length: 64 }, (_, index) => 36 + index)],
  )
  assertCounts(aggregation, { hits: 102, aggregated: 66, lost: 36, lostStarts: 36 })
})

test('of two probes, the last 64 that began in a thread can end', GCC, async (t) => {
  const target = await start(t)
  const aggregation = await newTracer(t).aggregate(PAIR, { pid: target.pid, by: 'arg0', max: 'latency' })
  await run(target, 'nest 100', 'nest 1')
  await aggregation.detach()
  const { groups } = await aggregation.snapshot()
  assert.deepEqual(
    groups.map(({ key }) => key[0]),
    [0, ...Array.from({ length: 64 }, (_, index) => 36 + index)],
  )
  assertCounts(aggregation, { hits: 101, aggregated: 65, lost: 36, lostStarts: 36, unmatched: 36 })
})

test('ends that are seen before beginnings are, at the attach, do not count', GCC, async (t) => {
  const target = await start(t)
  const { register } = Attachment.prototype
  let attached = 0
  t.mock.method(Attachment.prototype, 'register', async function (this: Attachment, ...parameters: Parameters<typeof register>) {
    // The probe at which latencies end is in, that at which they begin is not.
    if (++attached === 2) await run(target, 'nest 5')
    return register.call(this, ...parameters)
  })
  const aggregation = await newTracer(t).aggregate(PAIR, { pid: target.pid, by: 'arg0' })
  assertCounts(aggregation, {})
  await run(target, 'end 1', 'nest 2')
  await aggregation.detach()
  assertCounts(aggregation, { hits: 2, aggregated: 2, unmatched: 1 })
})

test('two probes in one thread: an end ends the last that began', GCC, async (t) => {
  const target = await start(t)
  const tracer = newTracer(t)
  const all = await tracer.aggregate(PAIR, { pid: target.pid, by: 'arg0' })
  const some = await tracer.aggregate(PAIR, { pid: target.pid, by: 'arg0', filter: 'arg0 != 1 && arg0 != 7' })
  await run(target, 'end 9', 'nest 3', 'begin 7', 'begin 8', 'end 8', 'thread 5')
  await all.detach()
  await some.detach()
  const { groups } = await all.snapshot()
  assert.deepEqual(
    groups.map(({ key, count }) => [...key, count]),
    [
      [0, 1],
      [1, 1],
      [2, 1],
      [8, 1],
    ],
  )
  // All five are measured when nothing else is asked for.
  for (const { count, sum, min, max, histogram } of groups) {
    assert.ok(count === 1 && sum === min && sum === max && histogram !== null)
  }
  const [inner, outer] = [groups[2], groups[0]]
  assert.ok((inner?.sum ?? 0n) < (outer?.sum ?? 0n))
  assertCounts(all, { hits: 6, aggregated: 4, unfinished: 2, abandoned: 1, unmatched: 1 })
  assert.deepEqual(
    (await some.snapshot()).groups.map(({ key, count }) => [...key, count]),
    [
      [0, 1],
      [2, 1],
      [8, 1],
    ],
  )
  assertCounts(some, { hits: 6, filtered: 2, aggregated: 3, unfinished: 1, abandoned: 1, unmatched: 1 })
})

test(
  'matched by an argument, an end ends what began with the same one, in whatever order and thread, in the same life of the process',
  GCC,
  async (t) => {
    const program = buildTarget(t, 'latency')
    const target = await Target.start(t, program)
    const tracer = newTracer(t)
    const options = { path: program, by: 'arg0' }
    const all = await tracer.aggregate({ ...PAIR, match: 'arg0' }, options)
    const some = await tracer.aggregate({ ...PAIR, match: 'arg0' }, { ...options, filter: 'arg0 != 1' })
    await run(
      target,
      'begin 1',
      'begin 2',
      'end 1',
      'end 2',
      'end 2',
      'thread 3',
      'end 3',
      'begin 4',
      'begin 4',
      'end 4',
      'fork 5',
      'end 5',
    )
    await run(target, 'begin 6')
    assert.equal(await target.ask('exec'), 'ready')
    await run(target, 'end 6', 'begin 1', 'end 1')
    await all.detach()
    await some.detach()
    const counts = async (aggregation: Aggregation): Promise<unknown> =>
      Object.fromEntries((await aggregation.snapshot()).groups.map(({ key, count }) => [String(key), count]))
    assert.deepEqual(await counts(all), { 1: 2, 2: 1, 3: 1, 4: 1 })
    assertCounts(all, { hits: 8, aggregated: 5, unfinished: 3, abandoned: 1, unmatched: 3 })
    assert.deepEqual(await counts(some), { 2: 1, 3: 1, 4: 1 })
    assertCounts(some, { hits: 8, filtered: 2, aggregated: 3, unfinished: 3, abandoned: 1, unmatched: 3 })
  },
)

test('matched by an argument, a process lives as long as one of its threads, where the kernel tells of the last', GCC, async (t) => {
  const program = buildTarget(t, 'latency')
  const target = await Target.start(t, program)
  const aggregation = await newTracer(t).aggregate({ ...PAIR, match: 'arg0' }, { path: program, by: 'arg0' })
  await run(target, 'begin 1')
  assert.equal(await target.ask('leader-exit'), 'leader gone')
  await run(target, 'end 1', 'begin 2', 'thread 3', 'end 3', 'end 2')
  await aggregation.detach()
  const expected = HAS_LAST_THREAD ? { aggregated: 3 } : { aggregated: 2, unfinished: 1, unmatched: 1 }
  assertCounts(aggregation, { hits: 3, ...expected })
})

type Move = () => Promise<boolean>

/** Has something done around each move of a probe to another thread. Returns how often probes were moved. */
function aroundMoves(t: TestContext, around: (attachment: Attachment, move: Move) => Promise<boolean>): () => number {
  let moved = 0
  const { moveToLivingThread } = Attachment.prototype
  t.mock.method(
    Attachment.prototype,
    'moveToLivingThread',
    async function (this: Attachment, ...parameters: Parameters<typeof moveToLivingThread>) {
      const result = await around(this, () => moveToLivingThread.call(this, ...parameters))
      moved += 1
      return result
    },
  )
  return () => moved
}

/** Has the probes moved to another thread, when that of a process they are registered on has exited, only when it is opened. Returns how often that was done. */
function holdMoves(t: TestContext): { open(): void; moved(): number } {
  let open: () => void = () => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { open, moved: aroundMoves(t, (_attachment, move) => opened.then(move)) }
}

test('what began before the leader thread exited, and perf events with it, does not end after they are moved', GCC, async (t) => {
  const target = await start(t)
  const aggregation = await newTracer(t).aggregate({ ...PAIR, match: 'arg0' }, { pid: target.pid, by: 'arg0', registration: 'perf' })
  await run(target, 'begin 1', 'begin 2')
  const moves = holdMoves(t)
  assert.equal(await target.ask('leader-exit'), 'leader gone')
  await run(target, 'end 1', 'begin 1')
  assert.equal(aggregation.stats().hits, 2, 'nothing is seen meanwhile')
  moves.open()
  await waitFor('both to be moved', () => moves.moved() === 2)
  await run(target, 'begin 3', 'end 3', 'end 1', 'end 2')
  await aggregation.detach()
  const { groups } = await aggregation.snapshot()
  assert.deepEqual(
    groups.map(({ key, count }) => [...key, count]),
    [[3, 1]],
  )
  // Where the leader's exit counts as that of the process, nothing is found that could be given up.
  assertCounts(aggregation, { hits: 3, aggregated: 1, unfinished: 2, abandoned: HAS_LAST_THREAD ? 2 : 0, unmatched: 2 })
})

test('nothing ends while of several sites at which things begin one is moved before another', GCC, async (t) => {
  const target = await start(t)
  const from = 'usdt:t:begin*'
  const aggregation = await newTracer(t).aggregate({ ...PAIR, from }, { pid: target.pid, by: 'arg0', registration: 'perf' })
  const native = loadNative()
  const { perfEventOpenUprobe } = native
  let opened = 0
  t.mock.method(native, 'perfEventOpenUprobe', async (options: Parameters<typeof perfEventOpenUprobe>[0]) => {
    // The end is in, and of the beginnings the first.
    if (++opened === 3) await run(target, 'begin 1', 'too 2', 'end 2')
    return perfEventOpenUprobe(options)
  })
  let endMoved: () => void = () => undefined
  const end = new Promise<void>((resolve) => {
    endMoved = resolve
  })
  const moved = aroundMoves(t, async (attachment, move) => {
    if (attachment.parts[0]?.sites.length !== 1) return end.then(move)
    const result = await move()
    endMoved()
    return result
  })
  assert.equal(await target.ask('leader-exit'), 'leader gone')
  await waitFor('both to be moved', () => moved() === 2)
  await run(target, 'begin 3', 'end 3', 'end 1')
  await aggregation.detach()
  const { groups } = await aggregation.snapshot()
  assert.deepEqual(
    groups.map(({ key, count }) => [...key, count]),
    [[3, 1]],
  )
  assertCounts(aggregation, { hits: 2, aggregated: 1, unfinished: 1, abandoned: 1, unmatched: 2 })
})

test('the probes of a latency are links where there are any, which go on when the leader thread exits', MULTI, async (t) => {
  const target = await start(t)
  const aggregation = await newTracer(t).aggregate({ ...PAIR, match: 'arg0' }, { pid: target.pid, by: 'arg0' })
  const told: unknown[] = []
  aggregation.on('state', ({ reason, mayHaveMissed }) => told.push([reason, mayHaveMissed]))
  const moves = holdMoves(t)
  assert.equal(await target.ask('leader-exit'), 'leader gone')
  await run(target, 'begin 1', 'end 1', 'begin 2')
  moves.open()
  await waitFor('the exit to be told', () => told.length === 1)
  await run(target, 'end 2')
  await aggregation.detach()
  assert.deepEqual(told, [['leader-exit', false]])
  assertCounts(aggregation, { hits: 2, aggregated: 2 })
})

test('what a program began does not end in the one that takes its place', GCC, async (t) => {
  const program = buildTarget(t, 'latency')
  const target = await Target.start(t, program)
  const aggregation = await newTracer(t).aggregate(PAIR, { path: program })
  await run(target, 'begin 1', 'fork 2')
  assert.equal(await target.ask('exec'), 'ready')
  await run(target, 'end 1')
  assertCounts(aggregation, { hits: 2, unfinished: 2, abandoned: 2, unmatched: 1 })
})

const [THREADS, EACH] = [4, 1000]
/** Pairs are made in rounds until so many snapshots were taken meanwhile. */
const LOOKS = 6

for (const match of ['thread', 'arg0']) {
  test(`latencies of ${THREADS} threads at once, in snapshots that reset, are each seen once (by ${match})`, GCC, async (t) => {
    const target = await start(t)
    const tracer = newTracer(t)
    const pairs = await tracer.aggregate({ ...PAIR, match }, { pid: target.pid, by: ['arg0', 'tid'] })
    const calls = await tracer.aggregate('uprobe:f_down', { pid: target.pid, histogram: 'latency' })
    const seen = new Map<string, number>()
    let called = 0
    const look = async (): Promise<void> => {
      for (const { key, count, histogram } of (await pairs.snapshot({ reset: true })).groups) {
        seen.set(String(key[0]), (seen.get(String(key[0])) ?? 0) + count)
        assert.equal(
          histogram?.positive.bucketCounts.reduce((total, part) => total + part, histogram.zeroCount),
          count,
        )
      }
      called += (await calls.snapshot({ reset: true })).groups[0]?.count ?? 0
    }
    let [looking, rounds] = [true, 0]
    const done = (async () => {
      for (; looking; rounds++) await run(target, `pairs ${THREADS} ${EACH}`)
    })()
    try {
      for (let looks = 0; looks < LOOKS; looks++) await look()
    } finally {
      looking = false
      await done
    }
    await pairs.detach()
    await calls.detach()
    await look()
    t.diagnostic(`${rounds} rounds`)
    const each = rounds * EACH
    assert.deepEqual(Object.fromEntries(seen), { 0: each, 1: each, 2: each, 3: each })
    assert.equal(called, 4 * THREADS * each)
    assertCounts(pairs, { hits: THREADS * each, aggregated: THREADS * each })
    assertCounts(calls, { hits: 4 * THREADS * each, aggregated: 4 * THREADS * each })
  })
}

test('a latency that would begin and end at one site is refused, by whatever name, and one from entry to return is not', GCC, async (t) => {
  const target = await start(t)
  const tracer = newTracer(t)
  const sameFile = `${target.program}-by-another-name`
  linkSync(target.program, sameFile)
  for (const [from, to] of [
    ['usdt:t:begin', 'usdt:t:begin'],
    ['usdt:t:begin', `usdt:${sameFile}:t:begin`],
    ['usdt:t:*', 'usdt:t:b*'],
    ['usdt:t:end', 'usdt:t:*'],
    ['uretprobe:f_down', 'uretprobe:f_*'],
  ] as const) {
    for (const match of from.startsWith('usdt:') ? ['thread', 'arg0'] : ['thread']) {
      const { message } = await refused(tracer.aggregate({ from, to, match }, { pid: target.pid }), 'ERR_UPROBE_BAD_OPTION')
      assert.match(message, /^Option to: the latency would begin and end at the same site, \S+ at \S+:0x[0-9a-f]+,/)
    }
  }
  assert.deepEqual([tracer.probes, tracer.aggregations], [[], []])
  const aggregation = await tracer.aggregate({ from: 'uprobe:f_down', to: 'uretprobe:f_down' }, { pid: target.pid })
  await run(target, 'down 5')
  await aggregation.detach()
  assertCounts(aggregation, { hits: 6, aggregated: 6 })
})

test('what cannot be matched or measured is refused, and nothing stays attached', GCC, async (t) => {
  const target = await start(t)
  const tracer = newTracer(t)
  const ask = (match: string, options: object = {}): Promise<Error> =>
    refused(tracer.aggregate({ ...PAIR, match }, { pid: target.pid, ...options }), 'ERR_UPROBE_BAD_OPTION')
  assert.match((await ask('arg1')).message, /^Option match: column 1: usdt:t:begin has 1 argument/)
  assert.match((await ask('comm')).message, /^Option match: give a number/)
  assert.match((await ask('thread', { sum: 'arg0' })).message, /^Option sum: between two probes only 'latency'/)
  await refused(tracer.aggregate({ ...PAIR, to: 'usdt:t:nowhere' }, { pid: target.pid }), 'ERR_UPROBE_NOT_FOUND')
  assert.deepEqual(tracer.aggregations, [])
})
