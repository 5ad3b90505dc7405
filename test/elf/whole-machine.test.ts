/**
 * Every ELF file of this machine: what we list equals what readelf prints.
 */
import assert from 'node:assert/strict'
import { closeSync, openSync, readdirSync, readSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { listFile } from '../../lib/elf/list.js'
import { FORMATS, LAYOUT, usdtFile } from '../support/elf-builder.js'
import { readingNeeds, writeElf } from './files.js'
import { type ExpectedSite, expectedSites, READELF } from './readelf.js'

/** ELF files below a folder, each inode once. */
function* elfFiles(folder: string, seen: Set<string>): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) {
      yield* elfFiles(path, seen)
    } else if (entry.isFile()) {
      const { dev, ino } = statSync(path)
      if (seen.has(`${dev}:${ino}`) || !isElf(path)) continue
      seen.add(`${dev}:${ino}`)
      yield path
    }
  }
}

function isElf(path: string): boolean {
  const fd = openSync(path, 'r')
  const magic = Buffer.alloc(4)
  readSync(fd, magic)
  closeSync(fd)
  return magic.equals(Buffer.from('\x7fELF'))
}

async function listed(path: string): Promise<ExpectedSite[]> {
  return (await listFile(path)).map(({ path: shown, ...site }) => {
    assert.equal(shown, path)
    return site
  })
}

test('lists what readelf prints, for every ELF file under /usr/bin and /usr/lib', readingNeeds(READELF), async (t) => {
  const seen = new Set<string>()
  const paths = [...elfFiles('/usr/bin', seen), ...elfFiles('/usr/lib', seen)]
  const expected = expectedSites(paths)
  let sites = 0
  let withCounter = 0
  let filesWithSites = 0
  for (const path of paths) {
    const wanted = expected.get(path)
    assert.ok(wanted !== undefined, `readelf said nothing about ${path}`)
    assert.deepEqual(await listed(path), wanted, path)
    sites += wanted.length
    withCounter += wanted.filter(({ refCtrOffset }) => refCtrOffset !== null).length
    if (wanted.length > 0) filesWithSites++
  }
  t.diagnostic(`${paths.length} files; ${filesWithSites} of them with ${sites} sites, ${withCounter} of which with a counter`)
  // So that it cannot pass by finding nothing: libstdc++ is everywhere that Node is.
  const throws = [...expected].filter(([path]) => /libstdc\+\+\.so/.test(path)).flatMap(([, found]) => found.map(({ name }) => name))
  assert.deepEqual(new Set(throws), new Set(['throw', 'rethrow', 'catch']))
})

test('PostgreSQL has 71 sites of 57 probes, each with a counter', readingNeeds('/usr/lib/postgresql/15/bin/postgres'), async () => {
  const sites = await listFile('/usr/lib/postgresql/15/bin/postgres')
  assert.equal(sites.length, 71)
  assert.equal(new Set(sites.map(({ name }) => name)).size, 57)
  assert.ok(
    sites.every(({ provider, fileOffset, refCtrOffset }) => provider === 'postgresql' && fileOffset !== null && refCtrOffset !== null),
  )
})

test('lists files of other machines as readelf does', readingNeeds(READELF), async (t) => {
  for (const format of FORMATS) {
    for (const moved of [0, 0x20]) {
      const base = 0x10_0000 + LAYOUT.base.address - moved
      const semaphores = [0, 0x10_0000 + LAYOUT.probes.address + 4 - moved, 0x10_0000 + LAYOUT.bss.address + 4]
      const notes = semaphores.map((semaphore, n) => ({
        provider: 'p',
        name: `n${n}`,
        args: `${n}@r3`,
        pc: 0x10_1040 + n,
        base,
        semaphore,
      }))
      const path = writeElf(t, usdtFile(format, 0x10_0000, [notes]).bytes)
      const expected = expectedSites([path]).get(path)
      assert.equal(expected?.length, 3)
      assert.deepEqual(await listed(path), expected, JSON.stringify({ format, moved }))
    }
  }
})
