/**
 * Files that lie: each is refused with what is wrong, in bounded time and memory, and what is sound beside the lie is still read.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, openSync, truncateSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { describe, type TestContext, test } from 'node:test'
import { listFile } from '../../lib/elf/list.js'
import { readUsdtNotes } from '../../lib/elf/usdt-notes.js'
import {
  buildElf,
  type ElfFormat,
  Fields,
  LAYOUT,
  type NotePlan,
  note,
  PF_RW,
  PF_RX,
  type SectionPlan,
  SHT,
  usdtFile,
  usdtNote,
} from '../support/elf-builder.js'
import { tempDirectory } from '../support/temp.js'
import { refuses, withElf, writeElf } from './files.js'

const FORMAT: ElfFormat = { bits: 64, littleEndian: true }
const NOTE: NotePlan = { provider: 'p', name: 'n', args: '', pc: 0x1010, base: LAYOUT.base.address, semaphore: LAYOUT.probes.address }

/** Places in the 64-bit ELF header. */
const EHDR = { phoff: 32, shoff: 40, phentsize: 54, phnum: 56, shentsize: 58, shnum: 60, shstrndx: 62 } as const
/** Places in a 64-bit section header. */
const SHDR = { name: 0, type: 4, offset: 24, size: 32, link: 40, info: 44 } as const

const MEBIBYTE = 1024 * 1024

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
