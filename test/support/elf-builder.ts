/**
 * ELF files made by hand: any class, byte order and layout, right or wrong, without a compiler for it.
 *
 * `buildElf` puts sections and headers where it is told. `usdtFile` is a small program with USDT probes in the layout that linkers give one: code in
 * one segment; semaphores in another, whose addresses and offsets differ; and `.bss` behind what that one takes from the file.
 */

/** Class and byte order. */
export interface ElfFormat {
  readonly bits: 32 | 64
  readonly littleEndian: boolean
}

/** The four there are. */
export const FORMATS: readonly ElfFormat[] = [
  { bits: 64, littleEndian: true },
  { bits: 64, littleEndian: false },
  { bits: 32, littleEndian: true },
  { bits: 32, littleEndian: false },
]

export const ET_REL = 1
export const ET_EXEC = 2
export const ET_DYN = 3
export const PT_LOAD = 1
export const PT_DYNAMIC = 2
export const PF_RX = 5
export const PF_RW = 6
export const SHT = { progbits: 1, symtab: 2, strtab: 3, note: 7, nobits: 8, dynsym: 11, verdef: 0x6ffffffd, versym: 0x6fffffff } as const
export const SHF = { write: 1, alloc: 2, exec: 4 } as const

export interface SegmentPlan {
  readonly type?: number
  readonly flags: number
  readonly offset: number
  readonly vaddr: number
  readonly fileSize: number
  readonly memorySize?: number
}

export interface SectionPlan {
  readonly name: string
  readonly type: number
  readonly flags?: number
  readonly address?: number
  /** Where it lies in the file; default: behind the one before. */
  readonly offset?: number
  readonly content?: Buffer
  /** Size in its header; default: that of the content. */
  readonly size?: number
  readonly link?: number
}

export interface ElfPlan extends ElfFormat {
  readonly type?: number
  readonly machine?: number
  readonly segments?: readonly SegmentPlan[]
  /** The null section and `.shstrtab` are added: the first of these has index 1. */
  readonly sections?: readonly SectionPlan[]
  /** Leave section headers out, as `sstrip` does. */
  readonly withoutSectionHeaders?: boolean
}

/** A file, and where its parts lie. */
export interface BuiltElf {
  readonly bytes: Buffer
  readonly sectionHeadersAt: number
  readonly sectionHeaderBytes: number
  readonly programHeadersAt: number
  /** Offset of each section by name. */
  readonly offsets: ReadonlyMap<string, number>
}

/** Fields one after another in a class and byte order. */
export class Fields {
  readonly #parts: Buffer[] = []

  constructor(private readonly format: ElfFormat) {}

  u8(...values: readonly number[]): this {
    this.#parts.push(Buffer.from(values))
    return this
  }

  u16(...values: readonly number[]): this {
    return this.#each(values, 2)
  }

  u32(...values: readonly number[]): this {
    return this.#each(values, 4)
  }

  /** As wide as an address. */
  word(...values: ReadonlyArray<number | bigint>): this {
    return this.#each(values, this.format.bits / 8)
  }

  raw(...parts: ReadonlyArray<Buffer | string>): this {
    this.#parts.push(...parts.map((part) => Buffer.from(part)))
    return this
  }

  get bytes(): Buffer {
    return Buffer.concat(this.#parts)
  }

  #each(values: ReadonlyArray<number | bigint>, width: number): this {
    for (const value of values) {
      const bytes = Buffer.alloc(8)
      bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)))
      const field = Buffer.from(bytes.subarray(0, width))
      this.#parts.push(this.format.littleEndian ? field : field.reverse())
    }
    return this
  }
}

/** Makes a file. */
export function buildElf(plan: ElfPlan): BuiltElf {
  const wide = plan.bits === 64
  const [headBytes, segmentBytes, sectionBytes] = wide ? [64, 56, 64] : [52, 32, 40]
  const segments = plan.segments ?? []
  const names = Buffer.from(['', ...(plan.sections ?? []).map(({ name }) => name), '.shstrtab', ''].join('\0'))
  const sections: readonly SectionPlan[] = [
    { name: '', type: 0 },
    ...(plan.sections ?? []),
    { name: '.shstrtab', type: SHT.strtab, content: names },
  ]
  const parts: Array<{ at: number; bytes: Buffer }> = []
  const offsets = new Map<string, number>()
  let end = headBytes + segments.length * segmentBytes
  const places = sections.map(({ name, offset, content = Buffer.alloc(0) }) => {
    const at = offset ?? Math.ceil(end / 8) * 8
    parts.push({ at, bytes: content })
    end = Math.max(end, at + content.length)
    offsets.set(name, at)
    return at
  })
  const sectionHeadersAt = Math.ceil(end / 8) * 8
  const headers = new Fields(plan)
  for (const [index, { name, type, flags = 0, address = 0, content, size, link = 0 }] of sections.entries()) {
    headers.u32(name === '' ? 0 : names.indexOf(`\0${name}\0`) + 1, type).word(flags, address, type === 0 ? 0 : (places[index] ?? 0))
    headers
      .word(size ?? content?.length ?? 0)
      .u32(link, 0)
      .word(1, 0)
  }
  const head = new Fields(plan).raw('\x7fELF').u8(wide ? 2 : 1, plan.littleEndian ? 1 : 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
  head
    .u16(plan.type ?? ET_DYN, plan.machine ?? 62)
    .u32(1)
    .word(0, segments.length === 0 ? 0 : headBytes)
  head
    .word(plan.withoutSectionHeaders ? 0 : sectionHeadersAt)
    .u32(0)
    .u16(headBytes, segmentBytes, segments.length, sectionBytes)
  head.u16(...(plan.withoutSectionHeaders ? [0, 0] : [sections.length, sections.length - 1]))
  for (const { type = PT_LOAD, flags, offset, vaddr, fileSize, memorySize = fileSize } of segments) {
    if (wide) head.u32(type, flags).word(offset, vaddr, vaddr, fileSize, memorySize, 0x1000)
    else head.u32(type).word(offset, vaddr, vaddr, fileSize, memorySize).u32(flags).word(0x1000)
  }
  parts.push({ at: 0, bytes: head.bytes })
  if (!plan.withoutSectionHeaders) parts.push({ at: sectionHeadersAt, bytes: headers.bytes })
  const bytes = Buffer.alloc(Math.max(...parts.map((part) => part.at + part.bytes.length)))
  for (const part of parts) part.bytes.copy(bytes, part.at)
  return { bytes, sectionHeadersAt, sectionHeaderBytes: sectionBytes, programHeadersAt: headBytes, offsets }
}

/** A USDT note, as stored. */
export interface NotePlan {
  readonly provider: string | Buffer
  readonly name: string | Buffer
  readonly args: string | Buffer
  readonly pc: number | bigint
  readonly base: number | bigint
  readonly semaphore: number | bigint
}

/** Any note. */
export function note(format: ElfFormat, owner: string, type: number, desc: Buffer): Buffer {
  const pad = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)])
  const name = Buffer.from(`${owner}\0`)
  return new Fields(format).u32(name.length, desc.length, type).raw(pad(name), pad(desc)).bytes
}

/** A USDT note. */
export function usdtNote(format: ElfFormat, { provider, name, args, pc, base, semaphore }: NotePlan): Buffer {
  const zero = Buffer.alloc(1)
  return note(format, 'stapsdt', 3, new Fields(format).word(pc, base, semaphore).raw(provider, zero, name, zero, args, zero).bytes)
}

/** Where {@link usdtFile} has its parts. Addresses are relative to the image. */
export const LAYOUT = {
  text: { offset: 0x1000, address: 0x1000, bytes: 0x200 },
  /** At the end of the code. */
  base: { offset: 0x11f0, address: 0x11f0 },
  probes: { offset: 0x2000, address: 0x5000, bytes: 0x100 },
  bss: { address: 0x5100, bytes: 0x80 },
} as const

/** A program with USDT notes; the notes of each element of `noteSections` are in a section of their own. */
export function usdtFile(
  format: ElfFormat,
  imageBase: number,
  noteSections: ReadonlyArray<readonly NotePlan[]>,
  more: Partial<ElfPlan> = {},
): BuiltElf {
  const { text, base, probes, bss } = LAYOUT
  return buildElf({
    ...format,
    type: imageBase === 0 ? ET_DYN : ET_EXEC,
    segments: [
      { flags: PF_RX, offset: text.offset, vaddr: imageBase + text.address, fileSize: text.bytes },
      {
        flags: PF_RW,
        offset: probes.offset,
        vaddr: imageBase + probes.address,
        fileSize: probes.bytes,
        memorySize: probes.bytes + bss.bytes,
      },
    ],
    sections: [
      {
        name: '.text',
        type: SHT.progbits,
        flags: SHF.alloc | SHF.exec,
        address: imageBase + text.address,
        offset: text.offset,
        content: Buffer.alloc(0x1f0, 0x90),
      },
      {
        name: '.stapsdt.base',
        type: SHT.progbits,
        flags: SHF.alloc,
        address: imageBase + base.address,
        offset: base.offset,
        content: Buffer.alloc(1),
      },
      {
        name: '.probes',
        type: SHT.progbits,
        flags: SHF.alloc | SHF.write,
        address: imageBase + probes.address,
        offset: probes.offset,
        content: Buffer.alloc(probes.bytes),
      },
      {
        name: '.bss',
        type: SHT.nobits,
        flags: SHF.alloc | SHF.write,
        address: imageBase + bss.address,
        offset: probes.offset + probes.bytes,
        size: bss.bytes,
      },
      ...noteSections.map((notes) => ({
        name: '.note.stapsdt',
        type: SHT.note,
        content: Buffer.concat(notes.map((n) => usdtNote(format, n))),
      })),
    ],
    ...more,
  })
}
