/**
 * In which order a probe is switched, so that what is counted and for how long fit together; with parts that are made up.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { PairedArming } from '../../lib/aggregate/paired-arming.js'
import { type Arming, ClaimedArming, CountedArming } from '../../lib/arming.js'
import { SiteWork } from '../../lib/progress.js'
import { refused } from '../support/tracing.js'
import { turns, waitFor } from '../support/wait.js'

/** The parts of an arming. They note what is asked of them. */
class Parts {
  readonly calls: string[] = []
  readonly errors: unknown[] = []
  /** What the next looks for hits find; behind them, what the last one found. */
  hits: number[] = []
  stillHit = 0
  /** Thrown by the pause map. */
  failure: Error | null = null
  readonly pauseMap = {
    set: (paused: boolean) => {
      this.calls.push(paused ? 'ignore hits' : 'count hits')
      if (this.failure !== null) throw this.failure
    },
    mark: () => this.calls.push('mark hits'),
    hits: () => {
      this.calls.push('look for hits')
      if (this.failure !== null) throw this.failure
      return (this.hits.length > 1 ? this.hits.shift() : this.hits[0]) ?? 0
    },
  }
  readonly held = {
    taken: true,
    counters: 1,
    take: async () => this.#note('take', []),
    set: async () => this.#note('set', []),
    clear: async () => this.#note('clear', null),
    releaseLeases: () => undefined,
    finish: async () => this.#note('give back', undefined),
  }
  readonly attachment = {
    register: async () => this.#note('register', []),
    registerAgain: async () => this.#note('register', undefined),
    unregister: async () => this.#note('unregister', undefined),
  }

  claimed(quiet = false): ClaimedArming {
    const onError = (error: unknown): unknown => this.errors.push(error)
    const parts: unknown[] = [this.attachment, this.held, this.pauseMap, () => this.stillHit++, onError, quiet]
    return new ClaimedArming(...(parts as ConstructorParameters<typeof ClaimedArming>))
  }

  counted(): CountedArming {
    const parts: unknown[] = [this.attachment, { drain: async () => undefined }, this.pauseMap]
    return new CountedArming(...(parts as ConstructorParameters<typeof CountedArming>))
  }

  /** Where a latency begins, with the other end, which has so many open. */
  paired(open: number[] = [], own: Arming = this.counted()): PairedArming {
    const pair = {
      end: {
        armed: true,
        ignoreHits: () => this.calls.push('ignore ends'),
        sitOut: async () => this.#note('end out', undefined),
        yield: async () => this.#note('end gives back', true),
        comeBack: async (prepare: () => Promise<void>) => {
          await turns(1)
          this.#note('end in', undefined)
          await prepare()
          this.#note('count ends', undefined)
        },
      },
      get open() {
        return open.shift() ?? 0
      },
      bothSeen: () => this.calls.push('leave out what ended before'),
      endsIgnored: () => {
        this.calls.push('note what is abandoned')
        if (this.failure !== null) throw this.failure
      },
      bothOut: () => this.calls.push('see what was displaced'),
      cut: async () => this.#note('cut', undefined),
    }
    const parts: unknown[] = [own, this.pauseMap, pair]
    return new PairedArming(...(parts as ConstructorParameters<typeof PairedArming>))
  }

  #note<T>(call: string, answer: T): T {
    this.calls.push(call)
    return answer
  }
}

const signal = new AbortController().signal

test('hits of a claimed probe are counted from when all bits are set until before the first is cleared', async () => {
  const parts = new Parts()
  await parts.claimed().arm(SiteWork.quietly(signal))
  assert.deepEqual(parts.calls.splice(0), ['take', 'ignore hits', 'register', 'count hits'])
  const arming = parts.claimed()
  await arming.resume(signal)
  assert.deepEqual(parts.calls.splice(0), ['set', 'register', 'count hits'])
  await arming.pause()
  // The second time for what was under way.
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'clear', 'ignore hits'])
  await arming.resume(signal)
  assert.deepEqual(parts.calls.splice(0), ['set', 'count hits'])
  await arming.disarm()
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'clear', 'unregister'])
})

test('a claimed probe that is paused is still hit if it goes on after the first look, or has been hit by more than can have been under way', async () => {
  for (const [hits, looks] of [
    [[0, 0, 1], 3],
    [[100, 100, 101], 3],
    [[101], 1],
  ] as const) {
    const parts = new Parts()
    parts.hits = [...hits]
    const arming = parts.claimed()
    await arming.resume(signal)
    await arming.pause()
    await waitFor('it to be still hit', () => parts.stillHit > 0)
    assert.equal(parts.calls.filter((call) => call === 'look for hits').length, looks)
    await arming.disarm()
  }
})

test('hits of a counted probe are counted from when all is registered until before the first registration is closed', async () => {
  const parts = new Parts()
  const arming = parts.counted()
  await arming.arm(SiteWork.quietly(signal))
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'register', 'count hits'])
  await arming.resume(signal)
  assert.deepEqual(parts.calls.splice(0), ['register', 'count hits'])
  await arming.pause()
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'unregister'])
  await arming.resume(signal)
  parts.calls.length = 0
  await arming.disarm()
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'unregister'])
})

test('a claimed probe that has to be quiet is taken out at each pause', async () => {
  const parts = new Parts()
  const arming = parts.claimed(true)
  await arming.resume(signal)
  parts.calls.length = 0
  await arming.pause()
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'clear', 'ignore hits', 'unregister'])
  await arming.resume(signal)
  assert.deepEqual(parts.calls.splice(0), ['set', 'register', 'count hits'])
})

const OUT = ['mark hits', 'note what is abandoned', 'ignore ends', 'ignore hits', 'unregister', 'end out', 'see what was displaced']

test('the probes of a latency: beginnings are marked first, and seen last, and what is kept is cut when both are out', async () => {
  const parts = new Parts()
  const arming = parts.paired()
  await arming.arm(SiteWork.quietly(signal))
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'register', 'count hits', 'leave out what ended before'])
  await arming.pause()
  assert.deepEqual(parts.calls.splice(0), [...OUT, 'cut'])
  await arming.resume(signal)
  assert.deepEqual(parts.calls.splice(0), ['end in', 'register', 'count ends', 'count hits'])
  await arming.disarm()
  assert.deepEqual(parts.calls.splice(0), OUT)
})

test('the probes of a latency give way together, and what both hold is given back', async () => {
  const parts = new Parts()
  const arming = parts.paired([], parts.claimed(true))
  await arming.resume(signal)
  parts.calls.length = 0
  assert.equal(await arming.giveWay(), null)
  const { calls } = parts
  assert.deepEqual(calls.slice(0, 4), ['mark hits', 'note what is abandoned', 'ignore ends', 'ignore hits'])
  assert.deepEqual(calls.slice(-3), ['see what was displaced', 'cut', 'end gives back'])
  assert.deepEqual(calls.slice(4, -3).sort(), ['clear', 'end out', 'give back', 'unregister'])
})

test('the probes of a latency are taken out whatever fails', async () => {
  const parts = new Parts()
  const arming = parts.paired()
  await arming.arm(SiteWork.quietly(signal))
  parts.calls.length = 0
  parts.failure = new Error('bpf')
  assert.equal(await arming.disarm(), parts.failure)
  assert.deepEqual(
    parts.calls.filter((call) => call === 'unregister' || call === 'end out'),
    ['unregister', 'end out'],
  )
})

test('what has begun in a latency is waited for until nothing is open', async (t) => {
  const parts = new Parts()
  const open = [3, 2, 1, 0, -1]
  const arming = parts.paired(open)
  t.mock.method(arming, 'patienceMs', () => Number.POSITIVE_INFINITY)
  await arming.arm(SiteWork.quietly(signal))
  await arming.pause()
  assert.deepEqual(open, [-1])
})

test('a latency whose end cannot be counted is taken out again', async () => {
  const parts = new Parts()
  const arming = parts.paired()
  const { pair } = arming as unknown as { pair: { end: { armed: boolean } } }
  pair.end.armed = false
  await refused(arming.resume(signal), 'ERR_UPROBE_CLOSED')
  assert.deepEqual(parts.calls.splice(0), ['end in', 'register', 'count ends', 'ignore hits', 'unregister'])
})

test('a probe whose switch fails is taken out all the same', async () => {
  const parts = new Parts()
  parts.failure = new Error('bpf')
  await assert.rejects(parts.counted().disarm(), parts.failure)
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'unregister'])
  await parts.claimed().disarm()
  assert.deepEqual(parts.calls.splice(0), ['ignore hits', 'clear', 'unregister'])
  assert.deepEqual(parts.errors, [parts.failure])
})

test('hits of a paused probe that cannot be looked for are told of once, and looked for further on', async () => {
  const parts = new Parts()
  const arming = parts.claimed()
  await arming.resume(signal)
  await arming.pause()
  parts.failure = new Error('bpf')
  await waitFor('a second look', () => parts.calls.filter((call) => call === 'look for hits').length === 2)
  assert.deepEqual(parts.errors, [parts.failure])
  parts.failure = null
  await arming.disarm()
})
