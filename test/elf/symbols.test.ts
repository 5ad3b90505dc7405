/**
 * Symbols of real files, as `nm` gives them, and of files made by hand.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { test } from 'node:test'
import { ElfFile } from '../../lib/elf/elf-file.js'
import { type ElfSymbol, findFunctions, findSymbolAddresses, functionContaining, isGoBinary } from '../../lib/elf/symbols.js'
import { buildTarget } from '../support/build.js'
import { descriptors } from '../support/descriptors.js'
import { buildElf, type ElfFormat, Fields, FORMATS, PF_RX, SHF, SHT } from '../support/elf-builder.js'
import { type Cleanup, tempDirectory } from '../support/temp.js'
import { readingNeeds, writeElf } from './files.js'

const NM = '/usr/bin/nm'
const NODE = process.execPath
const LIBC = '/lib/x86_64-linux-gnu/libc.so.6'
const LIBCRYPTO = '/usr/lib/x86_64-linux-gnu/libcrypto.so.3'
const LIBSTDCXX = '/usr/lib/x86_64-linux-gnu/libstdc++.so.6'

async function opened(t: Cleanup, path: string): Promise<ElfFile> {
  const elf = await ElfFile.open(path)
  t.after(() => elf.close())
  return elf
}

interface NmSymbol {
  readonly name: string
  readonly vaddr: bigint
  readonly letter: string
}

/** What `nm` prints; without versions. */
function nm(path: string, ...options: readonly string[]): NmSymbol[] {
  const text = execFileSync(NM, [...options, path], { encoding: 'utf8', maxBuffer: 512 * 1024 * 1024, stdio: ['ignore', 'pipe', 'ignore'] })
  return [...text.matchAll(/^([0-9a-f]+) (\w) ([^@\n]*)/gm)].map(([, vaddr = '', letter = '', name = '']) => ({
    name,
    vaddr: BigInt(`0x${vaddr}`),
    letter,
  }))
}

const key = ({ name, vaddr }: { name: string; vaddr: bigint }): string => `${name} ${vaddr.toString(16)}`
const isFunctionOf = (symbols: readonly ElfSymbol[]): Set<string> => new Set(symbols.map(key))

test('finds malloc in libc, with its default version', readingNeeds(LIBC), async (t) => {
  const elf = await opened(t, LIBC)
  const found = await findFunctions(elf, 'malloc')
  const [expected] = nm(LIBC, '-D').filter(({ name }) => name === 'malloc')
  assert.deepEqual(
    found.map(({ name, version, defaultVersion, kind, vaddr }) => ({ name, version, defaultVersion, kind, vaddr })),
    [{ name: 'malloc', version: 'GLIBC_2.2.5', defaultVersion: true, kind: 'function', vaddr: expected?.vaddr }],
  )
})

test('tells the versions of memcpy apart, of which the default is an indirect function', readingNeeds(LIBC), async (t) => {
  const elf = await opened(t, LIBC)
  const brief = async (pattern: string): Promise<string[]> =>
    (await findFunctions(elf, pattern)).map((s) => `${s.name}${s.defaultVersion ? '@@' : '@'}${s.version} ${s.kind}`).sort()
  assert.deepEqual(await brief('memcpy'), ['memcpy@@GLIBC_2.14 ifunc', 'memcpy@GLIBC_2.2.5 function'])
  assert.deepEqual(await brief('memcpy@GLIBC_2.2.5'), ['memcpy@GLIBC_2.2.5 function'])
  assert.deepEqual(await brief('memcpy@@GLIBC_2.2.5'), [])
  assert.deepEqual(await brief('memcpy@@GLIBC_2.14'), ['memcpy@@GLIBC_2.14 ifunc'])
  assert.deepEqual(await brief('memcpy@GLIBC_2.14'), ['memcpy@@GLIBC_2.14 ifunc'])
  assert.deepEqual(await brief('memcpy@GLIBC_9'), [])
})

test('keeps two versions that are one function', readingNeeds(LIBC), async (t) => {
  const found = await findFunctions(await opened(t, LIBC), 'pthread_create')
  assert.deepEqual(found.map(({ version, defaultVersion }) => [version, defaultVersion]).sort(), [
    ['GLIBC_2.2.5', false],
    ['GLIBC_2.34', true],
  ])
  assert.equal(new Set(found.map(({ vaddr }) => vaddr)).size, 1)
})

test('finds a C++ function by its mangled name, and its family by a pattern', readingNeeds(LIBSTDCXX, NM), async (t) => {
  const elf = await opened(t, LIBSTDCXX)
  const [swap] = await findFunctions(elf, '_ZNSs4swapERSs')
  assert.equal(swap?.kind, 'function')
  assert.equal(swap.version, 'GLIBCXX_3.4')
  const expected = nm(LIBSTDCXX, '-D').filter(({ name, letter }) => name.startsWith('_ZNSs') && /[tTwWi]/.test(letter))
  assert.ok(expected.length > 50, `${expected.length} are expected`)
  assert.deepEqual(isFunctionOf(await findFunctions(elf, '_ZNSs*')), new Set(expected.map(key)))
})

test('finds every function of node, as many as nm, and no other', readingNeeds(NM), async (t) => {
  const elf = await opened(t, NODE)
  const table = execFileSync('/usr/bin/readelf', ['-sW', NODE], {
    encoding: 'utf8',
    maxBuffer: 512 * 1024 * 1024,
    env: { ...process.env, LC_ALL: 'C' },
  })
  const expected = new Set<string>()
  for (const [, value = '', section = '', name = ''] of table.matchAll(
    /^ +\d+: ([0-9a-f]+) +\w+ (?:FUNC|IFUNC) +\w+ +\w+ +(?:\[.*?\] +)?(\w+) ([^@\s]+)/gm,
  )) {
    if (section !== 'UND') expected.add(`${name} ${BigInt(`0x${value}`).toString(16)}`)
  }
  assert.ok(expected.size > 10_000, `${expected.size} are expected`)
  const found = await findFunctions(elf, '*')
  assert.equal(found.length, expected.size)
  assert.deepEqual(isFunctionOf(found), expected)
})

test('finds exact names of node at the addresses of nm', readingNeeds(NM), async (t) => {
  const elf = await opened(t, NODE)
  const expected = nm(NODE, '-D').filter(({ letter }) => /[TWDBV]/.test(letter))
  const sample = expected.filter((_, index) => index % 997 === 0)
  assert.ok(sample.length > 5)
  const addresses = await findSymbolAddresses(elf, new Set(sample.map(({ name }) => name)))
  for (const { name, vaddr, letter } of sample) {
    assert.equal(addresses.get(name), vaddr, name)
    if (letter === 'T')
      assert.deepEqual(
        (await findFunctions(elf, name)).map((s) => s.vaddr),
        [vaddr],
        name,
      )
  }
})

test('finds the symbols that the operands of PostgreSQL name', readingNeeds('/usr/lib/postgresql/15/bin/postgres', NM), async (t) => {
  const path = '/usr/lib/postgresql/15/bin/postgres'
  const names = ['NBuffers', 'CheckpointStats']
  const addresses = await findSymbolAddresses(await opened(t, path), new Set([...names, 'no_such_symbol']))
  assert.deepEqual(
    addresses,
    new Map(
      nm(path, '-D')
        .filter(({ name }) => names.includes(name))
        .map(({ name, vaddr }) => [name, vaddr]),
    ),
  )
  assert.equal(addresses.size, 2)
})

test('tells which function holds an address, for each function of a program', readingNeeds(NM, '/usr/bin/gcc'), async (t) => {
  const path = buildTarget(t, 'func')
  const elf = await opened(t, path)
  const sized = (await findFunctions(elf, '*')).filter(({ size }) => size > 1n)
  assert.ok(sized.length > 3)
  for (const { name, vaddr, size } of sized) {
    for (const address of [vaddr, vaddr + size - 1n]) assert.equal((await functionContaining(elf, address))?.vaddr, vaddr, name)
  }
  assert.equal(await functionContaining(elf, 0n), null)
})

test('finds the same after strip as nm -D does', readingNeeds(NM, '/usr/bin/strip', '/usr/bin/gcc'), async (t) => {
  const path = buildTarget(t, 'lib', 'shared')
  const whole = await findFunctions(await opened(t, path), '*')
  const stripped = join(tempDirectory(t), 'stripped.so')
  execFileSync('/usr/bin/strip', ['-o', stripped, path])
  const found = await findFunctions(await opened(t, stripped), '*')
  assert.deepEqual(
    isFunctionOf(found),
    new Set(
      nm(stripped, '-D')
        .filter(({ letter }) => /[TW]/.test(letter))
        .map(key),
    ),
  )
  assert.ok(found.length > 0 && found.length < whole.length)
})

/** A copy of a 64-bit file with e_shoff, e_shnum and e_shstrndx gone. */
function withoutSectionHeaders(t: Cleanup, path: string): string {
  const bytes = readFileSync(path)
  bytes.fill(0, 40, 48).fill(0, 60, 64)
  return writeElf(t, bytes)
}

// Debian's libc has DT_HASH, which says how many symbols there are; in the other libraries they are counted by DT_GNU_HASH.
for (const path of [LIBC, LIBSTDCXX, LIBCRYPTO]) {
  test(`finds the dynamic symbols of ${basename(path)} when its section headers are gone`, readingNeeds(path), async (t) => {
    const bare = await opened(t, withoutSectionHeaders(t, path))
    assert.equal(bare.sections.length, 0)
    const found = await findFunctions(bare, '*')
    assert.ok(found.length > 1000, `${found.length} found`)
    assert.deepEqual(found, await findFunctions(await opened(t, path), '*'))
    const [{ name, version } = { name: '', version: '' }] = found.filter((symbol) => symbol.defaultVersion)
    assert.ok((await findFunctions(bare, `${name}@@${version}`)).length > 0)
  })
}

/** A symbol as it is stored. */
interface SymbolPlan {
  readonly name: string
  readonly value: number
  readonly size?: number
  readonly type?: number
  readonly section?: number
}

function symbolFile(format: ElfFormat, symbols: readonly SymbolPlan[]): Buffer {
  const names = Buffer.from(['', ...symbols.map(({ name }) => name), ''].join('\0'))
  const table = new Fields(format)
  for (const { name, value, size = 16, type = 2, section = 1 } of [{ name: '', value: 0, type: 0, section: 0, size: 0 }, ...symbols]) {
    const nameOffset = name === '' ? 0 : names.indexOf(`\0${name}\0`) + 1
    if (format.bits === 64)
      table
        .u32(nameOffset)
        .u8(0x10 | type, 0)
        .u16(section)
        .word(value, size)
    else
      table
        .u32(nameOffset)
        .word(value, size)
        .u8(0x10 | type, 0)
        .u16(section)
  }
  return buildElf({
    ...format,
    segments: [{ flags: PF_RX, offset: 0x1000, vaddr: 0x1000, fileSize: 0x1000 }],
    sections: [
      {
        name: '.text',
        type: SHT.progbits,
        flags: SHF.alloc | SHF.exec,
        address: 0x1000,
        offset: 0x1000,
        content: Buffer.alloc(0x1000, 0x90),
      },
      { name: '.symtab', type: SHT.symtab, content: table.bytes, link: 3 },
      { name: '.strtab', type: SHT.strtab, content: names },
    ],
  }).bytes
}

for (const format of FORMATS) {
  test(`reads symbols of ${format.bits} bits, ${format.littleEndian ? 'little' : 'big'}-endian`, async (t) => {
    const symbols = [
      { name: 'begin', value: 0x1000, size: 0x20 },
      { name: 'outer', value: 0x1020, size: 0x40 },
      { name: 'inner', value: 0x1030, size: 0x10 },
      { name: 'open', value: 0x1100, size: 0 },
      { name: 'imported', value: 0, section: 0 },
      { name: 'number', value: 0x1000, section: 0xfff1 },
      { name: 'label', value: 0x1180, type: 0, size: 0 },
      { name: 'constant', value: 0x9000, type: 0, size: 0 },
      { name: 'variable', value: 0x1200, type: 1 },
      { name: 'per_thread', value: 0x10, type: 6 },
      { name: 'chosen', value: 0x1240, type: 10 },
      { name: 'static', value: 0x1300 },
      { name: 'static', value: 0x1400 },
      { name: 'versioned@@V2', value: 0x1500 },
      { name: 'versioned@V1', value: 0x1600 },
    ]
    const elf = await opened(t, writeElf(t, symbolFile(format, symbols)))
    const found = async (pattern: string): Promise<string[]> =>
      (await findFunctions(elf, pattern)).map((s) => `${s.name} ${s.vaddr.toString(16)} ${s.kind}`)
    assert.deepEqual(await found('begin'), ['begin 1000 function'])
    assert.deepEqual(await found('beg'), [])
    assert.deepEqual(await found('?nner'), ['inner 1030 function'])
    assert.deepEqual(await found('imported'), [])
    assert.deepEqual(await found('number'), [])
    assert.deepEqual(await found('label'), ['label 1180 other'])
    assert.deepEqual(await found('lab*'), [])
    assert.deepEqual(await found('constant'), [])
    assert.deepEqual(await found('variable'), [])
    assert.deepEqual(await found('chosen'), ['chosen 1240 ifunc'])
    assert.deepEqual(await found('static'), ['static 1300 function', 'static 1400 function'])
    assert.deepEqual(await found('versioned'), ['versioned 1500 function', 'versioned 1600 function'])
    assert.deepEqual(await found('versioned@@V2'), ['versioned 1500 function'])
    assert.deepEqual(await found('versioned@@V1'), [])
    assert.deepEqual(await found('vers*@V1'), ['versioned 1600 function'])

    const wanted = new Set(['begin', 'static', 'variable', 'per_thread', 'label', 'imported', 'versioned'])
    assert.deepEqual(
      await findSymbolAddresses(elf, wanted),
      new Map([
        ['begin', 0x1000n],
        ['label', 0x1180n],
        ['variable', 0x1200n],
      ]),
    )

    const holder = async (vaddr: bigint): Promise<string | null> => (await functionContaining(elf, vaddr))?.name ?? null
    assert.equal(await holder(0xfffn), null)
    assert.equal(await holder(0x101fn), 'begin')
    assert.equal(await holder(0x1020n), 'outer')
    assert.equal(await holder(0x1038n), 'inner')
    assert.equal(await holder(0x1050n), 'outer')
    assert.equal(await holder(0x1060n), null)
    assert.equal(await holder(0x11ffn), 'open')
  })
}

test('knows a Go program by its sections', async (t) => {
  const [format = { bits: 64, littleEndian: true }] = FORMATS
  const go = buildElf({ ...format, sections: [{ name: '.go.buildinfo', type: SHT.progbits, content: Buffer.alloc(16) }] })
  assert.equal(isGoBinary(await opened(t, writeElf(t, go.bytes))), true)
  assert.equal(isGoBinary(await opened(t, NODE)), false)
})

test('closes what it opened, and only that', async (t) => {
  const path = writeElf(t, symbolFile({ bits: 64, littleEndian: true }, [{ name: 'f', value: 0x1000 }]))
  const open = (): number => descriptors().filter((link) => link === path).length
  const elf = await ElfFile.open(path)
  assert.equal(open(), 1)
  await elf.close()
  assert.equal(open(), 0)
  // Most likely it gets the number that is free now.
  const next = openSync(path, 'r')
  t.after(() => closeSync(next))
  await elf.close()
  assert.equal(open(), 1)
  await assert.rejects(findFunctions(elf, 'f'), { code: 'ERR_UPROBE_CLOSED' })
})

test('finds an exact name wherever it lies among the names', async (t) => {
  // The names are searched in pieces of 1 MiB: one of these lies across the end of the first.
  const filler = Array.from({ length: 40 }, (_, index) => ({ name: `filler_${index}_${'x'.repeat(30_000)}`, value: 0x1000 }))
  const before = 2 ** 20 - 40
  const used = filler.reduce((sum, { name }) => sum + name.length + 1, 1)
  assert.ok(used > before)
  const kept = filler.slice(0, 34)
  const rest = before - kept.reduce((sum, { name }) => sum + name.length + 1, 1) - 1
  const symbols = [
    ...kept,
    { name: 'y'.repeat(rest), value: 0x1000 },
    { name: 'across'.repeat(12), value: 0x1100 },
    { name: 'last', value: 0x1200 },
  ]
  const elf = await opened(t, writeElf(t, symbolFile(FORMATS[0] ?? assert.fail(), symbols)))
  for (const name of [kept[3]?.name ?? '', 'across'.repeat(12), 'last'])
    assert.deepEqual(
      (await findFunctions(elf, name)).map((symbol) => symbol.name),
      [name],
    )
  assert.deepEqual(await findFunctions(elf, 'across'), [])
})
