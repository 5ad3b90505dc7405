/**
 * An ELF file: its headers, and reading from it in pieces.
 *
 * The files come from containers that nobody vouches for, and the reader is root. So nothing in a file is believed: each offset, size and count is checked
 * against the size of the file and against a bound before it is used, reads are bounded, and whatever does not fit is `ERR_UPROBE_BAD_ELF` with what is wrong and
 * where. A file is never read whole. Headers are read when the file is opened; symbols and notes when they are asked for, so that a broken symbol
 * table does not hide the notes.
 */
import { type BigIntStats, close, fstat, open, read } from 'node:fs'
import { constants } from 'node:fs'
import { promisify } from 'node:util'
import { isSystemCallError, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'

const openFd = promisify(open)
const closeFd = promisify(close)
const statFd = promisify(fstat) as (fd: number, options: { bigint: true }) => Promise<BigIntStats>

/** A program header that maps part of the file (or any other kind; see `type`). */
export interface Segment {
  readonly type: number
  readonly flags: number
  readonly offset: bigint
  readonly vaddr: bigint
  readonly fileSize: bigint
  readonly memorySize: bigint
}

/** A section header. */
export interface Section {
  readonly name: string
  readonly type: number
  readonly flags: bigint
  readonly address: bigint
  readonly offset: bigint
  readonly size: bigint
  readonly link: number
  readonly info: number
  readonly entrySize: bigint
}

const PT_LOAD = 1
const PF_X = 1
/** Type of a section that takes no room in the file. */
export const SHT_NOBITS = 8
const PN_XNUM = 0xffff

const MAX_SEGMENTS = 65_536
const MAX_SECTIONS = 1_048_576
/** Longest piece that is read at once. */
const MAX_READ = 64 * 1024 * 1024
const MAX_NAME_TABLE = 16 * 1024 * 1024

const MACHINE_NAMES: ReadonlyMap<number, string> = new Map([
  [3, 'i386'],
  [8, 'MIPS'],
  [20, 'PowerPC'],
  [21, 'PowerPC64'],
  [22, 'S/390'],
  [40, 'ARM'],
  [62, 'x86-64'],
  [183, 'AArch64'],
  [243, 'RISC-V'],
  [258, 'LoongArch'],
])

/** Makes the error that says what is wrong in a file, and where. */
export function badElf(path: string, what: string, offset?: bigint | number): UprobeError {
  const where = offset === undefined ? '' : ` (at file offset 0x${offset.toString(16)})`
  const shown = escapeForDisplay(path)
  return new UprobeError('ERR_UPROBE_BAD_ELF', `${shown}: ${what}${where}. The file is damaged, or not what it seems; check it with readelf.`, { path: shown })
}

/** Reads fields of headers in the file's class and byte order. */
export class ElfView {
  constructor(
    readonly buffer: Buffer,
    readonly littleEndian: boolean,
    readonly bits: 32 | 64,
  ) {}

  u16(offset: number): number {
    return this.littleEndian ? this.buffer.readUInt16LE(offset) : this.buffer.readUInt16BE(offset)
  }

  u32(offset: number): number {
    return this.littleEndian ? this.buffer.readUInt32LE(offset) : this.buffer.readUInt32BE(offset)
  }

  u64(offset: number): bigint {
    return this.littleEndian ? this.buffer.readBigUInt64LE(offset) : this.buffer.readBigUInt64BE(offset)
  }

  /** A field of the size of an address. */
  word(offset: number): bigint {
    return this.bits === 64 ? this.u64(offset) : BigInt(this.u32(offset))
  }
}

/** An open ELF file. */
export class ElfFile {
  segments: readonly Segment[] = []
  sections: readonly Section[] = []

  private constructor(
    private readonly fd: number,
    private readonly ownsFd: boolean,
    /** As given; escape it before it is shown. */
    readonly path: string,
    /** Size of the file in bytes. */
    readonly size: bigint,
    readonly bits: 32 | 64,
    readonly littleEndian: boolean,
    readonly type: number,
    readonly machine: number,
  ) {}

  /** Opens a file; the caller closes it. Throws `ERR_UPROBE_FILE` or `ERR_UPROBE_BAD_ELF`. */
  static async open(path: string): Promise<ElfFile> {
    let fd: number
    try {
      // Non-blocking, so that a FIFO in the place of a file does not hang us.
      fd = await openFd(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
    } catch (cause) {
      const why = isSystemCallError(cause) ? cause.code : String(cause)
      throw new UprobeError('ERR_UPROBE_FILE', `${escapeForDisplay(path)} cannot be opened (${why}). Check the path and its permissions.`, {
        cause,
        path: escapeForDisplay(path),
      })
    }
    try {
      return await ElfFile.#parse(fd, path, true)
    } catch (error) {
      await closeFd(fd)
      throw error
    }
  }

  /** Reads from a descriptor that the caller keeps open, and closes. Throws as {@link open}. */
  static fromFd(fd: number, path: string): Promise<ElfFile> {
    return ElfFile.#parse(fd, path, false)
  }

  static async #parse(fd: number, path: string, ownsFd: boolean): Promise<ElfFile> {
    const stat = await statFd(fd, { bigint: true })
    if (!stat.isFile()) {
      throw new UprobeError('ERR_UPROBE_FILE', `${escapeForDisplay(path)} is not a regular file. Name an executable or a shared library.`, {
        path: escapeForDisplay(path),
      })
    }
    const head = Buffer.alloc(64)
    const got = await readFully(fd, head, 0n)
    if (got < 16 || head.readUInt32BE(0) !== 0x7f454c46) throw badElf(path, 'not an ELF file: it does not begin with \\x7fELF')
    const elfClass = head[4]
    const data = head[5]
    if (elfClass !== 1 && elfClass !== 2) throw badElf(path, `unknown ELF class ${elfClass}`, 4)
    if (data !== 1 && data !== 2) throw badElf(path, `unknown byte order ${data}`, 5)
    const bits = elfClass === 2 ? 64 : 32
    const headBytes = bits === 64 ? 64 : 52
    if (got < headBytes) throw badElf(path, 'the ELF header is cut off', got)
    const view = new ElfView(head, data === 1, bits)
    const elf = new ElfFile(fd, ownsFd, path, stat.size, bits, data === 1, view.u16(16), view.u16(18))
    await elf.#readHeaders(view)
    return elf
  }

  async #readHeaders(head: ElfView): Promise<void> {
    const wide = this.bits === 64
    const phoff = head.word(wide ? 32 : 28)
    const shoff = head.word(wide ? 40 : 32)
    const at = wide ? 52 : 40
    const phentsize = head.u16(at + 2)
    let phnum = head.u16(at + 4)
    const shentsize = head.u16(at + 6)
    let shnum = head.u16(at + 8)
    let shstrndx = head.u16(at + 10)
    const sectionBytes = wide ? 64 : 40
    const segmentBytes = wide ? 56 : 32
    let first: Section | null = null
    if (shoff !== 0n) {
      if (shentsize !== sectionBytes) {
        if (shnum !== 0) throw badElf(this.path, `section headers of ${shentsize} bytes, where ${sectionBytes} are expected`, at + 6)
      } else {
        // Numbers too large for the ELF header are in the first section header (gABI, "Extended section numbering").
        first = parseSection(this.#view(await this.#table(shoff, 1, sectionBytes, 'section header')), 0)
        if (shnum === 0) shnum = clampCount(this.path, first.size, MAX_SECTIONS, 'sections')
        if (shstrndx === 0xffff) shstrndx = first.link
        if (phnum === PN_XNUM) phnum = first.info
      }
    }
    if (phnum > MAX_SEGMENTS) throw badElf(this.path, `${phnum} program headers, more than the ${MAX_SEGMENTS} that are accepted`, at + 4)
    if (phnum > 0) {
      if (phentsize !== segmentBytes) throw badElf(this.path, `program headers of ${phentsize} bytes, where ${segmentBytes} are expected`, at + 2)
      const view = this.#view(await this.#table(phoff, phnum, segmentBytes, 'program headers'))
      this.segments = Array.from({ length: phnum }, (_, index) => parseSegment(view, index * segmentBytes))
    }
    if (first !== null && shnum > 0) {
      const view = this.#view(await this.#table(shoff, shnum, sectionBytes, 'section headers'))
      const headers = Array.from({ length: shnum }, (_, index) => parseSection(view, index * sectionBytes))
      this.sections = await this.#nameSections(headers, view, sectionBytes, shstrndx)
    }
  }

  async #nameSections(headers: readonly Section[], view: ElfView, sectionBytes: number, shstrndx: number): Promise<Section[]> {
    const table = headers[shstrndx]
    if (shstrndx === 0 || table === undefined || table.type === SHT_NOBITS) return [...headers]
    if (table.size > BigInt(MAX_NAME_TABLE)) throw badElf(this.path, `a section name table of ${table.size} bytes`, table.offset)
    const names = await this.read(table.offset, Number(table.size))
    return headers.map((header, index) => ({ ...header, name: this.string(names, view.u32(index * sectionBytes), table.offset) }))
  }

  async #table(offset: bigint, count: number, bytes: number, what: string): Promise<Buffer> {
    const total = BigInt(count) * BigInt(bytes)
    if (offset + total > this.size) throw badElf(this.path, `the ${what} reach beyond the end of the file`, offset)
    return this.read(offset, Number(total))
  }

  #view(buffer: Buffer): ElfView {
    return new ElfView(buffer, this.littleEndian, this.bits)
  }

  /** Name of the architecture, for messages. */
  get machineName(): string {
    return MACHINE_NAMES.get(this.machine) ?? `machine ${this.machine}`
  }

  /** Fields of a piece of the file. */
  view(buffer: Buffer): ElfView {
    return this.#view(buffer)
  }

  /** Where an address lies in the file, by the program headers; `null` when it has no place there (`.bss`, or not mapped at all). */
  fileOffsetOf(vaddr: bigint): bigint | null {
    for (const segment of this.segments) {
      if (segment.type === PT_LOAD && vaddr >= segment.vaddr && vaddr - segment.vaddr < segment.fileSize) return vaddr - segment.vaddr + segment.offset
    }
    return null
  }

  /** The address of an offset in the file; where several segments hold it, the executable one counts. `null` if none does. */
  vaddrOf(fileOffset: bigint): bigint | null {
    const holding = this.segments.filter((s) => s.type === PT_LOAD && fileOffset >= s.offset && fileOffset - s.offset < s.fileSize)
    const segment = holding.find((s) => (s.flags & PF_X) !== 0) ?? holding[0]
    return segment === undefined ? null : fileOffset - segment.offset + segment.vaddr
  }

  /** Whether an address is in an executable segment. */
  isExecutable(vaddr: bigint): boolean {
    return this.segments.some((s) => s.type === PT_LOAD && (s.flags & PF_X) !== 0 && vaddr >= s.vaddr && vaddr - s.vaddr < s.memorySize)
  }

  /** Reads exactly `bytes` bytes. Throws `ERR_UPROBE_BAD_ELF` when the file is shorter. */
  async read(fileOffset: bigint, bytes: number): Promise<Buffer> {
    if (bytes > MAX_READ) throw badElf(this.path, `a piece of ${bytes} bytes, more than the ${MAX_READ} that are accepted`, fileOffset)
    if (fileOffset < 0n || fileOffset + BigInt(bytes) > this.size) throw badElf(this.path, `${bytes} bytes reach beyond the end of the file`, fileOffset)
    const buffer = Buffer.allocUnsafe(bytes)
    if ((await readFully(this.fd, buffer, fileOffset)) !== bytes) throw badElf(this.path, 'the file became shorter while it was read', fileOffset)
    return buffer
  }

  /** The zero-terminated string at `index` of a string table that begins at `tableOffset` of the file. */
  string(table: Buffer, index: number, tableOffset: bigint): string {
    const end = index < table.length ? table.indexOf(0, index) : -1
    if (end < 0) throw badElf(this.path, 'a name is not terminated within its string table', tableOffset + BigInt(index))
    return decodeName(table.subarray(index, end))
  }

  /** Closes the file, unless the descriptor is the caller's. */
  async close(): Promise<void> {
    if (this.ownsFd) await closeFd(this.fd)
  }
}

/** Names are UTF-8 by custom; where the bytes are not, each stands for itself (Latin-1), so that no two names look alike. */
export function decodeName(bytes: Buffer): string {
  const text = bytes.toString('utf8')
  return text.includes('\ufffd') && !Buffer.from(text, 'utf8').equals(bytes) ? bytes.toString('latin1') : text
}

function clampCount(path: string, count: bigint, most: number, what: string): number {
  if (count > BigInt(most)) throw badElf(path, `${count} ${what}, more than the ${most} that are accepted`)
  return Number(count)
}

function parseSegment(view: ElfView, at: number): Segment {
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

function parseSection(view: ElfView, at: number): Section {
  const wide = view.bits === 64
  const word = wide ? 8 : 4
  return {
    name: '',
    type: view.u32(at + 4),
    flags: view.word(at + 8),
    address: view.word(at + 8 + word),
    offset: view.word(at + 8 + 2 * word),
    size: view.word(at + 8 + 3 * word),
    link: view.u32(at + 8 + 4 * word),
    info: view.u32(at + 12 + 4 * word),
    entrySize: view.word(at + 16 + 5 * word),
  }
}

/** Reads until the buffer is full or the file ends; returns the number of bytes. */
async function readFully(fd: number, buffer: Buffer, position: bigint): Promise<number> {
  let done = 0
  while (done < buffer.length) {
    const bytes = await readOnce(fd, buffer, done, position + BigInt(done))
    if (bytes === 0) break
    done += bytes
  }
  return done
}

function readOnce(fd: number, buffer: Buffer, offset: number, position: bigint): Promise<number> {
  return new Promise((resolve, reject) => {
    read(fd, buffer, offset, buffer.length - offset, position, (error, bytes) => (error === null ? resolve(bytes) : reject(error)))
  })
}
