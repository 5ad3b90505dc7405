/**
 * Stacks of programs with frame pointers, whose chains of calls are known: every frame in its order, each hit with its own stack, equal stacks once.
 *
 * In guests on 5.10, newest and arm64-6.12 only: it takes long, and the others lie between the first two.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { inspect } from 'node:util'
import { setStackLimits } from '../../lib/delivery/stack-table.js'
import type { Hit, StackFrame } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { HAS_SLEEPABLE, REGISTRATIONS } from '../support/features.js'
import { needs } from '../support/needs.js'
import { functionOffset } from '../support/notes.js'
import { Target } from '../support/target.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

/** The names of the program's own functions, innermost first, up to main. */
function chain(frames: readonly StackFrame[]): (string | null)[] {
  const names = frames.map(({ symbol }) => symbol)
  return names.slice(0, names.indexOf('main') + 1)
}

/** The addresses of a hit's stack. */
function addresses(hit: Hit | undefined): readonly bigint[] {
  const stack = hit?.stack
  assert.ok(Array.isArray(stack), `there is a stack: ${inspect(stack)}`)
  return stack
}

async function framesOf(hit: Hit | undefined): Promise<readonly StackFrame[]> {
  assert.ok(hit !== undefined)
  return hit.symbolize()
}

for (const linkage of ['pie', 'no-pie', 'static'] as const) {
  for (const registration of REGISTRATIONS) {
    test(`a function's stack has every caller once, main included (${linkage}, ${registration})`, GCC, async (t) => {
      const target = await Target.start(t, buildTarget(t, 'stacks', linkage))
      const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true, registration })
      const hits = collect(probe)
      assert.equal(await target.askNumber('chain 5'), 5)
      await detachComplete(probe, 5)
      const frames = await framesOf(hits[0])
      assert.deepEqual(chain(frames), ['leaf', 'chain_c', 'chain_b', 'chain_a', 'command', 'main'])
      const [first, second] = frames
      assert.deepEqual(
        { module: first?.module, offset: first?.offset, fileOffset: first?.fileOffset },
        { module: target.program, offset: 0n, fileOffset: functionOffset(target.program, 'leaf') },
      )
      assert.equal(second?.module, target.program)
      assert.ok((second?.offset ?? 0n) > 0n)
      assert.deepEqual(
        frames.map(({ address }) => address),
        addresses(hits[0]),
      )
      // Equal stacks are one array.
      assert.equal(new Set(hits.map((hit) => hit.stack)).size, 1)
    })
  }
}

test('each hit has its own stack, whichever way it came', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true })
  const hits = collect(probe)
  assert.equal(await target.askNumber('ways 20'), 40)
  await detachComplete(probe, 40)
  const ways = await Promise.all(hits.map(async (hit) => chain(await hit.symbolize())[1]))
  assert.deepEqual(
    ways,
    Array.from({ length: 40 }, (_, index) => (index % 2 === 0 ? 'way_left' : 'way_right')),
  )
  assert.equal(new Set(hits.map((hit) => hit.stack)).size, 2)
})

test('a listener finds the stack of a hit, also if both came in one batch behind other hits', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true })
  const stacks: unknown[] = []
  probe.on('hit', ({ stack }) => stacks.push(stack))
  await target.ask('chain 1')
  await waitFor('the first hit', () => stacks.length === 1)
  target.tell('chain 1')
  target.tell('ways 1')
  // The event loop does not turn meanwhile, so that all of it waits in one batch.
  while (probe.stats().hits < 4) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5)
  await detachComplete(probe, 4)
  assert.equal(stacks[1], stacks[0])
  assert.ok(stacks.every(Array.isArray), inspect(stacks))
  assert.equal(new Set(stacks).size, 3)
})

test('a probe within a function begins with that function', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('usdt:s:middle', { pid: target.pid, stack: true })
  const hits = collect(probe)
  assert.equal(await target.askNumber('usdt 3'), 3)
  await detachComplete(probe, 3)
  assert.deepEqual(chain(await framesOf(hits[2])), ['middle', 'command', 'main'])
  assert.deepEqual(
    hits.map((hit) => hit.args),
    [[0], [1], [2]],
  )
})

test('a function that is named by its offset has its caller, too', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const offset = functionOffset(target.program, 'leaf').toString(16)
  const probe = await newTracer(t).attach(`uprobe:${target.program}:0x${offset}`, { pid: target.pid, stack: true })
  const hits = collect(probe)
  await target.ask('chain 1')
  await detachComplete(probe, 1)
  assert.deepEqual(chain(await framesOf(hits[0])), ['leaf', 'chain_c', 'chain_b', 'chain_a', 'command', 'main'])
})

test('a return has the stack of the caller that it returns to', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('uretprobe:leaf', { pid: target.pid, stack: true })
  const hits = collect(probe)
  await target.ask('chain 1')
  await detachComplete(probe, 1)
  const names = chain(await framesOf(hits[0]))
  assert.deepEqual(names, ['chain_c', 'chain_b', 'chain_a', 'command', 'main'])
})

test('recursion is shown as deep as it goes, and no deeper than was asked for', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const tracer = newTracer(t)
  const deep = await tracer.attach('uprobe:leaf', { pid: target.pid, stack: true, stackDepth: 512 })
  const shallow = await tracer.attach('uprobe:leaf', { pid: target.pid, stack: true, stackDepth: 10 })
  const shallowest = await tracer.attach('uprobe:leaf', { pid: target.pid, stack: true, stackDepth: 2 })
  const [deepHits, shallowHits, shallowestHits] = [collect(deep), collect(shallow), collect(shallowest)]
  await target.ask('recurse 400')
  await detachComplete(deep, 1)
  await detachComplete(shallow, 1)
  await detachComplete(shallowest, 1)
  assert.deepEqual(chain(await framesOf(deepHits[0])), ['leaf', ...Array(400).fill('dive'), 'command', 'main'])
  assert.deepEqual(
    (await framesOf(shallowHits[0])).map(({ symbol }) => symbol),
    ['leaf', ...Array(9).fill('dive')],
  )
  assert.deepEqual(addresses(shallowHits[0]), addresses(deepHits[0]).slice(0, 10))
  assert.deepEqual(addresses(shallowestHits[0]), addresses(deepHits[0]).slice(0, 2))
})

test('threads that hit at once get each their stack, and none is lost', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true })
  const hits = collect(probe)
  assert.equal(await target.askNumber('threads 4 500'), 2000)
  await detachComplete(probe, 2000)
  const distinct = new Map(hits.map((hit) => [hit.stack, hit]))
  for (const hit of distinct.values()) {
    const names = (await hit.symbolize()).map(({ symbol }) => symbol)
    assert.deepEqual(names.slice(0, 5), ['leaf', 'chain_c', 'chain_b', 'chain_a', 'thread_main'])
  }
  // What called thread_main is libc's, and leaves behind in the frame pointer what it likes.
  assert.ok(distinct.size <= 4, `${distinct.size} stacks`)
})

for (const registration of REGISTRATIONS) {
  test(`a hit that waits for memory keeps its stack while another comes on the same CPU (${registration})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'stacks'))
    const probe = await newTracer(t).attach('uprobe:text', { pid: target.pid, stack: true, strings: [0], registration })
    const hits = collect(probe)
    assert.equal(await target.ask('fault'), 'executed 2')
    await detachComplete(probe, 2)
    const seen = new Map<string, unknown>()
    for (const hit of hits) seen.set((await hit.symbolize())[1]?.symbol ?? '', hit.args[0])
    assert.deepEqual([...seen.keys()].sort(), ['way_absent', 'way_present'])
    assert.equal(seen.get('way_present'), 'present')
    if (HAS_SLEEPABLE) assert.equal(seen.get('way_absent'), 'absent')
  })
}

test('stacks beyond those that the kernel notes are sent with every hit', GCC, async (t) => {
  setStackLimits({ noted: 4, others: 64 })
  t.after(() => setStackLimits())
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true })
  const hits = collect(probe)
  assert.equal(await target.askNumber('depths 30'), 30)
  assert.equal(await target.askNumber('depths 30'), 30)
  await detachComplete(probe, 60)
  for (const [index, hit] of hits.entries()) {
    assert.deepEqual(chain(await hit.symbolize()), ['leaf', ...Array((index % 30) + 1).fill('dive'), 'command', 'main'])
  }
  assert.equal(new Set(hits.map((hit) => hit.stack)).size, 30)
})

test('a hit whose stack is not kept any more says so', GCC, async (t) => {
  setStackLimits({ noted: 1, others: 3 })
  t.after(() => setStackLimits())
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true })
  assert.equal(await target.askNumber('depths 20'), 20)
  const hits: Hit[] = []
  await detachedWithIterator(probe, hits)
  const kept = hits.map((hit) => Array.isArray(hit.stack))
  assert.equal(hits.length, 20)
  // The one that the kernel noted, and the three youngest.
  assert.deepEqual(
    kept.flatMap((is, index) => (is ? [index] : [])),
    [0, 17, 18, 19],
  )
  assert.deepEqual(hits[5]?.stack, { unavailable: 'forgotten' })
  assert.deepEqual(await hits[5]?.symbolize(), [])
})

async function detachedWithIterator(probe: AsyncIterable<Hit> & { detach(): Promise<void> }, hits: Hit[]): Promise<void> {
  const iterator = probe[Symbol.asyncIterator]()
  await probe.detach()
  for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) hits.push(next.value)
}

test('where the ring overflows, hits are lost and counted, and those that are delivered have their stacks', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const tracer = newTracer(t, { ringBytes: 64 * 1024, pendingLimitBytes: 64 * 1024 })
  const probe = await tracer.attach('uprobe:leaf', { pid: target.pid, stack: true })
  const hits = collect(probe)
  const all = 20 * 100
  for (let round = 0; round < 20; round++) target.tell('depths 100')
  // Meanwhile the event loop does not turn, so that nobody takes what the reader has.
  while (probe.stats().hits < all) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20)
  for (let round = 0; round < 20; round++) assert.equal(await target.line(), 'executed 100')
  await probe.detach()
  const stats = probe.stats()
  assert.equal(stats.hits, all)
  assert.ok(stats.lostRing > 0)
  assert.equal(stats.delivered + stats.lost, all)
  assert.equal(hits.length, stats.delivered)
  for (const hit of hits) {
    const names = chain(await hit.symbolize())
    assert.ok(names.length > 3)
    assert.deepEqual(names, ['leaf', ...Array(names.length - 3).fill('dive'), 'command', 'main'])
  }
})

test('strings, a filter and a stack go together', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const options = { pid: target.pid, stack: true, strings: [0], stringLimit: 4096, filter: 'str(arg0).startsWith("chain")' }
  const probe = await newTracer(t).attach('uprobe:command', options)
  const hits = collect(probe)
  await target.ask('chain 1')
  await target.ask('usdt 1')
  await probe.detach()
  assert.equal(probe.stats().filtered, 1)
  assert.equal(hits[0]?.args[0], 'chain 1')
  assert.deepEqual(chain(await framesOf(hits[0])), ['command', 'main'])
})

test('without the option there is no stack', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid })
  const hits = collect(probe)
  await target.ask('chain 1')
  await detachComplete(probe, 1)
  assert.equal(hits[0]?.stack, null)
  await assert.rejects(framesOf(hits[0]), { code: 'ERR_UPROBE_BAD_OPTION' })
})
