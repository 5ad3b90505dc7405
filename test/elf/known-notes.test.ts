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

test('keeps those of the files that were used last, up to sixteen MiB with the bytes that they were read from', async () => {
  const known = new KnownNotes<number>()
  // A file of zeros has as many notes as one pleases, none of them ours.
  const large = (key: string) => ({ key, contents: [Buffer.alloc(6 << 20)] })
  for (const key of ['first', 'second']) known.keep(large(key), [1])
  assert.equal(known.find(large('first'))?.length, 1)
  known.keep(large('third'), [1])
  await collect()
  assert.deepEqual(
    ['first', 'second', 'third'].map((key) => known.find(large(key))?.length),
    [1, undefined, 1],
  )
})

test('counts notes, too', async () => {
  const known = new KnownNotes<number>()
  for (const key of ['first', 'second', 'third']) known.keep(origin(key), new Array(20_000).fill(0))
  await collect()
  assert.deepEqual(
    ['first', 'second', 'third'].map((key) => known.find(origin(key))?.length),
    [undefined, 20_000, 20_000],
  )
})

test('keeps what is larger only as long as somebody has it, and the others all the same', async () => {
  const known = new KnownNotes<number>()
  known.keep(origin('small'), [1])
  let notes: number[] | null = new Array<number>(100_000).fill(0)
  known.keep(origin('large'), notes)
  await collect()
  assert.equal(known.find(origin('large')), notes)
  notes = null
  await collect()
  await collect()
  assert.equal(known.find(origin('large')), null)
  assert.equal(known.find(origin('small'))?.length, 1)
})

test('keeps 64 files', async () => {
  const known = new KnownNotes<number>()
  for (let file = 0; file < 65; file++) known.keep(origin(`file ${file}`), [file])
  await collect()
  assert.deepEqual([known.find(origin('file 0')), known.find(origin('file 1'))], [null, [1]])
})
