/**
 * Symbol tables that lie: each is refused with what is wrong, in bounded time and memory, and the notes beside them are still read.
 */
import assert from 'node:assert/strict'
import { truncateSync } from 'node:fs'
import { type TestContext, test } from 'node:test'
import { findFunctions, functionContaining } from '../../lib/elf/symbols.js'
import { readUsdtNotes } from '../../lib/elf/usdt-notes.js'
import { buildElf, type ElfFormat, Fields, PF_RW, PF_RX, PT_DYNAMIC, type SectionPlan, SHT, usdtNote } from '../support/elf-builder.js'
import { refuses, withElf, writeElf } from './files.js'

const FORMAT: ElfFormat = { bits: 64, littleEndian: true }
const NOTE = { provider: 'p', name: 'n', args: '', pc: 0x1010, base: 0, semaphore: 0 }
const MEBIBYTE = 1024 * 1024

/** A file with a sound note and a symbol table; `entries` are (name offset, value). */
function withSymbols(
  t: TestContext,
  entries: ReadonlyArray<readonly [number, number]>,
  names: Buffer,
  changes: Partial<SectionPlan> = {},
): string {
  const table = new Fields(FORMAT)
  for (const [name, value] of entries) table.u32(name).u8(0x12, 0).u16(1).word(value, 1)
  const sections = [
    { name: '.note.stapsdt', type: SHT.note, content: usdtNote(FORMAT, NOTE) },
    { name: '.symtab', type: SHT.symtab, content: table.bytes, link: 3, ...changes },
    { name: '.strtab', type: SHT.strtab, content: names },
  ]
  return writeElf(t, buildElf({ ...FORMAT, sections }).bytes)
}

async function refusesSymbols(path: string, message: RegExp): Promise<void> {
  await withElf(path, async (elf) => {
    await refuses(findFunctions(elf, '*'), 'ERR_UPROBE_BAD_ELF', message)
    assert.equal((await readUsdtNotes(elf)).length, 1, 'the notes are still read')
  })
}

test('refuses a name behind the table of names', async (t) => {
  await refusesSymbols(withSymbols(t, [[100, 1]], Buffer.from('\0f\0')), /symbol name begins behind the table of names/)
})

test('refuses a name without an end', async (t) => {
  await refusesSymbols(withSymbols(t, [[1, 1]], Buffer.from('\0func')), /symbol name does not end within the table/)
  await withElf(withSymbols(t, [[1, 1]], Buffer.from('\0func')), (elf) =>
    refuses(functionContaining(elf, 1n), 'ERR_UPROBE_BAD_ELF', /does not end/),
  )
})

test('refuses a table that refers to a section that does not exist', async (t) => {
  await refusesSymbols(withSymbols(t, [[1, 1]], Buffer.from('\0f\0'), { link: 99 }), /refers to section 99 of 5/)
})

test('refuses a table that reaches beyond the file, and one of absurd size', async (t) => {
  await refusesSymbols(withSymbols(t, [[1, 1]], Buffer.from('\0f\0'), { size: 24 * 1000 }), /reach beyond the end of the file/)
  await refusesSymbols(withSymbols(t, [[1, 1]], Buffer.from('\0f\0'), { size: 2 ** 40 }), /45812984490 symbols, more than/)
})

test('refuses names of absurd size in a sparse file', async (t) => {
  const sections = [
    { name: '.symtab', type: SHT.symtab, content: new Fields(FORMAT).u32(1).u8(0x12, 0).u16(1).word(1, 1).bytes, link: 2 },
    { name: '.strtab', type: SHT.strtab, content: Buffer.from('\0f\0'), size: 2 ** 40 },
  ]
  const path = writeElf(t, buildElf({ ...FORMAT, sections }).bytes)
  truncateSync(path, 2 ** 41)
  await withElf(path, (elf) => refuses(findFunctions(elf, 'f'), 'ERR_UPROBE_BAD_ELF', /1099511627776 bytes of symbol names, more than/))
})

test('refuses names that overlap to far more than the file has', async (t) => {
  const names = Buffer.from(`\0${'x'.repeat(60_000)}\0`)
  const entries = Array.from({ length: 20_000 }, (_, n) => [1 + (n % 1000), n + 1] as const)
  await refusesSymbols(withSymbols(t, entries, names), /more than 268435456 bytes of symbol names, which overlap/)
})

test('passes over a name longer than 64 KiB', async (t) => {
  const names = Buffer.from(`\0${'x'.repeat(70_000)}\0f\0`)
  await withElf(
    withSymbols(
      t,
      [
        [1, 1],
        [70_002, 2],
      ],
      names,
    ),
    async (elf) => {
      assert.deepEqual(
        (await findFunctions(elf, '*')).map(({ name }) => name),
        ['f'],
      )
    },
  )
})

test('finds names on both sides of where a window of names ends', async (t) => {
  const windowBytes = 16 * MEBIBYTE - 64 * 1024
  const names = Buffer.alloc(windowBytes + 100)
  names.write('first', windowBytes - 3)
  names.write('second', windowBytes + 10)
  const path = withSymbols(
    t,
    [
      [windowBytes + 10, 0x20],
      [windowBytes - 3, 0x10],
      [windowBytes, 0x30],
    ],
    names,
  )
  await withElf(path, async (elf) => {
    const found = async (pattern: string): Promise<string[]> =>
      (await findFunctions(elf, pattern)).map(({ name, vaddr }) => `${name} ${vaddr}`)
    assert.deepEqual(await found('*'), ['first 16', 'second 32', 'st 48'])
    assert.deepEqual(await found('first'), ['first 16'])
    assert.deepEqual(await found('second'), ['second 32'])
    assert.deepEqual(await found('s?'), ['st 48'])
  })
})

test('refuses more symbols than can be meant', async (t) => {
  const entries = Array.from({ length: 2 ** 18 + 1 }, (_, n) => [1, n + 1] as const)
  await withElf(withSymbols(t, entries, Buffer.from('\0f\0')), (elf) =>
    refuses(findFunctions(elf, 'f'), 'ERR_UPROBE_TOO_MANY_SITES', /More than 262144 symbols/),
  )
})

test('refuses version definitions that lead out of their section, or out of the table of names', async (t) => {
  const versioned = (definition: Fields): string => {
    const sections = [
      { name: '.dynsym', type: SHT.dynsym, content: new Fields(FORMAT).u32(1).u8(0x12, 0).u16(1).word(1, 1).bytes, link: 2 },
      { name: '.dynstr', type: SHT.strtab, content: Buffer.from('\0f\0V1\0no end') },
      { name: '.gnu.version', type: SHT.versym, content: new Fields(FORMAT).u16(2).bytes },
      { name: '.gnu.version_d', type: SHT.verdef, content: definition.bytes },
    ]
    return writeElf(t, buildElf({ ...FORMAT, sections }).bytes)
  }
  /** One definition, of index 2, and its auxiliary entry. */
  const define = (aux: number, name: number, next: number): Fields => new Fields(FORMAT).u16(1, 0, 2, 1).u32(0, aux, next).u32(name, 0)
  const find = (definition: Fields): Promise<(string | null)[]> =>
    withElf(versioned(definition), async (elf) => (await findFunctions(elf, 'f')).map(({ version }) => version))
  assert.deepEqual(await find(define(20, 3, 0)), ['V1'])
  assert.deepEqual(await find(define(20, 3, 0xffff_ffff)), ['V1'])
  await refuses(find(define(0xffff_ffff, 3, 0)), 'ERR_UPROBE_BAD_ELF', /version definition reaches beyond its section/)
  await refuses(find(define(20, 1000, 0)), 'ERR_UPROBE_BAD_ELF', /name of a version begins behind the table/)
  await refuses(find(define(20, 6, 0)), 'ERR_UPROBE_BAD_ELF', /name of a version does not end within 6 bytes/)
})

test('refuses a hash table whose chain has no end, and one of absurd size', async (t) => {
  const dynamic = (hash: Fields): string => {
    const entries = new Fields(FORMAT).word(5, 0x1000, 6, 0x1000, 10, 16, 0x6ffffef5, 0x1100, 0, 0)
    const bytes = buildElf({
      ...FORMAT,
      withoutSectionHeaders: true,
      segments: [
        { flags: PF_RX, offset: 0x1000, vaddr: 0x1000, fileSize: 0x200 },
        { type: PT_DYNAMIC, flags: PF_RW, offset: 0x800, vaddr: 0x800, fileSize: entries.bytes.length },
      ],
      sections: [
        { name: 'dynamic', type: SHT.progbits, offset: 0x800, content: entries.bytes },
        { name: 'image', type: SHT.progbits, offset: 0x1000, content: Buffer.alloc(0x200) },
        { name: 'hash', type: SHT.progbits, offset: 0x1100, content: hash.bytes },
      ],
    }).bytes
    return writeElf(t, bytes)
  }
  const endless = new Fields(FORMAT)
    .u32(1, 1, 1, 0)
    .word(0)
    .u32(1)
    .u32(...Array.from({ length: 70_000 }, () => 2))
  await withElf(dynamic(endless), (elf) =>
    refuses(findFunctions(elf, 'f'), 'ERR_UPROBE_BAD_ELF', /chain of the symbol hash table has no end/),
  )
  const absurd = new Fields(FORMAT).u32(0xffff_ffff, 1, 1, 0)
  await withElf(dynamic(absurd), (elf) => refuses(findFunctions(elf, 'f'), 'ERR_UPROBE_BAD_ELF', /4294967295 buckets of symbols/))
})
