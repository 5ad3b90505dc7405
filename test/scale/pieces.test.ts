/**
 * The parts by which thousands of sites are worked through: they do for many what was done for one, so what one would get is what they are compared with.
 */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { SiteFindings } from '../../lib/counter/site-findings.js'
import { ElfFile } from '../../lib/elf/elf-file.js'
import { FileWindow } from '../../lib/elf/file-window.js'
import { inSlices, TimeSlice } from '../../lib/elf/time-slice.js'
import type { NamedStats } from '../../lib/probe-types.js'
import { type ProgressStep, SiteWork } from '../../lib/progress.js'
import { checkEvents } from '../../lib/register/many-events.js'
import type { SiteCounts } from '../../lib/register/stats.js'
import { NO_GROUP } from '../../lib/site-names.js'
import { Tally } from '../../lib/tally.js'
import { codeAddress, type Mapping, mappingAt } from '../../lib/target/maps.js'
import { OffsetTable } from '../../lib/target/offset-table.js'
import { PagedMemory } from '../../lib/target/paged-memory.js'
import { refused } from '../support/tracing.js'
import { countTurns } from '../support/wait.js'

test('a window gives the bytes of the file, wherever they are and in whatever order they are asked for', async (t) => {
  const elf = await ElfFile.open(process.execPath)
  t.after(() => elf.close())
  const window = new FileWindow(elf)
  const end = elf.size
  for (const [offset, bytes] of [
    [0n, 4],
    [1n, 15],
    [32_767n, 4],
    [32_768n, 1],
    [5n, 15],
    [end - 3n, 3],
    [end - 40_000n, 40_000],
    [end - 1n, 1],
  ] as const) {
    const expected = await elf.read(offset, bytes)
    assert.deepEqual(Buffer.from(await window.read(offset, bytes)), expected)
    const peeked = window.peek(offset, bytes)
    if (peeked !== null) assert.deepEqual(Buffer.from(peeked), expected)
    const byte = window.peekByte(offset)
    if (byte !== null) assert.equal(byte, expected[0])
    if (peeked !== null) assert.equal(window.holds(offset, expected), true)
    assert.equal(window.holds(offset, Buffer.from(expected).fill((expected[0] ?? 0) ^ 0xff)), false)
  }
  await refused(window.read(end - 1n, 2), 'ERR_UPROBE_BAD_ELF')
})

/** A process with memory from 0x1000 to 0x3000, each byte the low byte of its address times 3, whose reads are counted. */
function memory(): { reads: number; readMemory(address: bigint, bytes: number): Buffer | null } {
  const target = {
    reads: 0,
    readMemory(address: bigint, bytes: number): Buffer | null {
      target.reads++
      if (address < 0x1000n || address + BigInt(bytes) > 0x3000n) return null
      return Buffer.from(Array.from({ length: bytes }, (_, index) => ((Number(address) + index) * 3) & 0xff))
    },
  }
  return target
}

test('pages of memory give what single reads give, at the price of a read a page', () => {
  const target = memory()
  const paged = new PagedMemory(target)
  const alone = memory()
  for (const address of [0xfffn, 0x1000n, 0x1abcn, 0x1ffen, 0x2000n, 0x2ffen, 0x2fffn, 0x3000n]) {
    assert.equal(paged.u16(address), alone.readMemory(address, 2)?.readUInt16LE(0) ?? null, `0x${address.toString(16)}`)
    const bytes = alone.readMemory(address, 4)
    assert.equal(paged.equals(address, bytes ?? Buffer.alloc(4), 4), bytes === null ? null : true)
    assert.equal(paged.equals(address, Buffer.alloc(4, 0x55), 4), bytes === null ? null : false)
  }
  const few = target.reads
  for (let address = 0x1000n; address < 0x2000n - 2n; address += 2n) paged.u16(address)
  assert.equal(target.reads, few)
})

test('the mapping of an address is found among those that surround it', () => {
  const mapping = (start: bigint, end: bigint): Mapping => ({ start, end }) as Mapping
  const all = [mapping(0x1000n, 0x2000n), mapping(0x2000n, 0x3000n), mapping(0x5000n, 0x6000n)]
  for (const address of [0n, 0xfffn, 0x1000n, 0x1fffn, 0x2000n, 0x2fffn, 0x3000n, 0x4fffn, 0x5000n, 0x5fffn, 0x6000n]) {
    assert.equal(mappingAt(all, address), all.find(({ start, end }) => address >= start && address < end) ?? null)
  }
  assert.equal(mappingAt([], 5n), null)
})

test('an offset is found in the first mapping that has it, as among all mappings', () => {
  const mapping = (start: bigint, fileOffset: bigint): Mapping => ({ start, end: start + 0x1000n, fileOffset, executable: true }) as Mapping
  const mappings = [mapping(0x7fff_ffff_d000n, 0x2000n), mapping(0x5000n, 0n), mapping(0x9000n, 0x2000n)]
  const table = new OffsetTable(mappings)
  for (const offset of [0n, 0xfffn, 0x1000n, 0x1fffn, 0x2000n, 0x2fffn, 0x3000n, 2n ** 63n]) {
    const address = table.addressOf(offset)
    assert.equal(address === null ? null : BigInt(address), codeAddress(mappings, offset), `0x${offset.toString(16)}`)
    const all = mappings.flatMap((one) => codeAddress([one], offset) ?? [])
    assert.deepEqual(mappings.flatMap((_, index) => table.addressIn(index, offset) ?? []).map(BigInt), all)
  }
  // Addresses that no number holds exactly, and offsets.
  for (const inexact of [mapping(2n ** 56n, 0n), mapping(0x1000n, 2n ** 62n)]) {
    const unknown = new OffsetTable([...mappings, inexact])
    assert.deepEqual([unknown.length, unknown.addressOf(0n)], [0, null])
  }
})

test('what was found of a site is kept by its slot', () => {
  const findings = new SiteFindings(7, { first: 3, last: 6 })
  const other = { pid: 7, state: 'not-armed', address: null, counter: null } as const
  findings.note(4, other)
  assert.equal(findings.anyArmed, false)
  findings.armed(3, 0x7fff_ffff_f000, 2)
  findings.armed(6, 0x1000, null)
  assert.equal(findings.anyArmed, true)
  assert.deepEqual(
    [2, 3, 4, 5, 6, 7].map((slot) => findings.get(slot)),
    [
      undefined,
      { pid: 7, state: 'armed', address: 0x7fff_ffff_f000n, counter: 2 },
      other,
      undefined,
      { pid: 7, state: 'armed', address: 0x1000n, counter: null },
      undefined,
    ],
  )
})

test('work tells of each step from nothing to all, and of nothing twice', async () => {
  const told: Array<[ProgressStep, number, number]> = []
  const work = new SiteWork(new AbortController().signal, (...report) => told.push(report))
  work.begin('check', 3)
  work.count()
  await work.rest()
  await work.rest()
  work.begin('register', 2)
  work.advance(2)
  work.begin('verify', 0)
  work.extend(4)
  work.end()
  work.end()
  assert.deepEqual(told, [
    ['check', 0, 3],
    ['check', 1, 3],
    ['check', 3, 3],
    ['register', 0, 2],
    ['register', 2, 2],
    ['verify', 0, 0],
    ['verify', 4, 4],
  ])
})

test('work goes through things in order, waits for a step that asks for it, and rests in between', async () => {
  const seen: number[] = []
  let turns = 0
  let going = true
  const turn = async (): Promise<void> => {
    for (; going; turns++) await nextTurn()
  }
  const turning = turn()
  const things = Array.from({ length: 200 }, (_, number) => ({ number }))
  await SiteWork.quietly(new AbortController().signal).each(things, ({ number }) => {
    if (number % 50 === 0) return nextTurn().then(() => seen.push(number))
    // So long that it is time for a rest at the next look.
    for (const end = performance.now() + 0.2; performance.now() < end; );
    seen.push(number)
    return undefined
  })
  going = false
  await turning
  assert.deepEqual(
    seen,
    things.map(({ number }) => number),
  )
  assert.ok(turns > 4)
})

test('work rests for a turn of the event loop, and ends when it is aborted', async () => {
  const abort = new AbortController()
  const work = SiteWork.quietly(abort.signal)
  let turned = false
  const turn = nextTurn().then(() => {
    turned = true
  })
  await work.rest()
  await turn
  assert.equal(turned, true)
  const reason = new Error('enough')
  abort.abort(reason)
  await assert.rejects(work.rest(), (error) => error === reason)
})

/** A clock by which work is divided, which stands still unless it is told to go on. */
function standingClock(t: TestContext): { pass(ms: number): void } {
  let now = process.hrtime.bigint()
  t.mock.method(process.hrtime, 'bigint', () => now)
  return { pass: (ms) => (now += BigInt(ms) * 1_000_000n) }
}

test('loops that follow each other in a turn share its slice of time, and each turn has a new one', async (t) => {
  const clock = standingClock(t)
  await nextTurn()
  const first = new TimeSlice()
  clock.pass(2)
  assert.equal(first.isOver, false)
  clock.pass(2)
  // A loop that begins now finds it used up.
  const second = new TimeSlice()
  assert.deepEqual([first.isOver, second.isOver], [true, true])
  await second.rest()
  assert.deepEqual([first.isOver, second.isOver], [false, false])
  // Time in which the event loop had its turn for another reason counts for nobody.
  clock.pass(4)
  await nextTurn()
  assert.deepEqual([first.isOver, second.isOver], [false, false])
})

test('a long step of work begins within a slice, and counts for what follows it', async (t) => {
  const clock = standingClock(t)
  await nextTurn()
  const loop = countTurns()
  t.after(() => loop.stop())
  const work = SiteWork.quietly(new AbortController().signal)
  await work.beforeLongStep()
  assert.equal(loop.turns, 0)
  clock.pass(4)
  await work.beforeLongStep()
  assert.equal(loop.turns, 1)
})

test('elements are worked through in their order, with turns of the event loop in between', async (t) => {
  const clock = standingClock(t)
  await nextTurn()
  const loop = countTurns()
  t.after(() => loop.stop())
  const seen: number[] = []
  const doubled = await inSlices([...Array(1000).keys()], (element) => {
    clock.pass(1)
    seen.push(loop.turns)
    return 2 * element
  })
  assert.deepEqual(
    doubled,
    Array.from({ length: 1000 }, (_, index) => 2 * index),
  )
  // A millisecond each, so that every look at the clock is one too late.
  assert.deepEqual([seen.at(0), seen.at(63), seen.at(-1)], [0, 1, Math.floor(1000 / 64)])
})

/** Counts of slots, of which each kind counts what it is told of a slot. */
function tallyOf(hits: readonly number[], filtered: readonly number[], lostRing: readonly number[]): Tally {
  return new Tally({ read: () => ({ hits, filtered, lostRing }) } as unknown as SiteCounts, hits.length, true)
}

test('the counts of groups are those of their slots together, also where each slot is a group', () => {
  const time = { seenMs: 7, seenFraction: 0.5 }
  const tally = tallyOf([1, 2, 4, 8], [0, 1, 1, 2], [0, 0, 3, 0])
  const ofGroups = (groupOf: readonly number[] | null, groups: number): NamedStats[] =>
    tally.ofGroups(
      { groupOf: groupOf && Int32Array.from(groupOf), names: ['a', 'b', 'c', 'd'].slice(0, groups), paths: Array(groups).fill('/p') },
      time,
    )
  const counted = (groupOf: readonly number[] | null, groups: number): number[][] =>
    ofGroups(groupOf, groups).map(({ hits, filtered, delivered, lost }) => [hits, filtered, delivered, lost])
  assert.deepEqual(counted(null, 4), [
    [1, 0, 1, 0],
    [2, 1, 1, 0],
    [4, 1, 3, 3],
    [8, 2, 6, 0],
  ])
  assert.deepEqual(counted([0, 1, 0, NO_GROUP], 2), [
    [5, 1, 4, 3],
    [2, 1, 1, 0],
  ])
  // As many groups as slots that are in one.
  assert.deepEqual(counted([NO_GROUP, 0, 1, 2], 3), [
    [2, 1, 1, 0],
    [4, 1, 3, 3],
    [8, 2, 6, 0],
  ])
  const [first] = ofGroups(null, 4)
  assert.deepEqual(first, { probe: 'a', path: '/p', hits: 1, filtered: 0, delivered: 1, lost: 0, lostRing: 0, lostQueue: 0, ...time })
})

test('perf events are told of from 64 on, and refused beyond 1024; links are neither', async () => {
  const parts = (via: 'perf' | 'multi', ...counts: number[]) => counts.map((count) => ({ via, sites: new Array(count).fill(0) }))
  assert.deepEqual(checkEvents(parts('perf', 63)), [])
  assert.deepEqual(checkEvents(parts('multi', 100_000)), [])
  assert.match(checkEvents(parts('perf', 32, 32)).join(), /^64 sites .* about 7 seconds/)
  assert.equal(checkEvents([...parts('perf', 1000, 24), ...parts('multi', 5000)]).length, 1)
  await refused((async () => checkEvents(parts('perf', 1000, 25)))(), 'ERR_UPROBE_TOO_MANY_SITES')
})

test('a step of which nothing is known to be done is told of from when there is, and else never', () => {
  const told: Array<[step: ProgressStep, done: number, total: number]> = []
  const work = new SiteWork(new AbortController().signal, (...progress) => told.push(progress))
  work.add('claim', 0)
  work.add('verify', 0)
  work.add('verify', 3)
  work.add('verify', 2)
  work.advance(3)
  work.end()
  assert.deepEqual(told, [
    ['verify', 0, 3],
    ['verify', 3, 5],
    ['verify', 5, 5],
  ])
})
