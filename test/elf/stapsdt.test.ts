/**
 * USDT notes in files of every class and byte order, made by hand.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { ElfFile } from '../../lib/elf/elf-file.js'
import { listFile } from '../../lib/elf/list.js'
import type { UsdtNote } from '../../lib/elf/stapsdt.js'
import { readUsdtNotes } from '../../lib/elf/usdt-notes.js'
import { buildElf, ET_REL, FORMATS, LAYOUT, type NotePlan, note, PF_RX, SHT, usdtFile, usdtNote } from '../support/elf-builder.js'
import { tempDirectory } from '../support/temp.js'
import { readingNeeds, refuses, writeElf } from './files.js'

const [LE64 = { bits: 64, littleEndian: true }] = FORMATS

async function notesIn(path: string): Promise<readonly UsdtNote[]> {
  const elf = await ElfFile.open(path)
  try {
    return await readUsdtNotes(elf)
  } finally {
    await elf.close()
  }
}

/** A note at the beginning of the code, its semaphore at the beginning of `.probes`. */
function plan(imageBase: number, changes: Partial<NotePlan> = {}): NotePlan {
  return {
    provider: 'shop',
    name: 'sale',
    args: '-4@%edi 8@%rsi',
    pc: imageBase + LAYOUT.text.address + 0x10,
    base: imageBase + LAYOUT.base.address,
    semaphore: imageBase + LAYOUT.probes.address + 2,
    ...changes,
  }
}

for (const format of FORMATS) {
  for (const imageBase of [0, 0x40_0000]) {
    const kind = `${format.bits}-bit ${format.littleEndian ? 'little' : 'big'}-endian ${imageBase === 0 ? 'PIE' : 'executable at a fixed address'}`
    describe(`a ${kind}`, () => {
      test('gives what its note stores, and both offsets in the file', async (t) => {
        const path = writeElf(t, usdtFile(format, imageBase, [[plan(imageBase)]]).bytes)
        assert.deepEqual(await notesIn(path), [
          {
            provider: 'shop',
            name: 'sale',
            args: '-4@%edi 8@%rsi',
            pc: BigInt(imageBase + 0x1010),
            base: BigInt(imageBase + 0x11f0),
            semaphore: BigInt(imageBase + 0x5002),
            vaddr: BigInt(imageBase + 0x1010),
            fileOffset: 0x1010n,
            semaphoreVaddr: BigInt(imageBase + 0x5002),
            refCtrOffset: 0x2002n,
          },
        ])
      })

      for (const [direction, distance] of [
        ['up', 0x30],
        ['down', -0x20],
      ] as const) {
        test(`moves location and semaphore with .stapsdt.base when it was moved ${direction}`, async (t) => {
          // The note was written before the file was moved by `distance`.
          const stored = plan(imageBase + 0x100 - distance, {
            base: imageBase + LAYOUT.base.address - distance,
            semaphore: imageBase + LAYOUT.probes.address + 0x40 - distance,
          })
          const [moved] = await notesIn(writeElf(t, usdtFile(format, imageBase, [[stored]]).bytes))
          assert.equal(moved?.pc, BigInt(imageBase + 0x1110 - distance))
          assert.equal(moved.vaddr, BigInt(imageBase + 0x1110))
          assert.equal(moved.fileOffset, 0x1110n)
          assert.equal(moved.semaphoreVaddr, BigInt(imageBase + 0x5040))
          assert.equal(moved.refCtrOffset, 0x2040n)
        })
      }
    })
  }
}

test('does not make a semaphore of 0 one by moving it', async (t) => {
  const [moved] = await notesIn(writeElf(t, usdtFile(LE64, 0, [[plan(0, { base: 0x1000, semaphore: 0 })]]).bytes))
  assert.equal(moved?.semaphoreVaddr, null)
  assert.equal(moved.refCtrOffset, null)
})

for (const format of FORMATS) {
  test(`moves through the end of a ${format.bits}-bit address space, ${format.littleEndian ? 'little' : 'big'}-endian`, async (t) => {
    // Moved up by 0x1100 the base stays where addresses are small, while the probe, as it was stored, is at the far end.
    const below = (address: number): bigint => BigInt.asUintN(format.bits, BigInt(address) - 0x1100n)
    const stored = plan(0, { pc: below(0x1010), base: below(LAYOUT.base.address), semaphore: below(LAYOUT.probes.address) })
    const [moved] = await notesIn(writeElf(t, usdtFile(format, 0, [[stored]]).bytes))
    assert.deepEqual([moved?.pc, moved?.base, moved?.semaphore], [2n ** BigInt(format.bits) - 0xf0n, 0xf0n, 0x3f00n])
    assert.deepEqual([moved?.vaddr, moved?.semaphoreVaddr], [0x1010n, 0x5000n])
    assert.deepEqual([moved?.fileOffset, moved?.refCtrOffset], [0x1010n, 0x2000n])
  })
}

test('has no offset for a semaphore in .bss, nor one that is in no segment', async (t) => {
  const inBss = plan(0, { name: 'bss', semaphore: LAYOUT.bss.address })
  const last = plan(0, { name: 'last', semaphore: LAYOUT.bss.address - 2 })
  const nowhere = plan(0, { name: 'nowhere', semaphore: 0x9000 })
  const notes = await notesIn(writeElf(t, usdtFile(LE64, 0, [[inBss, last, nowhere]]).bytes))
  assert.deepEqual(
    notes.map(({ name, semaphoreVaddr, refCtrOffset }) => ({ name, semaphoreVaddr, refCtrOffset })),
    [
      { name: 'bss', semaphoreVaddr: 0x5100n, refCtrOffset: null },
      { name: 'last', semaphoreVaddr: 0x50fen, refCtrOffset: 0x20fen },
      { name: 'nowhere', semaphoreVaddr: 0x9000n, refCtrOffset: null },
    ],
  )
})

test('gives each site of a probe, from every note section, in the order of the file', async (t) => {
  const sites = [0x10, 0x20, 0x30].map((at) => plan(0, { pc: LAYOUT.text.address + at }))
  const other = plan(0, { name: 'refund', args: '' })
  const notes = await notesIn(writeElf(t, usdtFile(LE64, 0, [sites, [other]]).bytes))
  assert.deepEqual(
    notes.map(({ name, args, fileOffset }) => [name, args, fileOffset]),
    [
      ['sale', '-4@%edi 8@%rsi', 0x1010n],
      ['sale', '-4@%edi 8@%rsi', 0x1020n],
      ['sale', '-4@%edi 8@%rsi', 0x1030n],
      ['refund', '', 0x1010n],
    ],
  )
})

test('passes over notes of other owners and types', async (t) => {
  const content = Buffer.concat([
    note(LE64, 'GNU', 3, Buffer.alloc(20)),
    note(LE64, 'stapsdt', 4, Buffer.alloc(5)),
    usdtNote(LE64, plan(0)),
    note(LE64, '', 1, Buffer.alloc(0)),
  ])
  const built = usdtFile(LE64, 0, [], { sections: [{ name: '.note.stapsdt', type: SHT.note, content }] })
  assert.deepEqual(
    (await notesIn(writeElf(t, built.bytes))).map(({ name }) => name),
    ['sale'],
  )
})

test('decodes names as UTF-8 where they are, and byte for byte where not', async (t) => {
  const utf8 = plan(0, { name: 'größe', provider: '\ufffd' })
  const bytes = plan(0, { name: Buffer.from([0x61, 0xff, 0xfe]) })
  const notes = await notesIn(writeElf(t, usdtFile(LE64, 0, [[utf8, bytes]]).bytes))
  assert.deepEqual(
    notes.map(({ provider, name }) => [provider, name]),
    [
      ['\ufffd', 'größe'],
      ['shop', 'aÿþ'],
    ],
  )
})

test('gives every note of a long section what is its own, whatever those before it have', async (t) => {
  // Together some hundred times what is decoded at once; texts of all lengths, equal to those before, or longer, shorter, or beginning alike.
  const plans = Array.from({ length: 3000 }, (_, index) =>
    plan(0, {
      provider: `provider${'x'.repeat(index % 3 === 0 ? index % 700 : 5)}`,
      name: `${index % 5 === 0 ? 'größe' : 'name'}${index}`,
      args: index % 7 === 0 ? '8@%rsi '.repeat(index) : '-4@%edi',
      pc: LAYOUT.text.address + (index % 256),
      semaphore: index % 2 === 0 ? 0 : LAYOUT.probes.address + 2 * (index % 8),
    }),
  )
  const notes = await notesIn(writeElf(t, usdtFile(LE64, 0, [plans]).bytes))
  assert.deepEqual(
    notes.map(({ provider, name, args, pc, semaphore, fileOffset }) => ({ provider, name, args, pc, semaphore, fileOffset })),
    plans.map(({ provider, name, args, pc, semaphore }) => {
      return { provider, name, args, pc: BigInt(pc), semaphore: BigInt(semaphore), fileOffset: BigInt(pc) }
    }),
  )
})

test('gives each of several sites its place in the segment that holds it, where segments overlap', async (t) => {
  const segments = [
    { flags: PF_RX, offset: 0x1000, vaddr: 0x1000, fileSize: 0x1000 },
    { flags: PF_RX, offset: 0x3000, vaddr: 0x1800, fileSize: 0x100 },
  ]
  const sites = [0x17ff, 0x1800, 0x17fe, 0x18ff, 0x1900, 0x1000, 0x2000]
  const content = Buffer.concat(sites.map((pc) => usdtNote(LE64, plan(0, { pc, semaphore: 0 }))))
  const { bytes } = buildElf({ ...LE64, segments, sections: [{ name: '.note.stapsdt', type: SHT.note, content }] })
  const notes = await notesIn(writeElf(t, Buffer.concat([bytes, Buffer.alloc(0x4000)])))
  assert.deepEqual(
    notes.map(({ fileOffset }) => fileOffset),
    [0x17ffn, 0x3000n, 0x17fen, 0x30ffn, null, 0x1000n, null],
  )
})

test('lists an object that was not linked, without offsets', async (t) => {
  const content = usdtNote(LE64, plan(0, { pc: 0, base: 0, semaphore: 0 }))
  const path = writeElf(t, buildElf({ ...LE64, type: ET_REL, sections: [{ name: '.note.stapsdt', type: SHT.note, content }] }).bytes)
  const [only] = await notesIn(path)
  assert.deepEqual([only?.provider, only?.pc, only?.fileOffset, only?.refCtrOffset], ['shop', 0n, null, null])
})

test('lists nothing in a file without notes', async (t) => {
  assert.deepEqual(await notesIn(writeElf(t, buildElf({ ...LE64 }).bytes)), [])
})

test('lists the notes of a file of debug symbols, without offsets', readingNeeds('/usr/bin/objcopy', '/usr/bin/python3.11'), async (t) => {
  const path = join(tempDirectory(t), 'python.debug')
  execFileSync('objcopy', ['--only-keep-debug', '/usr/bin/python3.11', path])
  const whole = await notesIn('/usr/bin/python3.11')
  const debug = await notesIn(path)
  assert.equal(whole.length, 8)
  assert.ok(whole.every(({ fileOffset, refCtrOffset }) => fileOffset !== null && refCtrOffset !== null))
  assert.deepEqual(
    debug,
    whole.map((n) => ({ ...n, fileOffset: null, refCtrOffset: null })),
  )
})

test('has no offsets in a file of debug symbols that kept the program headers of the whole file', async (t) => {
  const { bytes, sectionHeadersAt, sectionHeaderBytes } = usdtFile(LE64, 0, [[plan(0)]])
  bytes.writeUInt32LE(SHT.nobits, sectionHeadersAt + sectionHeaderBytes + 4)
  const [only] = await notesIn(writeElf(t, bytes))
  assert.deepEqual([only?.vaddr, only?.fileOffset, only?.refCtrOffset], [0x1010n, null, null])
})

test('lists by a pattern over provider and name', async (t) => {
  const notes = [plan(0), plan(0, { name: 'refund' }), plan(0, { provider: 'bank' })]
  const path = writeElf(t, usdtFile(LE64, 0, [notes]).bytes)
  const named = async (pattern?: string): Promise<string[]> =>
    (await listFile(path, pattern)).map(({ provider, name }) => `${provider}:${name}`)
  assert.deepEqual(await named(), ['shop:sale', 'shop:refund', 'bank:sale'])
  assert.deepEqual(await named('shop:*'), ['shop:sale', 'shop:refund'])
  assert.deepEqual(await named('*:s?le'), ['shop:sale', 'bank:sale'])
  assert.deepEqual(await named('shop:none'), [])
  for (const wrong of ['sale', 'a:b:c', ':x', 'x:', '']) await refuses(listFile(path, wrong), 'ERR_UPROBE_BAD_SPEC', /PROVIDER:NAME/)
})

test('a listing has the path it was asked for, and the fields of the note', async (t) => {
  const path = writeElf(t, usdtFile(LE64, 0x40_0000, [[plan(0x40_0000)]]).bytes)
  assert.deepEqual(await listFile(path), [
    {
      provider: 'shop',
      name: 'sale',
      path,
      pc: 0x401010n,
      base: 0x4011f0n,
      semaphore: 0x405002n,
      args: '-4@%edi 8@%rsi',
      fileOffset: 0x1010n,
      refCtrOffset: 0x2002n,
    },
  ])
})

describe('a file that is read again', () => {
  const sites = [plan(0), plan(0, { name: 'refund', pc: LAYOUT.text.address + 0x20 })]

  test('gives the same notes when it says the same, also under another name', async (t) => {
    const { bytes } = usdtFile(LE64, 0, [sites])
    const first = await notesIn(writeElf(t, bytes))
    assert.equal(await notesIn(writeElf(t, bytes)), first)
  })

  test('gives what it says now, when it was changed in place', async (t) => {
    const { bytes } = usdtFile(LE64, 0, [sites])
    const path = writeElf(t, bytes)
    const first = await notesIn(path)
    const { size, mtimeMs } = statSync(path)
    bytes.write('refuse', bytes.indexOf('refund'))
    writeFileSync(path, bytes)
    utimesSync(path, mtimeMs / 1000, mtimeMs / 1000)
    assert.equal(statSync(path).size, size)
    assert.deepEqual(
      (await notesIn(path)).map(({ name }) => name),
      ['sale', 'refuse'],
    )
    assert.deepEqual(
      first.map(({ name }) => name),
      ['sale', 'refund'],
    )
  })

  /** Changes a field of 8 bytes, of that header of a table whose `key` field is `value`. */
  function changeHeader(
    bytes: Buffer,
    [table, entryBytes, count]: [number, number, number],
    [key, value, field, by]: [number, number, number, bigint],
  ): void {
    const at = Array.from({ length: count }, (_, index) => table + index * entryBytes).find(
      (entry) => bytes.readBigUInt64LE(entry + key) === BigInt(value),
    )
    assert.ok(at !== undefined)
    bytes.writeBigUInt64LE(bytes.readBigUInt64LE(at + field) + by, at + field)
  }

  test('places the same notes anew when .stapsdt.base was moved', async (t) => {
    const { bytes } = usdtFile(LE64, 0, [sites])
    const first = await notesIn(writeElf(t, bytes))
    const sections: [number, number, number] = [Number(bytes.readBigUInt64LE(40)), 64, bytes.readUInt16LE(60)]
    changeHeader(bytes, sections, [16, LAYOUT.base.address, 16, 0x10n])
    assert.deepEqual(
      (await notesIn(writeElf(t, bytes))).map(({ vaddr }) => vaddr),
      first.map(({ vaddr }) => vaddr + 0x10n),
    )
  })

  test('places the same notes anew when a segment was moved in the file', async (t) => {
    const { bytes } = usdtFile(LE64, 0, [sites])
    const first = await notesIn(writeElf(t, bytes))
    const segments: [number, number, number] = [Number(bytes.readBigUInt64LE(32)), 56, bytes.readUInt16LE(56)]
    changeHeader(bytes, segments, [16, LAYOUT.text.address, 8, 0x1000n])
    const moved = await notesIn(writeElf(t, bytes))
    assert.deepEqual(
      moved.map(({ fileOffset }) => fileOffset),
      first.map(({ fileOffset }) => (fileOffset ?? 0n) + 0x1000n),
    )
  })
})
