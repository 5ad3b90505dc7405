/**
 * The end of an aggregation whose probe could not be detached in order, as when somebody else has written its counter: whoever waits for the end is told all the same.
 */
import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import test from 'node:test'
import { Aggregation, type AggregationParts } from '../../lib/aggregate/aggregation.js'
import type { ProbeStateChange } from '../../lib/index.js'
import { childLogger } from '../../lib/log.js'

const NOTHING_SEEN = { seenMs: 0, outMs: 0 }

test('an end that fails is reported, and the last state and the end of the aggregation are told', async () => {
  const failure = new Error('the counter was written by somebody else')
  const start = Object.assign(new EventEmitter(), { state: 'attached', seenTime: NOTHING_SEEN, detach: () => Promise.reject(failure) })
  const calls: string[] = []
  const store = {
    takeRest: () => Promise.reject(new Error('the maps cannot be read')),
    losses: () => ({ unreadable: 0, contended: 0, start: 0, unmatched: 0, unfinished: 0, ended: 0 }),
    close: () => calls.push('maps closed'),
  }
  const parts = { start, pair: null, signal: null, groups: {}, store, log: childLogger(false, 'test'), onEnded: () => calls.push('ended') }
  const aggregation = new Aggregation(parts as unknown as AggregationParts)
  const told: unknown[] = []
  aggregation.on('state', ({ state }) => told.push(state))
  const reported = new Promise((resolve) => aggregation.once('error', resolve))
  const change: ProbeStateChange = { state: 'target-exited', reason: 'exit', pid: 7, mayHaveMissed: false }
  start.emit('state', change)
  assert.equal(await reported, await aggregation.detach().catch((error: unknown) => error))
  assert.deepEqual(told, ['target-exited'])
  assert.deepEqual(calls, ['maps closed', 'ended'])
})

test('what has begun is forgotten and the maps are closed also when neither groups nor counts can be read', async () => {
  const failure = new Error('the counts cannot be read')
  const start = Object.assign(new EventEmitter(), { state: 'attached', seenTime: NOTHING_SEEN, detach: () => Promise.resolve() })
  const calls: string[] = []
  const store = {
    takeRest: () => Promise.reject(new Error('the maps cannot be read')),
    losses: () => {
      throw failure
    },
    close: () => calls.push('maps closed'),
  }
  const end = Object.assign(new EventEmitter(), { state: 'attached', detach: async () => calls.push('end detached') })
  const pair = { end, starts: { close: async () => calls.push('starts closed') } }
  const parts = { start, pair, signal: null, groups: {}, store, log: childLogger(false, 'test'), onEnded: () => calls.push('ended') }
  const aggregation = new Aggregation(parts as unknown as AggregationParts)
  await assert.rejects(aggregation.detach(), failure)
  assert.deepEqual(calls, ['end detached', 'starts closed', 'maps closed', 'ended'])
})

test('the first snapshot begins when hits were first counted, which was before the attach came to its end', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: 1000 })
  const start = Object.assign(new EventEmitter(), { state: 'attached', seenTime: { seenMs: 70.5, outMs: 4 } })
  const store = { take: async (_: unknown, { onTurn }: { onTurn(): void }) => onTurn() }
  const groups = { groups: async () => [], other: () => null, reset: () => undefined }
  const parts = { start, pair: null, signal: null, groups, store, log: childLogger(false, 'test'), onEnded: () => undefined }
  const aggregation = new Aggregation(parts as unknown as AggregationParts)
  t.mock.timers.tick(100)
  start.seenTime = { seenMs: 170.5, outMs: 4 }
  const { startTimeMs, timeMs, seenMs } = await aggregation.snapshot({ reset: true })
  assert.deepEqual([startTimeMs, timeMs, seenMs], [925, 1100, 170.5])
  t.mock.timers.tick(10)
  start.seenTime = { seenMs: 180.5, outMs: 4 }
  const next = await aggregation.snapshot()
  assert.deepEqual([next.startTimeMs, next.timeMs, next.seenMs], [1100, 1110, 10])
})
