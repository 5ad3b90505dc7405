/**
 * What of a file is in the page cache is read at once, and the rest by a thread.
 */
import assert from 'node:assert/strict'
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { test } from 'node:test'
import { ElfFile, type ReadCached } from '../../lib/elf/elf-file.js'

/** Opens Node itself, of which `share` of each piece is said to be in the page cache; also gives the lengths that were asked for. */
async function openNode(share: number): Promise<{ elf: ElfFile; asked: number[]; close(): void }> {
  const fd = openSync(process.execPath, 'r')
  const asked: number[] = []
  const readCached: ReadCached = (file, bytes, position) => {
    asked.push(bytes.length)
    return readSync(file, bytes, 0, Math.floor(bytes.length * share), position)
  }
  const elf = await ElfFile.fromFd(fd, process.execPath, { size: fstatSync(fd, { bigint: true }).size, readCached })
  return { elf, asked, close: () => closeSync(fd) }
}

test('a file is the same, however much of it is in the page cache', async (t) => {
  const whole = await ElfFile.open(process.execPath)
  t.after(() => whole.close())
  const bytes = await whole.read(4097n, 100_000)
  for (const share of [0, 0.3, 1]) {
    const { elf, asked, close } = await openNode(share)
    t.after(close)
    assert.deepEqual(elf.sections, whole.sections)
    assert.deepEqual(await elf.read(4097n, 100_000), bytes)
    assert.ok(asked.includes(100_000))
  }
})

test('no more is copied on the event loop than takes a moment', async (t) => {
  const { elf, asked, close } = await openNode(1)
  t.after(close)
  await elf.read(0n, 4 * 1024 * 1024)
  assert.ok(Math.max(...asked) <= 1024 * 1024, String(asked))
})
