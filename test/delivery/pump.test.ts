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
  /** What is done when a batch is taken. */
  onTake = (): unknown => undefined
  /** A clock, on which taking a batch passes time. */
  nowMs = 0
  takeMs = 0.001
  readonly errors: unknown[] = []
  /** What the next batches are refused with. */
  readonly failures: Error[] = []
  readonly pump = new Pump(
    {
      take: () => {
        this.looks++
        if (this.waiting === 0) return false
        this.onTake()
        this.nowMs += this.takeMs
        this.waiting--
        const failure = this.failures.shift()
        if (failure !== undefined) throw failure
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

/** Until so many batches were taken, which is one a turn at the least. */
async function finished(source: Source, taken: number): Promise<void> {
  for (let turns = 0; source.taken < taken && turns < 2 * taken; turns++) await nextTurn()
  await someTurns()
  assert.deepEqual([source.taken, source.waiting], [taken, 0])
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
  await finished(source, 100)
  source.offer(1)
  assert.equal(source.taken, 101)
})

test('what listeners do when they have returned counts for the turn', async () => {
  const source = new Source()
  for (let rings = 0; rings < 3; rings++) {
    source.offer(1)
    source.nowMs += 3
  }
  assert.equal(source.taken, 1)
  await finished(source, 3)
})

test('rings of turns of their own are answered at once, however late they are', async () => {
  const source = new Source()
  source.takeMs = 0.9
  for (let rings = 1; rings <= 3; rings++) {
    source.offer(1)
    assert.equal(source.taken, rings)
    await someTurns()
    assert.equal(source.looks, rings)
    source.nowMs += 10
  }
})

test('a batch that takes long gives the event loop its turn before the next', async () => {
  const source = new Source()
  source.takeMs = 3
  source.offer(1)
  source.offer(1)
  assert.equal(source.taken, 1)
  await finished(source, 2)
})

test('an error is told, and what waits behind it is taken without another ring', async () => {
  const source = new Source()
  source.failures.push(new Error('first'), new Error('second'))
  source.offer(3)
  await finished(source, 1)
  assert.deepEqual(source.errors.map(String), ['Error: first', 'Error: second'])
  source.failures.push(new Error('alone'))
  source.offer(1)
  assert.equal(source.errors.length, 3)
  source.offer(1)
  assert.equal(source.taken, 2)
})

/** Immediates that keep the process alive. */
function immediates(): number {
  return process.getActiveResourcesInfo().filter((kind) => kind === 'Immediate').length
}

test('a batch keeps no process alive, and behind the last of several the turn ends by itself', async () => {
  const source = new Source()
  const before = immediates()
  source.offer(1)
  assert.equal(immediates(), before)
  await someTurns()
  const during: number[] = []
  source.onTake = () => during.push(immediates())
  const quiet = immediates()
  source.offer(2)
  await finished(source, 3)
  // While the pump runs, one for the end of the turn; the other is that of this test, which waits for turns.
  assert.deepEqual(during, [quiet, quiet + 2])
  assert.equal(immediates(), quiet)
})
