/**
 * The names and the sites of a probe, which may be thousands: when names are compared, and what is made for whoever asks.
 */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import { SiteFindings } from '../../lib/counter/site-findings.js'
import type { UsdtNote } from '../../lib/elf/stapsdt.js'
import { ProbeSites, type SitesOfFile } from '../../lib/probe-sites.js'
import { type NamedFile, NO_GROUP, SiteNames } from '../../lib/site-names.js'
import { turns } from '../support/wait.js'

type NamedSite = SitesOfFile['sites'][number]

/** Files with sites of some names, whose slots follow each other. */
function filesOf(...files: ReadonlyArray<readonly [path: string, names: readonly string[]]>): SitesOfFile[] {
  let slot = 0
  return files.map(([path, names]) => ({
    facts: { path },
    sites: names.map((probe) => ({ slot: slot++, probe, fileOffset: BigInt(slot), counterOffset: null, args: null })),
  }))
}

const MANY = 5000

/** A file with many names, and how often each was asked for. */
function manyNames(): { files: SitesOfFile[]; asked: Uint8Array } {
  const asked = new Uint8Array(MANY)
  const sites = Array.from(
    asked,
    (_, slot): NamedSite => ({
      slot,
      get probe() {
        asked[slot] = (asked[slot] ?? 0) + 1
        return `usdt:t:site${slot}`
      },
      fileOffset: 0n,
      counterOffset: null,
      args: null,
    }),
  )
  return { files: [{ facts: { path: '/p' }, sites }], asked }
}

function sum(counts: Uint8Array): number {
  return counts.reduce((total, count) => total + count, 0)
}

/** How many names are put into a map by `work`. */
function compared(t: TestContext, work: () => void): number {
  const { set } = Map.prototype
  let names = 0
  const mocked = t.mock.method(Map.prototype, 'set', function (this: Map<unknown, unknown>, key: unknown, value: unknown) {
    if (typeof key === 'string' && key.startsWith('usdt:t:')) names++
    return set.call(this, key, value)
  })
  work()
  mocked.mock.restore()
  return names
}

test('many names are compared some hundred in a turn, and not again when they are asked for', async (t) => {
  const { files, asked } = manyNames()
  const names = new SiteNames(files)
  names.prepare(() => true)
  assert.equal(sum(asked), 0)
  let most = 0
  for (let before = -1; sum(asked) > before; ) {
    before = sum(asked)
    await turns(1)
    most = Math.max(most, sum(asked) - before)
  }
  assert.ok(most > 0 && most <= 512, `${most} names in a turn`)
  assert.equal(sum(asked), MANY)
  assert.equal(
    compared(t, () => assert.equal(names.groups.names.length, MANY)),
    0,
  )
  assert.ok(asked.every((times) => times === 2))
  assert.equal(names.groups, names.groups)
})

test('names that are asked for before they are compared are compared then, each once', async (t) => {
  const { files } = manyNames()
  const names = new SiteNames(files)
  names.prepare(() => true)
  await turns(2)
  const left = compared(t, () => assert.equal(names.groups.names.length, MANY))
  assert.ok(left > 0 && left < MANY, `${left} names`)
  assert.equal(names.groups.groupOf, null)
})

test('names are compared no further when they are not wanted any more', async () => {
  const { files, asked } = manyNames()
  let wanted = true
  new SiteNames(files).prepare(() => wanted)
  await turns(3)
  wanted = false
  const before = sum(asked)
  await turns(3)
  assert.ok(before > 0 && before < MANY && sum(asked) === before, `${before} names`)
})

/** Notes of which only the names are looked at. */
function notesNamed(names: readonly string[]): UsdtNote[] {
  return names.map((name) => ({ provider: 't', name }) as UsdtNote)
}

test('of a file whose notes all have names of their own no name of a site is made to compare it, nor are the notes looked at again', () => {
  const { files, asked } = manyNames()
  const notes = notesNamed(Array.from(asked, (_, slot) => `site${slot}`))
  const looks: string[] = []
  const watched = notes.map((note) => ({
    ...note,
    get name() {
      looks.push(note.name)
      return note.name
    },
  }))
  for (const looked of [MANY, 0]) {
    looks.length = 0
    asked.fill(0)
    const { groupOf, names } = new SiteNames(files.map((file) => ({ ...file, notes: new WeakRef(watched) }))).groups
    assert.equal(groupOf, null)
    assert.equal(names.length, MANY)
    assert.equal(looks.length, looked)
    assert.ok(asked.every((times) => times === 1))
  }
})

test('of notes that share a name, of few sites among many notes, and of two files with one path, the sites are compared', () => {
  const grouped = (...files: readonly NamedFile[]): unknown => [...(new SiteNames(files).groups.groupOf ?? [])]
  const [first, second] = filesOf(['/p', ['usdt:t:a', 'usdt:t:b', 'usdt:t:a']], ['/p', ['usdt:t:b']])
  assert.ok(first !== undefined && second !== undefined)
  const alike = notesNamed(['a', 'b', 'a'])
  assert.deepEqual(grouped({ ...first, notes: new WeakRef(alike) }), [0, 1, 0])
  const many = notesNamed(Array.from({ length: 7 }, (_, index) => `other${index}`))
  assert.deepEqual(grouped({ ...first, notes: new WeakRef(many) }), [0, 1, 0])
  const apart = notesNamed(['a', 'b'])
  assert.deepEqual(grouped({ ...first, notes: new WeakRef(apart) }, { ...second, notes: new WeakRef(apart) }), [0, 1, 0, 1])
})

test('notes of two providers may be of one name, where a colon is part of it', () => {
  const notes = [
    { provider: 't', name: 'a:b' },
    { provider: 't:a', name: 'b' },
  ] as UsdtNote[]
  const [file] = filesOf(['/p', notes.map(({ provider, name }) => `usdt:${provider}:${name}`)])
  assert.ok(file !== undefined)
  assert.deepEqual(new SiteNames([{ ...file, notes: new WeakRef(notes) }]).groups.names, ['usdt:t:a:b'])
})

test('slots are one group if both name and path are the same, in the order of the first of each', () => {
  const grouped = (leftOut: readonly number[], files: readonly SitesOfFile[]): unknown[] => {
    const names = new SiteNames(files)
    names.leaveOut(new Set(leftOut))
    const { groupOf, names: texts, paths } = names.groups
    return [groupOf === null ? null : [...groupOf], texts.map((name, group) => `${paths[group]}:${name}`)]
  }
  const apart = filesOf(['/p', ['a', 'b']], ['/q', ['a']])
  assert.deepEqual(grouped([], apart), [null, ['/p:a', '/p:b', '/q:a']])
  assert.deepEqual(grouped([1], apart), [
    [0, NO_GROUP, 1],
    ['/p:a', '/q:a'],
  ])
  // Two files may have one path, in two containers.
  const together = filesOf(['/p', ['a', 'b', 'a']], ['/q', ['b']], ['/p', ['b', 'c']])
  assert.deepEqual(grouped([], together), [
    [0, 1, 0, 2, 1, 3],
    ['/p:a', '/p:b', '/q:b', '/p:c'],
  ])
  assert.deepEqual(grouped([0, 1, 4], together), [
    [NO_GROUP, NO_GROUP, 0, 1, NO_GROUP, 2],
    ['/p:a', '/q:b', '/p:c'],
  ])
})

test('a site is one object, whoever asks for it and whenever, and says in which processes it was looked at', () => {
  const sites = new ProbeSites(filesOf(['/p', ['a', 'b']], ['/q', ['c']]))
  const early = sites.of(1)
  assert.deepEqual(early, { probe: 'b', path: '/p', fileOffset: 2n, refCtrOffset: null, args: null, targets: [] })
  const findings = [7, 8].map((pid) => {
    const found = new SiteFindings(pid, { first: 0, last: 1 })
    found.armed(1, 0x1000 * pid, null)
    return found
  })
  sites.settle(new Set([0]), findings)
  const targets = [7, 8].map((pid) => ({ pid, state: 'armed', address: BigInt(0x1000 * pid), counter: null }))
  assert.deepEqual(early.targets, targets)
  const all = sites.all()
  assert.deepEqual(
    all.map(({ probe, path, targets: { length } }) => [probe, path, length]),
    [
      ['b', '/p', 2],
      ['c', '/q', 0],
    ],
  )
  assert.equal(all[0], early)
  assert.equal(sites.of(2), all[1])
  assert.equal(sites.all()[1], all[1])
  assert.throws(() => sites.of(3), RangeError)
})
