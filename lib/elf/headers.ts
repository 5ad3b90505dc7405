/**
 * The layout of ELF headers: where each field stands, in both classes and both byte orders.
 *
 * Names of fields and numbers are those of the System V gABI, chapters 4 and 5; the parsing functions trust that the bytes they are given are there.
 */

/** A program header: a part of the file that is mapped (`PT_LOAD`), or a note to the loader. */
export interface Segment {
  readonly type: number
  readonly flags: number
  /** Place in the file, in bytes. */
  readonly offset: bigint
  readonly vaddr: bigint
  /** Bytes that come from the file. */
  readonly fileSize: bigint
  /** Bytes in memory; what exceeds `fileSize` is zeros. */
  readonly memorySize: bigint
}

/** A section header. */
export interface Section {
  /** Its first 64 bytes; the sections that matter here have short names. */
  readonly name: string
  readonly type: number
  readonly flags: bigint
  readonly address: bigint
  /** Place in the file, in bytes. */
  readonly offset: bigint
  /** In bytes. */
  readonly size: bigint
  readonly link: number
  readonly info: number
}

export const PT_LOAD = 1
export const PT_DYNAMIC = 2
export const PF_X = 1
export const SHT_SYMTAB = 2
export const SHT_NOTE = 7
/** Type of a section that takes no room in the file. */
export const SHT_NOBITS = 8
export const SHT_DYNSYM = 11
export const SHT_GNU_VERDEF = 0x6ffffffd
export const SHT_GNU_VERSYM = 0x6fffffff
export const SHF_ALLOC = 2n
export const SHF_EXECINSTR = 4n
/** e_phnum and e_shstrndx of a file whose true number is in its first section header. */
export const PN_XNUM = 0xffff
export const SHN_XINDEX = 0xffff

/** e_machine by name, for messages. */
export const MACHINE_NAMES: ReadonlyMap<number, string> = new Map([
  [2, 'SPARC'],
  [3, 'i386'],
  [8, 'MIPS'],
  [20, 'PowerPC'],
  [21, 'PowerPC64'],
  [22, 'S/390'],
  [40, 'ARM'],
  [43, 'SPARC64'],
  [62, 'x86-64'],
  [183, 'AArch64'],
  [243, 'RISC-V'],
  [247, 'BPF'],
  [258, 'LoongArch'],
])

/** Reads fields in a file's class and byte order. */
export class ElfView {
  readonly data: DataView

  constructor(
    readonly buffer: Buffer,
    readonly littleEndian: boolean,
    readonly bits: 32 | 64,
  ) {
    this.data = new DataView(buffer.buffer, buffer.byteOffset, buffer.length)
  }

  u16(offset: number): number {
    return this.data.getUint16(offset, this.littleEndian)
  }

  u32(offset: number): number {
    return this.data.getUint32(offset, this.littleEndian)
  }

  u64(offset: number): bigint {
    // Buffer's own method makes three bigints of two halves.
    return this.data.getBigUint64(offset, this.littleEndian)
  }

  /** A field as wide as an address. */
  word(offset: number): bigint {
    return this.bits === 64 ? this.data.getBigUint64(offset, this.littleEndian) : BigInt(this.u32(offset))
  }
}

/** Sizes of the headers of a class, in bytes. */
export function headerBytes(bits: 32 | 64): { elf: number; segment: number; section: number } {
  return bits === 64 ? { elf: 64, segment: 56, section: 64 } : { elf: 52, segment: 32, section: 40 }
}

/** What the ELF header says about the other headers, as stored. */
export interface HeaderTables {
  readonly phoff: bigint
  readonly shoff: bigint
  readonly phentsize: number
  readonly phnum: number
  readonly shentsize: number
  readonly shnum: number
  readonly shstrndx: number
  /** Place of e_ehsize, which the fields from phentsize on follow. */
  readonly at: number
}

/** Parses the end of the ELF header. */
export function parseHeaderTables(head: ElfView): HeaderTables {
  const wide = head.bits === 64
  const at = wide ? 52 : 40
  return {
    phoff: head.word(wide ? 32 : 28),
    shoff: head.word(wide ? 40 : 32),
    phentsize: head.u16(at + 2),
    phnum: head.u16(at + 4),
    shentsize: head.u16(at + 6),
    shnum: head.u16(at + 8),
    shstrndx: head.u16(at + 10),
    at,
  }
}

/** Parses the program header at `at`. The two classes order its fields differently. */
export function parseSegment(view: ElfView, at: number): Segment {
  if (view.bits === 64) {
    return {
      type: view.u32(at),
      flags: view.u32(at + 4),
      offset: view.u64(at + 8),
      vaddr: view.u64(at + 16),
      fileSize: view.u64(at + 32),
      memorySize: view.u64(at + 40),
    }
  }
  return {
    type: view.u32(at),
    offset: view.word(at + 4),
    vaddr: view.word(at + 8),
    fileSize: view.word(at + 16),
    memorySize: view.word(at + 20),
    flags: view.u32(at + 24),
  }
}

/** Parses the section header at `at`; its name is in another place, and is given by `nameOf`. */
export function parseSection(view: ElfView, at: number, nameOf: (nameOffset: number) => string): Section {
  const word = view.bits / 8
  return {
    name: nameOf(view.u32(at)),
    type: view.u32(at + 4),
    flags: view.word(at + 8),
    address: view.word(at + 8 + word),
    offset: view.word(at + 8 + 2 * word),
    size: view.word(at + 8 + 3 * word),
    link: view.u32(at + 8 + 4 * word),
    info: view.u32(at + 12 + 4 * word),
  }
}

/** The next multiple of 4, to which the parts of a note are padded. */
export function align4(bytes: number): number {
  return Math.ceil(bytes / 4) * 4
}
