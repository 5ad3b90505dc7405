/**
 * Real files, cut and damaged at random: whatever is done to a file, reading it gives a result or a refusal, in bounded time.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import fc from 'fast-check'
import { ElfFile } from '../../lib/elf/elf-file.js'
import { findFunctions, findSymbolAddresses, functionContaining, isGoBinary } from '../../lib/elf/symbols.js'
import { readUsdtNotes } from '../../lib/elf/usdt-notes.js'
import { UprobeError } from '../../lib/errors.js'
import { buildTarget } from '../support/build.js'
import { FORMATS, LAYOUT, usdtFile } from '../support/elf-builder.js'
import { tempDirectory } from '../support/temp.js'
import { readingNeeds } from './files.js'

/** More than any of these files takes on a busy machine, and far less than a loop that a file controls. */
const LONGEST_MS = 5000

/** Bytes to put somewhere. Values at the edges of a field are the ones that hurt. */
interface Damage {
  readonly at: number
  readonly bytes: Buffer
}

const EDGES = [0n, 1n, 0x7fn, 0x80n, 0xffn, 0xffffn, 0x7fff_ffffn, 0xffff_ffffn, 0x7fff_ffff_ffff_ffffn, 0xffff_ffff_ffff_ffffn]

function damageAt(place: fc.Arbitrary<number>): fc.Arbitrary<Damage> {
  const edge = fc.tuple(fc.constantFrom(...EDGES), fc.constantFrom(1, 2, 4, 8)).map(([value, width]) => {
    const bytes = Buffer.alloc(8)
    bytes.writeBigUInt64LE(value)
    return bytes.subarray(0, width)
  })
  const noise = fc.uint8Array({ minLength: 1, maxLength: 8 }).map((bytes) => Buffer.from(bytes))
  return fc.record({ at: place, bytes: fc.oneof(edge, noise) })
}

/** Damage that hits headers and tables more often than the rest, which is most of a file and matters least. */
function damages(file: Buffer, tables: readonly (readonly [start: number, bytes: number])[]): fc.Arbitrary<Damage[]> {
  const within = (start: number, bytes: number): fc.Arbitrary<number> => fc.nat(Math.max(0, bytes - 1)).map((at) => start + at)
  const places = [within(0, 64), within(0, file.length), ...tables.map(([start, bytes]) => within(start, bytes))]
  return fc.array(damageAt(fc.oneof(...places)), { minLength: 1, maxLength: 6 })
}

async function readEverything(path: string): Promise<void> {
  const elf = await ElfFile.open(path)
  try {
    for (const reading of [
      () => readUsdtNotes(elf),
      () => findFunctions(elf, '*'),
      () => findFunctions(elf, '_Z*s?'),
      () => findFunctions(elf, 'main'),
      () => findSymbolAddresses(elf, new Set(['main', 'environ', '_ZSt4cout'])),
      () => functionContaining(elf, 0x1100n),
    ]) {
      await orRefusal(reading)
    }
    elf.fileOffsetOf(0x1000n)
    elf.vaddrOf(0x1000n)
    isGoBinary(elf)
  } finally {
    await elf.close()
  }
}

/** How often reading gave a result, and how often a refusal. */
const outcomes = { results: 0, refusals: 0 }

async function orRefusal(reading: () => Promise<unknown>): Promise<void> {
  const start = performance.now()
  try {
    await reading()
    outcomes.results++
  } catch (error) {
    if (!(error instanceof UprobeError) || error.code !== 'ERR_UPROBE_BAD_ELF') throw error
    assert.match(error.message, /The file is damaged/)
    outcomes.refusals++
  }
  const ms = performance.now() - start
  assert.ok(ms < LONGEST_MS, `it took ${ms} ms`)
}

/** Where the tables of an undamaged file are. */
async function tablesOf(path: string): Promise<[number, number][]> {
  const elf = await ElfFile.open(path)
  const last = Math.max(...elf.sections.map(({ offset }) => Number(offset)))
  const wanted = elf.sections.filter(({ type }) => [2, 3, 5, 6, 7, 11, 0x6ffffff6, 0x6ffffffd, 0x6fffffff].includes(type))
  await elf.close()
  return [[last, Number(elf.size) - last], ...wanted.map(({ offset, size }): [number, number] => [Number(offset), Number(size)])]
}

async function damageAndRead(
  folder: string,
  original: Buffer,
  tables: readonly (readonly [number, number])[],
  numRuns: number,
): Promise<void> {
  const path = join(folder, 'damaged')
  const plan = fc.record({ damages: damages(original, tables), cut: fc.option(fc.nat(original.length), { freq: 4 }), bare: fc.boolean() })
  await fc.assert(
    fc.asyncProperty(plan, async ({ damages, cut, bare }) => {
      const bytes = Buffer.from(original)
      // Without section headers symbols are found in another way.
      if (bare && bytes[4] === 2) bytes.fill(0, 40, 48).fill(0, 60, 64)
      for (const { at, bytes: damage } of damages) damage.copy(bytes, at)
      writeFileSync(path, bytes.subarray(0, cut ?? bytes.length))
      await orRefusal(() => readEverything(path))
    }),
    { numRuns },
  )
}

test('a damaged program with USDT probes', readingNeeds('/usr/bin/gcc'), async (t) => {
  const path = buildTarget(t, 'usdt')
  await damageAndRead(tempDirectory(t), readFileSync(path), await tablesOf(path), 600)
})

test('a damaged C++ library', readingNeeds('/usr/lib/x86_64-linux-gnu/libstdc++.so.6'), async (t) => {
  const path = '/usr/lib/x86_64-linux-gnu/libstdc++.so.6'
  await damageAndRead(tempDirectory(t), readFileSync(path), await tablesOf(path), 60)
})

for (const format of FORMATS) {
  test(`a damaged file of ${format.bits} bits, ${format.littleEndian ? 'little' : 'big'}-endian`, async (t) => {
    const note = { provider: 'shop', name: 'sale', args: '4@%edi', pc: 0x1010, base: LAYOUT.base.address, semaphore: LAYOUT.probes.address }
    const { bytes, sectionHeadersAt } = usdtFile(format, 0, [[note, note], [note]])
    await damageAndRead(tempDirectory(t), bytes, [[sectionHeadersAt, bytes.length - sectionHeadersAt]], 300)
  })
}

after(() => {
  // Damage that is always refused at once, or never, would test nothing.
  assert.ok(outcomes.results > 100 && outcomes.refusals > 100, JSON.stringify(outcomes))
})
