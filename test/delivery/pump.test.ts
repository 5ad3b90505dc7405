/**
 * When batches are taken: how often somebody looks for one, and that a flood of them leaves the event loop its turns.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { Pump } from '../../lib/delivery/pump.js'

/** A reader of which batches are taken, and how often somebody looked for one. */
class Source {
  waiting = 0
  taken = 0
  looks = 0
  /** A clock on which only taking a batch passes time. */
  nowMs = 0
  takeMs = 0.001
  readonly errors: unknown[] = []
  failure: Error | null = null
  readonly pump = new Pump(
    {
      take: () => {
        this.looks++
        if (this.failure !== null) throw this.failure
        if (this.waiting === 0) return false
        this.nowMs += this.takeMs
        this.waiting--
        this.taken++
        return true
      },
      waits: () => this.waiting > 0,
      onError: (error) => this.errors.push(error),
    },
    () => this.nowMs,
  )

  offer(batches: number): void {
    this.waiting += batches
    this.pump.ring()
  }
}

/** Until everything that has been begun has come to its end. */
async function someTurns(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await nextTurn()
}

test('a batch behind which nothing waits is taken at its ring, and nobody looks for another', async () => {
  const source = new Source()
  for (let rings = 1; rings <= 3; rings++) {
    source.offer(1)
    assert.equal(source.taken, rings)
    await someTurns()
    assert.equal(source.looks, rings)
  }
})

test('of batches that wait, one is taken in each turn of the event loop', async () => {
  const source = new Source()
  source.takeMs = 0.6
  source.offer(3)
  for (let turn = 1; turn <= 3; turn++) {
    assert.equal(source.taken, turn)
    // Rings while more are taken bring nothing forward.
    if (turn < 3) source.pump.ring()
    assert.equal(source.taken, turn)
    await nextTurn()
  }
  await someTurns()
  assert.deepEqual([source.taken, source.looks], [3, 3])
})

test('rings that do not end do not keep the event loop from its turn', async () => {
  const source = new Source()
  source.takeMs = 0.3
  let turned = false
  setImmediate(() => {
    turned = true
  })
  // As Node answers rings: as long as there are any, in one turn.
  for (let rings = 0; rings < 100; rings++) source.offer(1)
  assert.equal(source.taken, 4)
  await nextTurn()
  assert.equal(turned, true)
  while (source.waiting > 0) await nextTurn()
  assert.equal(source.taken, 100)
  await someTurns()
  source.offer(1)
  assert.equal(source.taken, 101)
})

test('rings that are apart belong to turns of their own', async () => {
  const source = new Source()
  source.takeMs = 0.9
  for (let rings = 1; rings <= 3; rings++) {
    source.nowMs += 10
    source.offer(1)
  }
  assert.equal(source.taken, 3)
  await someTurns()
  assert.equal(source.looks, 3)
})

test('a batch that takes long gives the event loop its turn before the next', async () => {
  const source = new Source()
  source.takeMs = 3
  source.offer(1)
  source.offer(1)
  assert.equal(source.taken, 1)
  await nextTurn()
  assert.equal(source.taken, 2)
})

test('an error is told, at a ring and behind it, and the next ring is answered', async () => {
  const source = new Source()
  source.failure = new Error('refused')
  source.offer(1)
  assert.deepEqual(source.errors, [source.failure])
  source.failure = null
  source.offer(1)
  assert.equal(source.taken, 1)
  source.failure = new Error('refused later')
  await someTurns()
  assert.equal(source.errors.length, 2)
  source.failure = null
  source.pump.ring()
  await someTurns()
  assert.deepEqual([source.taken, source.waiting], [2, 0])
})
