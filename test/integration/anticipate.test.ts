/**
 * That an attach has the kernel wait ahead (lib/register/anticipate.ts) changes nothing but the time that it takes.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { EINVAL, EMFILE } from '../../lib/errno.js'
import { UprobeError } from '../../lib/errors.js'
import { loadNative, type Native } from '../../lib/native.js'
import { Anticipation } from '../../lib/register/anticipate.js'
import { buildTarget } from '../support/build.js'
import { HAS_MULTI } from '../support/features.js'
import { holdings } from '../support/leftovers.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { threadsNamed } from '../support/threads.js'
import { newTracer } from '../support/tracing.js'
import { turns, waitFor } from '../support/wait.js'

const ROOT = needs({})
const GCC = needs({ programs: ['gcc'] })
/** Elsewhere whoever has attached before does not ask any more. */
const LINKS = HAS_MULTI ? GCC : { skip: 'this kernel has no uprobe_multi link' }

/** What an attach does of it that finds sites. */
async function anticipate(native: Native, kernelRelease: string): Promise<void> {
  const anticipation = new Anticipation(native, 'usdt:t:end', kernelRelease)
  anticipation.found()
  await anticipation.over()
}

/** Descriptors of what it makes. */
function descriptors(): string[] {
  return Object.keys(holdings().descriptors).filter((name) => name.includes('memfd') || name.includes('bpf'))
}

test('nothing is left of it, and where there are no links it says so', ROOT, async () => {
  const native = loadNative()
  if (HAS_MULTI) await native.bpfAnticipateUprobes()
  else await assert.rejects(native.bpfAnticipateUprobes(), { code: 'EINVAL' })
  await waitFor('the link to be closed', () => descriptors().length === 0)
  await waitFor('the thread to end', () => threadsNamed('uprobe-ahead').length === 0)
})

test('a kernel without links is asked once; who is short of something is asked again', async () => {
  const asked: number[] = []
  const failing = (errno: number): Native =>
    ({
      bpfAnticipateUprobes: () => {
        asked.push(errno)
        return Promise.reject(Object.assign(new Error('refused'), { errno: -errno, code: 'E', syscall: 'bpf' }))
      },
    }) as unknown as Native
  for (const errno of [EINVAL, EMFILE]) {
    const native = failing(errno)
    await anticipate(native, '6.12.0')
    await anticipate(native, '6.12.0')
  }
  assert.deepEqual(asked, [EINVAL, EMFILE, EMFILE])
})

function limitReached(): Error {
  return Object.assign(new Error('no descriptor'), { errno: -EMFILE, code: 'EMFILE', syscall: 'perf_event_open' })
}

test('an attach is over when it is, whether it succeeds or not, and does not fail with it', LINKS, async (t) => {
  const path = buildTarget(t, 'latency')
  const target = await Target.start(t, path)
  const tracer = newTracer(t)
  const [end] = notesOf(path, 't:end')
  assert.ok(end !== undefined)
  for (const [name, strings, outcome] of [
    ['end', [], 'attached'],
    ['end', [7], 'ERR_UPROBE_BAD_OPTION'],
    ['end', [], 'ERR_UPROBE_LIMIT'],
    ['of_the_attach_that_waits', [], 'ERR_UPROBE_NOT_FOUND'],
    ['end', [], 'Error: the user has seen enough'],
  ] as const) {
    let settle: ((error: Error) => void) | null = null
    t.mock.method(
      loadNative(),
      'bpfAnticipateUprobes',
      () =>
        new Promise<void>((_, reject) => {
          settle = reject
        }),
    )
    if (outcome === 'ERR_UPROBE_LIMIT') t.mock.method(loadNative(), 'perfEventOpenUprobe', () => Promise.reject(limitReached()))
    const controller = new AbortController()
    let seen: unknown = null
    const attaching = tracer.attach(`usdt:t:${name}`, { pid: target.pid, strings: [...strings], signal: controller.signal }).then(
      () => {
        seen = 'attached'
      },
      (error: unknown) => {
        seen = error instanceof UprobeError ? error.code : String(error)
      },
    )
    await waitFor('the beginning', () => settle !== null)
    if (outcome === 'attached') await waitFor('the registration', () => isArmed(target.pid, path, end.fileOffset))
    if (outcome === 'Error: the user has seen enough') controller.abort(new Error('the user has seen enough'))
    await turns(200)
    assert.equal(seen, null)
    ;(settle as unknown as (error: Error) => void)(new Error('the kernel does not like it'))
    await attaching
    assert.equal(seen, outcome)
    t.mock.reset()
  }
})

/** What stands for the kernel where it matters only how often it is asked. */
function counting(): { readonly native: Native; asked(): number } {
  let count = 0
  const native = {
    bpfAnticipateUprobes: async () => {
      count++
    },
  } as unknown as Native
  return { native, asked: () => count }
}

test('kernels are left alone whose links do harm when they fail', async () => {
  const { native, asked } = counting()
  for (const release of ['6.6.0', '6.6.53-1', '6.7.1', '6.8.0-45-generic', '6.10.12', '6.11.1']) await anticipate(native, release)
  assert.equal(asked(), 0)
  const sound = ['6.6.54', '6.10.13', '6.11.2', '6.12.1', '7.0.0']
  for (const release of sound) await anticipate(native, release)
  assert.equal(asked(), sound.length)
})

test('a search that found nothing, or has not yet, makes the same search wait until it finds something', async (t) => {
  const { native, asked } = counting()
  let now = 1e6
  t.mock.method(performance, 'now', () => now)
  const search = async (name: string): Promise<Anticipation> => {
    const anticipation = new Anticipation(native, `a search for ${name}`, '6.12.0')
    anticipation.look()
    await anticipation.over()
    return anticipation
  }
  const [first, meanwhile] = [await search('a'), await search('a')]
  assert.equal(asked(), 1)
  first.found()
  assert.equal(asked(), 1, 'it is fresh')
  meanwhile.found()
  await meanwhile.over()
  assert.equal(asked(), 2)
  await search('a')
  assert.equal(asked(), 3, 'the last found something')
  await search('a')
  ;(await search('b')).found()
  await search('a')
  assert.equal(asked(), 4, 'another that finds something is another matter')
  for (let other = 0; other < 300; other++) await search(`other ${other}`)
  assert.ok(asked() <= 4 + 256)
  const full = asked()
  await search('a')
  await search('one that would be too many')
  assert.equal(asked(), full, 'nothing begins early while so many are missing')
  now += 60_001
  const last = await search('a')
  assert.equal(asked(), full + 1, 'what is long ago is forgotten')
  last.found()
})

test('those that come while it is under way take part in it', async () => {
  const { native, asked } = counting()
  const all = ['a', 'b', 'c'].map((name) => new Anticipation(native, `at once ${name}`, '6.12.0'))
  for (const anticipation of all) anticipation.found()
  await Promise.all(all.map((anticipation) => anticipation.over()))
  assert.equal(asked(), 1)
  const [late] = all
  const next = new Anticipation(native, 'at once d', '6.12.0')
  next.found()
  await Promise.all([late?.over(), next.over()])
  assert.equal(asked(), 2)
})

test('a search that took long asks anew when it has found something', async (t) => {
  const { native, asked } = counting()
  let now = 1000
  t.mock.method(performance, 'now', () => now)
  for (const [tookMs, times] of [
    [1, 1],
    [100, 2],
  ] as const) {
    const before = asked()
    const anticipation = new Anticipation(native, 'usdt:search:slow', '6.12.0')
    anticipation.look()
    await anticipation.over()
    now += tookMs
    anticipation.found()
    await anticipation.over()
    assert.equal(asked() - before, times)
  }
})

test(
  'an attach asks once for a name that is not there, not for a file that is not there, and not where no link is wanted',
  GCC,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'latency'))
    const asked = t.mock.method(loadNative(), 'bpfAnticipateUprobes')
    const tracer = newTracer(t)
    const asks = async (attaching: () => Promise<unknown>): Promise<boolean> => {
      const before = asked.mock.callCount()
      await attaching()
      return asked.mock.callCount() > before
    }
    const find = (registration: 'auto' | 'perf') => () => tracer.attach('usdt:t:end', { pid: target.pid, registration })
    const miss = (spec: string) => () => assert.rejects(tracer.attach(spec, { pid: target.pid }), UprobeError)
    // A kernel without links has said so after this.
    await find('auto')()
    assert.equal(await asks(find('auto')), HAS_MULTI)
    for (const expected of [HAS_MULTI, false, false]) assert.equal(await asks(miss('usdt:t:of_the_attach_that_asks_once')), expected)
    assert.equal(await asks(miss('usdt:/no/file:t:end')), false)
    const other = await Target.start(t, buildTarget(t, 'usdt'))
    for (const expected of [HAS_MULTI, false]) {
      await find('auto')()
      assert.equal(
        await asks(() => assert.rejects(tracer.attach('usdt:t:end', { pid: other.pid }), { code: 'ERR_UPROBE_NOT_FOUND' })),
        expected,
      )
    }
    assert.equal(await asks(() => assert.rejects(tracer.attach('usdt:t:end'), { code: 'ERR_UPROBE_BAD_OPTION' })), false)
    assert.equal(await asks(find('auto')), HAS_MULTI)
    assert.equal(await asks(find('perf')), false)
  },
)
