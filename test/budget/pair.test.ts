/**
 * What the two probes of a latency cost, taken together; with probes that are made up.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Pair } from '../../lib/aggregate/pair.js'
import { FakeProbe } from './fake-probe.js'

function pairOf(by: 'frame' | 'any' | 'argument'): { pair: Pair; start: FakeProbe; end: FakeProbe } {
  const [start, end] = [new FakeProbe(), new FakeProbe()]
  const parts: unknown[] = [end, null, null, by]
  const pair = new Pair(...(parts as ConstructorParameters<typeof Pair>))
  Object.assign(pair, { start })
  return { pair, start, end }
}

for (const by of ['any', 'argument'] as const) {
  test(`between two probes, matched by ${by}, every hit of either is paid for`, () => {
    const { pair, start, end } = pairOf(by)
    ;[start.hits, end.hits] = [10, 3]
    assert.equal(pair.trapped(), 13)
    ;[start.hits, end.hits] = [10, 9]
    assert.equal(pair.trapped(), 19)
  })
}

test('a call is paid for once, and so is one of which only the entry or the return was noticed', () => {
  const { pair, start, end } = pairOf('frame')
  ;[start.hits, end.hits] = [10, 10]
  assert.equal(pair.trapped(), 10)
  // Calls that return while nobody looks where they begin, and then calls that are left.
  ;[start.hits, end.hits] = [10, 15]
  assert.equal(pair.trapped(), 15)
  ;[start.hits, end.hits] = [15, 15]
  assert.equal(pair.trapped(), 20)
})

test('a latency ends for its budget when either of its probes does', () => {
  for (const which of ['start', 'end'] as const) {
    const probes = pairOf('any')
    probes[which].hits = null
    assert.equal(probes.pair.trapped(), null)
  }
})

test('the time of a switch is paid for by whichever probe is seen less of', () => {
  const { pair, start, end } = pairOf('any')
  ;[start.unseenShare, end.unseenShare] = [0.1, 0.4]
  assert.equal(pair.unseenShare, 0.4)
})
