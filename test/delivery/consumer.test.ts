/**
 * Who gets a hit, with a host that stands in for the probe: each hit goes to one consumer, in order, or is refused.
 */
import assert from 'node:assert/strict'
import { AsyncLocalStorage } from 'node:async_hooks'
import { describe, it } from 'node:test'
import type { Hit } from '../../lib/capture/hit.js'
import { RecordOffsets } from '../../lib/capture/record-offsets.js'
import { HitBatch } from '../../lib/delivery/batch.js'
import { Consumer } from '../../lib/delivery/consumer.js'
import type { QueueLimits } from '../../lib/delivery/queue.js'
import { UprobeError } from '../../lib/errors.js'

const PLENTY: QueueLimits = { hits: 1000, bytes: 1 << 20 }

/** A batch whose hits are just their numbers. */
function batchOf(...hits: number[]): HitBatch {
  return new HitBatch(
    {
      memory: { byteLength: 64, words: new Int32Array(16) },
      formats: new Uint8Array(0),
      hit: (offset) => offset as unknown as Hit,
      argument: (offset) => offset,
    },
    RecordOffsets.listed(Uint32Array.from(hits)),
  )
}

/** A probe as its consumer sees it. `listener` takes hits until it returns `false`, as a listener that removes itself. */
class Host {
  listener: ((hit: unknown) => boolean) | null = null
  references = 0
  abandoned = 0
  readonly consumer: Consumer

  constructor(limits: QueueLimits = PLENTY) {
    this.consumer = new Consumer(this, limits)
  }

  hasListeners(): boolean {
    return this.listener !== null
  }

  emitBatch(batch: HitBatch): number {
    let taken = 0
    while (taken < batch.length && this.listener !== null) {
      if (!this.listener(batch.at(taken++))) this.listener = null
    }
    return taken
  }

  ref(): void {
    this.references++
  }

  unref(): void {
    this.references--
  }

  /** What the probe does: it detaches, and its end comes later. */
  async abandon(): Promise<void> {
    this.abandoned++
    await new Promise(setImmediate)
    this.consumer.end()
  }
}

async function values(iterator: AsyncIterableIterator<Hit>): Promise<unknown[]> {
  const seen: unknown[] = []
  for await (const hit of iterator) seen.push(hit)
  return seen
}

function refusesAnother(open: () => unknown, message: RegExp): void {
  assert.throws(open, (error) => error instanceof UprobeError && error.code === 'ERR_UPROBE_BAD_OPTION' && message.test(error.message))
}

describe('an iterator', () => {
  it('gives what came before it was opened, what comes while it waits, and ends after the last', async () => {
    const { consumer } = new Host()
    assert.equal(consumer.accept(batchOf(1, 2)), 2)
    const iterator = consumer.iterate()
    assert.deepEqual(await iterator.next(), { done: false, value: 1 })
    assert.deepEqual(await iterator.next(), { done: false, value: 2 })
    const third = iterator.next()
    assert.equal(consumer.accept(batchOf(3, 4)), 2)
    assert.deepEqual(await third, { done: false, value: 3 })
    consumer.end()
    assert.deepEqual(await values(iterator), [4])
  })

  it('answers calls of next() in their order, also those made before there are hits', async () => {
    const { consumer } = new Host()
    const iterator = consumer.iterate()
    const calls = Array.from({ length: 4 }, () => iterator.next())
    assert.equal(consumer.accept(batchOf(1, 2)), 2)
    assert.equal(consumer.accept(batchOf(3)), 1)
    consumer.end()
    assert.deepEqual(
      (await Promise.all(calls)).map(({ value }) => value as unknown),
      [1, 2, 3, undefined],
    )
  })

  it('keeps the event loop alive exactly while it waits', async () => {
    const host = new Host()
    const iterator = host.consumer.iterate()
    assert.equal(host.references, 0)
    const calls = [iterator.next(), iterator.next()]
    assert.equal(host.references, 2)
    host.consumer.accept(batchOf(1))
    assert.equal(host.references, 1)
    host.consumer.end()
    assert.equal(host.references, 0)
    await Promise.all(calls)
  })

  it('lets the event loop have its turn while it gives what had waited', async () => {
    const { consumer } = new Host()
    consumer.accept(batchOf(...Array(200).keys()))
    consumer.end()
    let turned = false
    setImmediate(() => {
      turned = true
    })
    let taken = 0
    for await (const _ of consumer.iterate()) {
      if (turned) break
      taken++
      // Longer than a turn may be, in all.
      const start = process.hrtime.bigint()
      while (process.hrtime.bigint() - start < 100_000n);
    }
    assert.ok(taken > 0 && taken < 200, `${taken} of 200 were given in one turn`)
  })

  it('is the only one while it is open', () => {
    const host = new Host()
    host.consumer.iterate()
    assert.equal(host.consumer.iterating, true)
    refusesAnother(() => host.consumer.iterate(), /iterated already/)
  })

  it('is refused while there are listeners', () => {
    const host = new Host()
    host.listener = () => true
    refusesAnother(() => host.consumer.iterate(), /listeners/)
  })

  it('that was left gives the probe up, once, and waits for its end', async () => {
    const host = new Host()
    const iterator = host.consumer.iterate()
    const pending = iterator.next()
    let left = 0
    const leaving = [iterator.return?.(), iterator.return?.()].map((leave) => leave?.then(() => left++))
    assert.deepEqual(await iterator.next(), { done: true, value: undefined })
    assert.equal(left, 0, 'the end is waited for')
    await Promise.all(leaving)
    assert.equal(host.abandoned, 1)
    assert.deepEqual(await pending, { done: true, value: undefined })
    assert.equal(host.references, 0)
  })

  it('gives a pending call what comes until the probe has ended', async () => {
    const host = new Host()
    const iterator = host.consumer.iterate()
    const pending = iterator.next()
    const leaving = iterator.return?.()
    assert.equal(host.consumer.accept(batchOf(1)), 1)
    assert.deepEqual(await pending, { done: false, value: 1 })
    await leaving
  })

  it('that has ended by itself makes way for another, which gives nothing more', async () => {
    const host = new Host()
    host.consumer.accept(batchOf(1))
    host.consumer.end()
    assert.deepEqual(await values(host.consumer.iterate()), [1])
    assert.equal(host.consumer.iterating, false)
    assert.deepEqual(await values(host.consumer.iterate()), [])
    assert.equal(host.abandoned, 0, 'there is nothing to give up')
  })

  it('that was waiting at the end makes way for another', async () => {
    const { consumer } = new Host()
    const all = values(consumer.iterate())
    consumer.end()
    assert.deepEqual(await all, [])
    assert.equal(consumer.iterating, false)
    assert.deepEqual(await values(consumer.iterate()), [])
  })
})

describe('what waits for an iterator', () => {
  it('is bounded, and what has no room is refused', async () => {
    const { consumer } = new Host({ hits: 3, bytes: 1 << 20 })
    assert.equal(consumer.accept(batchOf(1, 2)), 2)
    assert.equal(consumer.accept(batchOf(3, 4, 5)), 1)
    assert.equal(consumer.accept(batchOf(6)), 0)
    consumer.end()
    assert.deepEqual(await values(consumer.iterate()), [1, 2, 3])
  })

  it('has room again as hits are taken, and a call that waits needs none', async () => {
    const { consumer } = new Host({ hits: 1, bytes: 1 << 20 })
    const iterator = consumer.iterate()
    const first = iterator.next()
    assert.equal(consumer.accept(batchOf(1, 2, 3)), 2)
    assert.equal((await first).value, 1)
    assert.equal((await iterator.next()).value, 2)
    assert.equal(consumer.accept(batchOf(4)), 1)
    assert.equal((await iterator.next()).value, 4)
  })
})

describe('listeners', () => {
  it('take whole batches at once, without a bound', () => {
    const host = new Host({ hits: 1, bytes: 1 })
    const seen: unknown[] = []
    host.listener = (hit) => {
      seen.push(hit)
      return true
    }
    assert.equal(host.consumer.accept(batchOf(1, 2, 3)), 3)
    assert.deepEqual(seen, [1, 2, 3])
  })

  it('that come late get what waited, before what comes next', () => {
    const host = new Host()
    const seen: unknown[] = []
    host.consumer.accept(batchOf(1, 2))
    host.consumer.accept(batchOf(3))
    host.listener = (hit) => {
      seen.push(hit)
      return true
    }
    host.consumer.accept(batchOf(4))
    host.consumer.flushToListeners()
    assert.deepEqual(seen, [1, 2, 3, 4])
  })

  it('that leave in the middle of a batch leave its other hits to whoever comes next', async () => {
    const host = new Host()
    const seen: unknown[] = []
    host.listener = (hit) => {
      seen.push(hit)
      return hit !== 2
    }
    assert.equal(host.consumer.accept(batchOf(1, 2, 3, 4)), 4)
    assert.equal(host.consumer.accept(batchOf(5)), 1)
    host.listener = (hit) => {
      seen.push(hit)
      return false
    }
    host.consumer.flushToListeners()
    host.consumer.end()
    assert.deepEqual(seen, [1, 2, 3])
    assert.deepEqual(await values(host.consumer.iterate()), [4, 5])
  })

  it('may leave for an iterator in the middle of a batch, which goes on with the next hit', async () => {
    const host = new Host()
    host.consumer.accept(batchOf(1, 2))
    host.consumer.accept(batchOf(3))
    let next: Promise<IteratorResult<Hit>> | undefined
    let iterator: AsyncIterableIterator<Hit> | undefined
    host.listener = () => {
      host.listener = null
      iterator = host.consumer.iterate()
      next = iterator.next()
      return false
    }
    host.consumer.flushToListeners()
    assert.ok(iterator)
    assert.deepEqual(await next, { done: false, value: 2 })
    assert.deepEqual(await iterator.next(), { done: false, value: 3 })
  })

  it('that leave a batch for which the queue has no room make it lost, not delivered', () => {
    const host = new Host({ hits: 1, bytes: 1 << 20 })
    host.listener = () => false
    assert.equal(host.consumer.accept(batchOf(1, 2, 3)), 2)
  })

  it('run in the async context in which the consumer was made', () => {
    const storage = new AsyncLocalStorage<string>()
    const host = storage.run('attach', () => new Host())
    const contexts: unknown[] = []
    host.consumer.accept(batchOf(1))
    host.listener = () => contexts.push(storage.getStore()) > 0
    storage.run('listener', () => host.consumer.flushToListeners())
    storage.run('doorbell', () => host.consumer.accept(batchOf(2)))
    assert.deepEqual(contexts, ['attach', 'attach'])
  })
})
