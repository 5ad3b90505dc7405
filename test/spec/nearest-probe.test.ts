/**
 * What is proposed for a name that is not there.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import type { UsdtNote } from '../../lib/elf/stapsdt.js'
import { SiteWork } from '../../lib/progress.js'
import { nearestProbe } from '../../lib/spec/nearest-probe.js'
import { parseSpec } from '../../lib/spec/spec.js'

const NAMES = ['postgresql:query__start', 'postgresql:query__done', 'node:gc__start', 'python:gc__start', 't:a']
const FILES = [[], NAMES.slice(0, 2), NAMES.slice(2)].map((names) =>
  names.map((text) => {
    const [provider, name] = text.split(':')
    return { provider, name, fileOffset: 0x1000n } as UsdtNote
  }),
)

const near = (name: string, files: readonly (readonly UsdtNote[])[] = FILES) =>
  nearestProbe(parseSpec(`usdt:${name}`), files, SiteWork.quietly(new AbortController().signal))
const meant = async (name: string) => (await near(name))?.replace('usdt:', '') ?? null

test('proposes the name that differs by a few letters', async () => {
  const edit = fc.record({ at: fc.nat(10), kind: fc.constantFrom('omit', 'add', 'change') })
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...NAMES.slice(0, 2)), fc.array(edit, { minLength: 1, maxLength: 3 }), async (name, edits) => {
      let typed = name
      // Behind the colon, and never at the same place of what is there already.
      for (const { at, kind } of edits) {
        const from = 'postgresql:'.length + at
        typed = typed.slice(0, from) + (kind === 'omit' ? '' : 'x') + typed.slice(kind === 'add' ? from : from + 1)
      }
      const proposed = await meant(typed)
      // With three mistakes another may be as near.
      if (edits.length < 3) assert.equal(proposed, name)
      else assert.ok(proposed !== null)
    }),
  )
})

test('takes one underscore for two, and a wrong provider for the right one', async () => {
  assert.equal(await meant('node:gc_start'), 'node:gc__start')
  assert.equal(await meant('pyton:gc__start'), 'python:gc__start')
  assert.equal(await meant('postgres:query__start'), 'postgresql:query__start')
})

test('proposes nothing where nothing is near, for a short name of which nothing would be left, and for a pattern', async () => {
  for (const name of ['postgresql:checkpoint__start', 'x:b', 't:bb', 'node:gc_*', 'nod?:gc_start'])
    assert.equal(await meant(name), null, name)
})

test('proposes what can be typed: with the path that was given, and nothing that has no place in its file', async () => {
  assert.equal(await near('/opt/node:node:gc_start'), 'usdt:/opt/node:node:gc__start')
  const debug = FILES.map((notes) => notes.map((note) => ({ ...note, fileOffset: null })))
  assert.equal(await near('node:gc_start', debug), null)
  assert.equal(await near('node:gc__start', debug), null)
})

test('does not compare names that nobody types', async () => {
  const long = 'x'.repeat(300)
  assert.equal(await near(`t:${long}`, [[{ provider: 't', name: `${long}y`, fileOffset: 0n } as UsdtNote]]), null)
})
