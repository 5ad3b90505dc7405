/**
 * The hits of several probes as one stream, in the order of their timestamps.
 *
 * Each probe has an iterator of its own, but their hits arrive in common batches: all iterators that have something to give have it at the same turn of the
 * event loop. So the earliest of the hits at hand is the earliest there is, up to the border of a batch.
 */
import type { Hit } from '../index.js'

type Head = { readonly state: 'waiting' } | { readonly state: 'hit'; readonly hit: Hit } | { readonly state: 'done' }

/** Merges iterators; ends when all have ended. */
export async function* mergeByTime(sources: readonly AsyncIterable<Hit>[]): AsyncGenerator<Hit, void, undefined> {
  const iterators = sources.map((source) => source[Symbol.asyncIterator]())
  const heads: Head[] = iterators.map(() => ({ state: 'waiting' }))
  let wake: (error?: unknown) => void = () => undefined
  let failure: { error: unknown } | undefined

  const advance = (index: number): void => {
    heads[index] = { state: 'waiting' }
    iterators[index]?.next().then(
      (result) => {
        heads[index] = result.done === true ? { state: 'done' } : { state: 'hit', hit: result.value }
        wake()
      },
      (error: unknown) => {
        failure ??= { error }
        wake()
      },
    )
  }

  for (const index of iterators.keys()) advance(index)
  while (heads.some(({ state }) => state !== 'done')) {
    // A hit that waits in its queue is there one microtask after `next()`; so are those that came with it in one batch.
    await null
    if (failure !== undefined) throw failure.error
    const earliest = indexOfEarliest(heads)
    const head = earliest === null ? undefined : heads[earliest]
    if (earliest !== null && head?.state === 'hit') {
      yield head.hit
      advance(earliest)
    } else if (heads.some(({ state }) => state === 'waiting')) {
      await new Promise<unknown>((resolve) => {
        wake = resolve
      })
    }
  }
}

function indexOfEarliest(heads: readonly Head[]): number | null {
  let earliest: number | null = null
  let time = 0n
  heads.forEach((head, index) => {
    if (head.state === 'hit' && (earliest === null || head.hit.timestamp < time)) {
      earliest = index
      time = head.hit.timestamp
    }
  })
  return earliest
}
