/**
 * What of a file is in the page cache is read at once, and the rest by a thread.
 */
import assert from 'node:assert/strict'
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { type TestContext, test } from 'node:test'
import { ElfFile, type ReadCached } from '../../lib/elf/elf-file.js'
import { countTurns, turns } from '../support/wait.js'

/** Stops the clock by which slices of time are measured; it goes on by as many nanoseconds as the result is told. */
function stopClock(t: TestContext): (ns: bigint) => void {
  let nowNs = process.hrtime.bigint()
  t.mock.method(process.hrtime, 'bigint', () => nowNs)
  return (ns) => {
    nowNs += ns
  }
}

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
  stopClock(t)
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

test('many files that are in the page cache leave the event loop its turns', async (t) => {
  const goOn = stopClock(t)
  const fd = openSync(process.execPath, 'r')
  t.after(() => closeSync(fd))
  const { size } = fstatSync(fd, { bigint: true })
  const loop = countTurns()
  t.after(() => loop.stop())
  const turnsOfReads: number[] = []
  const readCached: ReadCached = (file, bytes, position) => {
    goOn(1_000_000n)
    turnsOfReads.push(loop.turns)
    return readSync(file, bytes, 0, bytes.length, position)
  }
  for (let file = 0; file < 20; file++) await ElfFile.fromFd(fd, process.execPath, { size, readCached })
  const most = Math.max(...turnsOfReads.map((turn) => turnsOfReads.filter((other) => other === turn).length))
  assert.ok(turnsOfReads.length > 0 && most <= 4, `${most} reads in one turn`)
})

test('no more is copied on the event loop than takes a moment', async (t) => {
  stopClock(t)
  const { elf, asked, close } = await openNode(1)
  t.after(close)
  await elf.read(0n, 4 * 1024 * 1024)
  assert.ok(Math.max(...asked) <= 1024 * 1024, String(asked))
})

// The last of this file, since it holds for the life of the process.
test('when three reads of the page cache have waited for somebody, no other is made', async (t) => {
  const goOn = stopClock(t)
  const fd = openSync(process.execPath, 'r')
  t.after(() => closeSync(fd))
  const { size } = fstatSync(fd, { bigint: true })
  let reads = 0
  const readCached: ReadCached = () => {
    reads++
    goOn(2_500_000n)
    return 0
  }
  await turns(2)
  for (let file = 0; file < 6; file++) {
    await ElfFile.fromFd(fd, process.execPath, { size, readCached })
    await turns(2)
  }
  assert.equal(reads, 3)
})
