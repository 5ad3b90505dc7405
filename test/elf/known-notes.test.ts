/**
 * Notes that are kept: for the bytes that they were read from, and no more of them than the bound.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { KnownNotes } from '../../lib/elf/known-notes.js'

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

/** A file whose only section holds `text`. */
const origin = (key: string, text = key) => ({ key, contents: [Buffer.from(text)] })

/** Lets go of what only this turn of the event loop has held. */
async function collect(): Promise<void> {
  await new Promise(setImmediate)
  collectGarbage()
}

test('gives back what is kept for the same bytes, and nothing for others', () => {
  const known = new KnownNotes<string>()
  const notes = ['sale']
  known.keep(origin('a', 'abc'), notes)
  assert.equal(known.find(origin('a', 'abc')), notes)
  assert.equal(known.find(origin('a', 'abd')), null)
  assert.equal(known.find(origin('b', 'abc')), null)
  known.keep(origin('a', 'abd'), ['refund'])
  assert.equal(known.find(origin('a', 'abc')), null)
})

test('keeps those of the files that were used last, up to twenty thousand notes', async () => {
  const known = new KnownNotes<number>()
  const keep = (key: string, count: number): void => known.keep(origin(key), new Array(count).fill(0))
  keep('first', 8000)
  keep('second', 8000)
  assert.equal(known.find(origin('first'))?.length, 8000)
  keep('third', 8000)
  await collect()
  assert.deepEqual(
    ['first', 'second', 'third'].map((key) => known.find(origin(key))?.length),
    [8000, undefined, 8000],
  )
})

test('keeps more than that only as long as somebody has them', async () => {
  const known = new KnownNotes<number>()
  let notes: number[] | null = new Array<number>(20_001).fill(0)
  known.keep(origin('large'), notes)
  await collect()
  assert.equal(known.find(origin('large')), notes)
  notes = null
  await collect()
  await collect()
  assert.equal(known.find(origin('large')), null)
})
