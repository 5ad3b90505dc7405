/**
 * Finding notes by name and by counter: the same answer whether all are looked at or an index is.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { keyOf, NoteIndex } from '../../lib/elf/note-index.js'
import type { UsdtNote } from '../../lib/elf/stapsdt.js'

const note: fc.Arbitrary<UsdtNote> = fc
  .record({
    provider: fc.constantFrom('shop', 'bank'),
    name: fc.constantFrom('sale', 'refund', 'constructor', '__proto__'),
    semaphoreVaddr: fc.constantFrom(null, 1n, 2n, 3n, 2n ** 63n, 2n ** 63n + 1n),
    fileOffset: fc.constantFrom(null, 5n, 6n),
  })
  .map((some) => ({ ...some, args: '', pc: 0n, base: 0n, semaphore: some.semaphoreVaddr ?? 0n, vaddr: 0n, refCtrOffset: null }))

test('gives the notes of a name in the order of the file, however often it is asked', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(note, { maxLength: 600, size: 'max' }), async (notes) => {
      const index = NoteIndex.of(notes)
      for (let asked = 0; asked < 3; asked++) {
        for (const provider of ['shop', 'bank', 'none']) {
          for (const name of ['sale', '__proto__', 'none']) {
            assert.deepEqual(
              await index.named(provider, name),
              notes.filter((one) => one.provider === provider && one.name === name),
            )
          }
        }
      }
    }),
    { numRuns: 30, endOnFailure: true },
  )
})

test('gives the notes of counters, of those alone that have a place in the file, however often it is asked', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(note, { maxLength: 600, size: 'max' }), fc.boolean(), async (notes, allFirst) => {
      const index = NoteIndex.of(notes)
      const expected = new Map<number | bigint, readonly UsdtNote[]>()
      for (const one of notes) {
        if (one.semaphoreVaddr === null || one.fileOffset === null) continue
        const key = keyOf(one.semaphoreVaddr)
        expected.set(key, [...(expected.get(key) ?? []), one])
      }
      const lists = (found: Awaited<ReturnType<NoteIndex['allCounted']>>) => new Map([...found].map(([key, some]) => [key, [some].flat()]))
      if (allFirst) assert.deepEqual(lists(await index.allCounted()), expected)
      for (let asked = 0; asked < 2; asked++) {
        const wanted = [2n, 2n ** 63n + 1n, 9n].map(keyOf)
        assert.deepEqual(lists(await index.counted(new Set(wanted))), new Map([...expected].filter(([key]) => wanted.includes(key))))
      }
      assert.deepEqual(lists(await index.allCounted()), expected)
      // One of its own, where it has; a list tells that it is shared.
      assert.ok([...(await index.allCounted())].every(([key, some]) => Array.isArray(some) === (expected.get(key)?.length ?? 0) > 1))
    }),
    { numRuns: 30, endOnFailure: true },
  )
})

test('is kept with the notes', () => {
  const notes: UsdtNote[] = []
  assert.equal(NoteIndex.of(notes), NoteIndex.of(notes))
  assert.notEqual(NoteIndex.of(notes), NoteIndex.of([]))
})
