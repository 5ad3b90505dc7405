/**
 * Files that lie: each is refused with what is wrong, in bounded time and memory, and what is sound beside the lie is still read.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, openSync, truncateSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { describe, type TestContext, test } from 'node:test'
import { ElfFile } from '../../lib/elf/elf-file.js'
import { listFile } from '../../lib/elf/list.js'
import { readUsdtNotes } from '../../lib/elf/stapsdt.js'
import { findFunctions, functionContaining } from '../../lib/elf/symbols.js'
import {
  buildElf,
  type ElfFormat,
  Fields,
  LAYOUT,
  type NotePlan,
  note,
  PF_RW,
  PF_RX,
  PT_DYNAMIC,
  type SectionPlan,
  SHT,
  usdtFile,
  usdtNote,
} from '../support/elf-builder.js'
import { tempDirectory } from '../support/temp.js'
import { refuses, writeElf } from './files.js'

const FORMAT: ElfFormat = { bits: 64, littleEndian: true }
const NOTE: NotePlan = { provider: 'p', name: 'n', args: '', pc: 0x1010, base: LAYOUT.base.address, semaphore: LAYOUT.probes.address }

/** Places in the 64-bit ELF header. */
const EHDR = { phoff: 32, shoff: 40, phentsize: 54, phnum: 56, shentsize: 58, shnum: 60, shstrndx: 62 } as const
/** Places in a 64-bit section header. */
const SHDR = { name: 0, type: 4, offset: 24, size: 32, link: 40, info: 44 } as const

const MEBIBYTE = 1024 * 1024

async function withElf<T>(path: string, use: (elf: ElfFile) => Promise<T>): Promise<T> {
  const elf = await ElfFile.open(path)
  try {
    return await use(elf)
  } finally {
    await elf.close()
  }
}

/** A sound file, and a change to it. */
function changed(t: TestContext, change: (bytes: Buffer, built: ReturnType<typeof usdtFile>) => void): string {
  const built = usdtFile(FORMAT, 0, [[NOTE]])
  change(built.bytes, built)
  return writeElf(t, built.bytes)
}

/** A file whose only section of notes has this content. */
function withNotes(t: TestContext, content: Buffer, size?: number): string {
  const section: SectionPlan = { name: '.note.stapsdt', type: SHT.note, content, ...(size === undefined ? {} : { size }) }
  return writeElf(t, buildElf({ ...FORMAT, sections: [section] }).bytes)
}

describe('what is no ELF file', () => {
  for (const [what, content] of [
    ['an empty file', ''],
    ['three bytes', '\x7fEL'],
    ['a script', '#!/bin/sh\nexit 0\n'.repeat(20)],
  ] as const) {
    test(`${what} is refused as such`, async (t) => {
      await refuses(listFile(writeElf(t, Buffer.from(content))), 'ERR_UPROBE_BAD_ELF', /not an ELF file/)
    })
  }

  test('a directory, a missing file and a FIFO are refused without waiting', async (t) => {
    const folder = tempDirectory(t)
    await refuses(listFile(folder), 'ERR_UPROBE_FILE', /is not a regular file/)
    await refuses(listFile(join(folder, 'none')), 'ERR_UPROBE_FILE', /cannot be opened \(ENOENT\)/)
    execFileSync('mkfifo', [join(folder, 'fifo')])
    await refuses(listFile(join(folder, 'fifo')), 'ERR_UPROBE_FILE', /is not a regular file/)
    await refuses(listFile('/dev/null'), 'ERR_UPROBE_FILE', /is not a regular file/)
  })

  test('a path is escaped in the message', async (t) => {
    await refuses(listFile(writeElf(t, Buffer.from('x'), 'a\x1b[31m')), 'ERR_UPROBE_BAD_ELF', /a\\x1b\[31m: not an ELF/)
  })
})

describe('headers', () => {
  const cases: ReadonlyArray<readonly [string, RegExp, (bytes: Buffer, built: ReturnType<typeof usdtFile>) => void]> = [
    ['an unknown class', /unknown ELF class 3 \(at file offset 0x4\)/, (bytes) => bytes.writeUInt8(3, 4)],
    ['an unknown byte order', /unknown byte order 0 \(at file offset 0x5\)/, (bytes) => bytes.writeUInt8(0, 5)],
    [
      'program headers behind the end',
      /program headers reach beyond the end of the file/,
      (bytes) => bytes.writeBigUInt64LE(2n ** 63n, EHDR.phoff),
    ],
    [
      'section headers behind the end',
      /section headers reach beyond the end of the file/,
      (bytes) => bytes.writeBigUInt64LE(2n ** 64n - 1n, EHDR.shoff),
    ],
    ['program headers of a wrong size', /program headers of 57 bytes, where 56/, (bytes) => bytes.writeUInt16LE(57, EHDR.phentsize)],
    ['section headers of size 0', /section headers of 0 bytes, where 64/, (bytes) => bytes.writeUInt16LE(0, EHDR.shentsize)],
    ['more program headers than there is room for', /program headers reach beyond/, (bytes) => bytes.writeUInt16LE(4000, EHDR.phnum)],
    ['absurdly many program headers', /60000 program headers, more than/, (bytes) => bytes.writeUInt16LE(60_000, EHDR.phnum)],
    [
      'four billion program headers by the extension',
      /4294967295 program headers, more than/,
      (bytes, { sectionHeadersAt }) => {
        bytes.writeUInt16LE(0xffff, EHDR.phnum)
        bytes.writeUInt32LE(0xffff_ffff, sectionHeadersAt + SHDR.info)
      },
    ],
    [
      '2^60 sections by the extension',
      /1152921504606846976 sections, more than/,
      (bytes, { sectionHeadersAt }) => {
        bytes.writeUInt16LE(0, EHDR.shnum)
        bytes.writeBigUInt64LE(2n ** 60n, sectionHeadersAt + SHDR.size)
      },
    ],
    ['section names in a section that does not exist', /said to be in section 77 of 7/, (bytes) => bytes.writeUInt16LE(77, EHDR.shstrndx)],
    [
      'a section name behind the table of names',
      /name of a section does not end within/,
      (bytes, { sectionHeadersAt }) => bytes.writeUInt32LE(0xffff_fff0, sectionHeadersAt + 64 + SHDR.name),
    ],
    [
      'a table of names without an end',
      /name of a section does not end within/,
      (bytes, { sectionHeadersAt }) => bytes.writeBigUInt64LE(3n, sectionHeadersAt + 6 * 64 + SHDR.size),
    ],
    [
      'a huge table of names',
      /table of section names of 1099511627776 bytes/,
      (bytes, { sectionHeadersAt }) => bytes.writeBigUInt64LE(2n ** 40n, sectionHeadersAt + 6 * 64 + SHDR.size),
    ],
  ]
  for (const [what, message, change] of cases) {
    test(`refuses ${what}`, async (t) => {
      await refuses(listFile(changed(t, change)), 'ERR_UPROBE_BAD_ELF', message)
    })
  }

  test('refuses a file that is cut at any place, or gives the same notes', async (t) => {
    const { bytes } = usdtFile(FORMAT, 0, [[NOTE]])
    const path = writeElf(t, bytes)
    for (let length = bytes.length - 1; length >= 0; length -= length > 200 ? 97 : 1) {
      truncateSync(path, length)
      await refuses(listFile(path), 'ERR_UPROBE_BAD_ELF', /./)
    }
  })

  test('reads numbers of sections and of names that are in the first section header', async (t) => {
    const path = changed(t, (bytes, { sectionHeadersAt }) => {
      bytes.writeUInt16LE(0, EHDR.shnum)
      bytes.writeUInt16LE(0xffff, EHDR.shstrndx)
      bytes.writeBigUInt64LE(7n, sectionHeadersAt + SHDR.size)
      bytes.writeUInt32LE(6, sectionHeadersAt + SHDR.link)
    })
    assert.equal((await listFile(path)).length, 1)
  })

  test('gives no offset behind the end of the file', async (t) => {
    const path = changed(t, (bytes, { programHeadersAt }) => bytes.writeBigUInt64LE(2n ** 40n, programHeadersAt + 8))
    assert.deepEqual(
      (await listFile(path)).map(({ fileOffset, refCtrOffset }) => [fileOffset, refCtrOffset]),
      [[null, 0x2000n]],
    )
  })

  test('of overlapping segments the one that begins last counts', async (t) => {
    const segments = [
      { flags: PF_RW, offset: 0x2000, vaddr: 0x1800, fileSize: 0x100 },
      { flags: PF_RX, offset: 0x1000, vaddr: 0x1000, fileSize: 0x1000 },
    ]
    const path = writeElf(t, Buffer.concat([buildElf({ ...FORMAT, segments }).bytes, Buffer.alloc(0x3000)]))
    await withElf(path, async (elf) => {
      assert.deepEqual(
        [0x17ffn, 0x1800n].map((a) => elf.fileOffsetOf(a)),
        [0x17ffn, 0x2000n],
      )
      assert.deepEqual(
        [0x17ffn, 0x1800n].map((a) => elf.isExecutable(a)),
        [true, false],
      )
    })
  })
})

describe('notes', () => {
  const sound = usdtNote(FORMAT, NOTE)
  const desc = (...parts: string[]): Buffer => note(FORMAT, 'stapsdt', 3, new Fields(FORMAT).word(1, 2, 3).raw(...parts).bytes)
  const header = (nameBytes: number, descBytes: number): Buffer => new Fields(FORMAT).u32(nameBytes, descBytes, 3).raw('stapsdt\0').bytes
  const cases: ReadonlyArray<readonly [string, RegExp, Buffer]> = [
    ['a name of 4 GiB', /note reaches beyond its section .note.stapsdt \(at file offset 0x(40|74)\)/, header(0xffff_ffff, 24)],
    ['a description of 4 GiB', /note reaches beyond its section/, header(8, 0xffff_ffff)],
    ['too little for three addresses', /USDT note of 23 bytes is too short/, note(FORMAT, 'stapsdt', 3, Buffer.alloc(23))],
    ['no strings', /has a provider that does not end within it/, desc()],
    ['a provider without an end', /has a provider that does not end within it/, desc('provider')],
    ['a name without an end', /has a name that does not end within it/, desc('p\0name')],
    ['arguments without an end', /has a list of arguments that does not end within it/, desc('p\0n\0-4@%edi')],
    ['a string of a megabyte', /USDT note of 1048603 bytes is longer than the 65536/, desc('x'.repeat(MEBIBYTE), '\0\0\0')],
    ['a note that is cut off', /last note of .note.stapsdt is cut off/, Buffer.concat([sound, Buffer.from([8, 0, 0, 0, 1])])],
  ]
  for (const [what, message, content] of cases) {
    test(`refuses ${what}`, async (t) => {
      await refuses(listFile(withNotes(t, content)), 'ERR_UPROBE_BAD_ELF', message)
      await refuses(listFile(withNotes(t, Buffer.concat([sound, content]))), 'ERR_UPROBE_BAD_ELF', message)
    })
  }

  test('refuses a section that reaches beyond the file', async (t) => {
    await refuses(listFile(withNotes(t, sound, 4096)), 'ERR_UPROBE_BAD_ELF', /4096 bytes reach beyond the end of the file/)
  })

  test('refuses 10^9 notes that a sparse file claims to have', async (t) => {
    const size = 10 ** 9 * sound.length
    const path = withNotes(t, sound, size)
    truncateSync(path, size + MEBIBYTE)
    await refuses(listFile(path), 'ERR_UPROBE_BAD_ELF', /bytes of USDT notes, more than the 16777216/)
  })

  test('refuses sections that claim the same bytes again and again', async (t) => {
    const content = Buffer.alloc(12 * 10_000)
    const again = Array.from({ length: 1000 }, () => ({ name: '.note.stapsdt', type: SHT.note, offset: 0x10_0000, content }))
    await refuses(
      listFile(writeElf(t, buildElf({ ...FORMAT, sections: again }).bytes)),
      'ERR_UPROBE_BAD_ELF',
      /bytes of USDT notes, more than/,
    )
  })

  test('refuses as many notes as fit, and lets the event loop run meanwhile', async (t) => {
    const path = withNotes(t, Buffer.concat(Array.from({ length: 200_000 }, () => sound)))
    assert.ok((await turnsDuring(() => refuses(listFile(path), 'ERR_UPROBE_BAD_ELF', /more than the 131072 USDT notes/))) > 10)
  })

  test('lets the event loop run while it passes over a million notes of others', async (t) => {
    // Twelve zeros are a note without owner, type and description.
    const path = withNotes(t, Buffer.alloc(12 * 1_000_000))
    assert.ok((await turnsDuring(() => listFile(path))) > 5)
  })
})

/** How often the event loop comes round while something runs. */
async function turnsDuring(run: () => Promise<unknown>): Promise<number> {
  let turns = 0
  let running = true
  const turn = (): void => {
    turns++
    if (running) setImmediate(turn)
  }
  setImmediate(turn)
  try {
    await run()
  } finally {
    running = false
  }
  return turns
}

describe('symbols', () => {
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
})

test('a file that becomes shorter while it is read is refused', async (t) => {
  const path = changed(t, () => undefined)
  await withElf(path, async (elf) => {
    truncateSync(path, 0x1100)
    await refuses(readUsdtNotes(elf), 'ERR_UPROBE_BAD_ELF', /the file became shorter while it was read/)
  })
})

test('a file that is rewritten while it is open gives what it holds, or is refused', async (t) => {
  const path = changed(t, () => undefined)
  await withElf(path, async (elf) => {
    const fd = openSync(path, 'r+')
    writeSync(fd, Buffer.alloc(64), 0, 64, 0)
    closeSync(fd)
    assert.equal((await readUsdtNotes(elf)).length, 1)
  })
})
