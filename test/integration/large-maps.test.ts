/**
 * The maps of a probe are made on another thread, however large they are: the kernel clears all of their memory at once. What may happen meanwhile leaves nothing behind.
 */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import { type AttachOptions, Tracer, type UprobeError } from '../../lib/index.js'
import { type BpfMap, loadNative } from '../../lib/native.js'
import { possibleCpus } from '../../lib/register/stats.js'
import { buildTarget } from '../support/build.js'
import { holdings } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { newTracer, refused } from '../support/tracing.js'
import { turns } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
/** So much the event loop may wait for. */
const SMALL_BYTES = 4096

const RING = 'uprobe_ring'

/** Calls `instead` for the maps that are made on another thread; it gets the map, and what makes it. */
function atLargeMaps(t: TestContext, instead: (map: BpfMap, create: () => Promise<number>) => Promise<number>): void {
  const native = loadNative()
  const create = native.bpfMapCreateLarge.bind(native)
  t.mock.method(native, 'bpfMapCreateLarge', (map: BpfMap) => instead(map, () => create(map)))
}

test('the event loop waits for the smallest maps only', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const native = loadNative()
  const create = native.bpfMapCreate.bind(native)
  const waitedFor: string[] = []
  t.mock.method(native, 'bpfMapCreate', (map: BpfMap) => {
    const bytes = map.type === 27 ? map.maxEntries : (map.keyBytes + map.valueBytes) * map.maxEntries * possibleCpus(native)
    if (bytes > SMALL_BYTES) waitedFor.push(map.name)
    return create(map)
  })
  const { pid } = target
  const tracer = newTracer(t, { ringBytes: 64 << 20 })
  await tracer.attach('usdt:t:*', { pid, stack: true })
  await tracer.aggregate('usdt:t:gated', { pid, histogram: 'arg0', by: 'arg1', scale: 5 })
  await tracer.aggregate({ from: 'usdt:t:gated', to: 'usdt:t:shared', match: 'tid' }, { pid })
  assert.deepEqual(waitedFor, [])
})

test('attaches at one time share one ring', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  let rings = 0
  atLargeMaps(t, (map, create) => {
    if (map.name !== RING) return create()
    rings++
    return turns(50).then(create)
  })
  const tracer = newTracer(t)
  const probes = await Promise.all(['usdt:t:gated', 'usdt:t:shared'].map((spec) => tracer.attach(spec, { pid: target.pid })))
  assert.deepEqual([probes.length, rings], [2, 1])
})

test('a ring that could not be made is made for the next attach', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  let rings = 0
  atLargeMaps(t, async (map, create) => {
    if (map.name !== RING || ++rings > 1) return create()
    throw Object.assign(new Error('no memory'), { code: 'ENOMEM', errno: 12, syscall: 'bpf(BPF_MAP_CREATE)' })
  })
  const tracer = newTracer(t)
  await refused(tracer.attach('usdt:t:gated', { pid: target.pid }), 'ERR_UPROBE_LIMIT')
  await tracer.attach('usdt:t:gated', { pid: target.pid })
  assert.equal(rings, 2)
})

/** The maps, programs and links that this process holds. */
function bpfObjects(): Readonly<Record<string, number>> {
  return Object.fromEntries(Object.entries(holdings().descriptors).filter(([kind]) => kind.startsWith('anon_inode:bpf')))
}

interface Gate {
  readonly opened: Promise<void>
  open(): void
}

function newGate(): Gate {
  let open = (): void => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { opened, open: () => open() }
}

const WAYS = {
  attach: (tracer: Tracer, options: AttachOptions) => tracer.attach('usdt:t:gated', { ...options, stack: true }),
  aggregate: (tracer: Tracer, options: AttachOptions) =>
    tracer.aggregate({ from: 'usdt:t:gated', to: 'usdt:t:shared', match: 'tid' }, { ...options, by: 'tid' }),
}

for (const [name, way] of [
  [RING, 'attach'],
  ['uprobe_stats', 'attach'],
  ['uprobe_stacks', 'attach'],
  ['uprobe_groups', 'aggregate'],
  ['uprobe_starts', 'aggregate'],
] as const) {
  for (const how of ['closed', 'aborted'] as const) {
    test(`an ${way} that is ${how} while ${name} is being made leaves nothing`, GCC, async (t) => {
      const target = await Target.start(t, buildTarget(t, 'usdt'))
      const [begun, goOn] = [newGate(), newGate()]
      atLargeMaps(t, async (map, create) => {
        const fd = await create()
        if (map.name !== name) return fd
        begun.open()
        await goOn.opened
        return fd
      })
      const before = bpfObjects()
      const tracer = new Tracer()
      const controller = new AbortController()
      const outcome = WAYS[way](tracer, { pid: target.pid, signal: controller.signal }).then(
        () => null,
        (error: unknown) => error,
      )
      await begun.opened
      if (how === 'aborted') controller.abort(new Error('enough'))
      const closing = how === 'closed' ? tracer.close() : null
      goOn.open()
      await closing
      if (how === 'closed') assert.deepEqual(bpfObjects(), before)
      const error = await outcome
      assert.ok(error instanceof Error)
      assert.equal(how === 'closed' ? (error as UprobeError).code : error.message, how === 'closed' ? 'ERR_UPROBE_CLOSED' : 'enough')
      await tracer.close()
      assert.deepEqual(bpfObjects(), before)
      assert.equal(await target.ask('counters'), '0 0 0 0')
    })
  }
}
