/**
 * An ELF file: its headers, the way between addresses and places in the file, and reading from it in pieces.
 *
 * The files come from containers that nobody vouches for, and the reader is root. So nothing in a file is believed: each offset, size and count is checked
 * against the size of the file and against a bound before it is used, and what does not fit is `ERR_UPROBE_BAD_ELF` with what is wrong and where. A file
 * is never read whole, and never mapped: a mapped file that somebody truncates kills its reader. Headers are read when the file is opened; symbols and
 * notes when they are asked for, so that a broken symbol table does not hide the notes.
 */
import { type BigIntStats, close, constants, fstat, open, read } from 'node:fs'
import { promisify } from 'node:util'
import { isSystemCallError, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import { badElf, decodeName } from './bad-elf.js'
import {
  ElfView,
  headerBytes,
  MACHINE_NAMES,
  PF_X,
  PN_XNUM,
  PT_LOAD,
  parseHeaderTables,
  parseSection,
  parseSegment,
  type Section,
  type Segment,
  SHF_ALLOC,
  SHF_EXECINSTR,
  SHN_XINDEX,
  SHT_NOBITS,
} from './headers.js'
import { TimeSlice } from './time-slice.js'

export type { Section, Segment }

const openFd = promisify(open)
const closeFd = promisify(close)
const statFd = promisify(fstat) as (fd: number, options: { bigint: true }) => Promise<BigIntStats>

/** The smallest page of the supported machines. */
const PAGE_BYTES = 4096n

/** The kernel loads programs of up to 64 KiB of program headers (load_elf_phdrs, fs/binfmt_elf.c): 1,170 of them in the 64-bit class. */
const MAX_SEGMENTS = 4096
/** Linked files have some dozens; objects compiled with -ffunction-sections have one a function. */
const MAX_SECTIONS = 131_072
/** Longest table of section names. */
const MAX_SECTION_NAMES_BYTES = 16 * 1024 * 1024
/** What is kept of a section's name. */
const SECTION_NAME_BYTES = 64
/** How much is read ahead while the headers are read: they lie together, and each read is a trip to another thread. */
const AHEAD_BYTES = 4096
/** Longest piece that is read at once. */
export const MAX_READ_BYTES = 16 * 1024 * 1024

/** Longest piece that is copied from the page cache on the event loop: some tenths of a millisecond. */
const MAX_CACHED_BYTES = 1024 * 1024
/** A read that took longer has waited for a processor, or for somebody who is asked for permission, such as a virus scanner. */
const MAX_CACHED_NS = 2_000_000n
/** So many in a row, and no other is made in this way, of no file. */
const MOST_SLOW_READS = 3

/** Reads what can be had without waiting; see `Native.readCached`. */
export type ReadCached = (fd: number, bytes: Uint8Array, position: bigint) => number

let slowReads = 0

/** Reads what is in the page cache, as long as the event loop is not held by it: a process may map hundreds of files. Else, and of what is not there, nothing. */
function readAtOnce({ fd, readCached }: Source, buffer: Buffer, position: bigint): number {
  if (readCached === null || slowReads === MOST_SLOW_READS || buffer.length > MAX_CACHED_BYTES || new TimeSlice().isOver) return 0
  const startNs = process.hrtime.bigint()
  const bytes = readCached(fd, buffer, position)
  slowReads = process.hrtime.bigint() - startNs > MAX_CACHED_NS ? slowReads + 1 : 0
  return bytes
}

/** An open file. */
interface Source {
  readonly fd: number
  /** For messages. */
  readonly path: string
  /** `null` where every read takes a thread: listing a file needs no addon. */
  readonly readCached: ReadCached | null
}

/** Addresses, from `start` to before `end`, that lie in the file at a distance of `shift`. */
interface Stretch {
  readonly start: bigint
  readonly end: bigint
  readonly shift: bigint
}

/** An open ELF file. */
export class ElfFile {
  #segments: readonly Segment[] = []
  #sections: readonly Section[] = []
  /** Segments that are mapped, by address. */
  #loads: readonly Segment[] = []
  #holdsCode = true
  #closed = false
  /** Parts of the file, while the headers are read. */
  #ahead: Array<{ readonly offset: bigint; readonly bytes: Buffer }> = []

  private constructor(
    private readonly source: Source,
    private readonly ownsFd: boolean,
    /** Size of the file in bytes, when it was opened. */
    readonly size: bigint,
    /** Width of an address: the class. */
    readonly bits: 32 | 64,
    readonly littleEndian: boolean,
    /** e_type. */
    readonly type: number,
    /** e_machine. */
    readonly machine: number,
  ) {}

  /**
   * Opens a file and reads its headers; the caller closes it.
   * @throws {UprobeError} `ERR_UPROBE_FILE` if it cannot be read or is no regular file; `ERR_UPROBE_BAD_ELF`; `ERR_UPROBE_LIMIT`
   */
  static async open(path: string): Promise<ElfFile> {
    // Non-blocking, so that a FIFO in the place of a file does not hang us.
    const fd = await onFile(path, 'opened', () => openFd(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY))
    try {
      return await ElfFile.#parse({ fd, path, readCached: null }, true, await sizeOf(fd, path))
    } catch (error) {
      await closeFd(fd)
      throw error
    }
  }

  /**
   * Reads from a descriptor that the caller keeps open as long as this object is used, and closes.
   * @param path - for messages, and as {@link path}; never opened
   * @param size - of the file, which is known to be a regular one
   * @param readCached - reads what is in the page cache
   * @throws {UprobeError} as {@link open}
   */
  static async fromFd(
    fd: number,
    path: string,
    { size, readCached }: { readonly size: bigint; readonly readCached: ReadCached },
  ): Promise<ElfFile> {
    return ElfFile.#parse({ fd, path, readCached }, false, size)
  }

  static async #parse(source: Source, ownsFd: boolean, size: bigint): Promise<ElfFile> {
    const { path } = source
    const head = Buffer.alloc(AHEAD_BYTES)
    const got = await readFully(source, head, 0n)
    if (got < 16 || head.readUInt32BE(0) !== 0x7f454c46) throw badElf(path, 'not an ELF file: it does not begin with \\x7fELF')
    const elfClass = head[4]
    const data = head[5]
    if (elfClass !== 1 && elfClass !== 2) throw badElf(path, `unknown ELF class ${elfClass}`, 4)
    if (data !== 1 && data !== 2) throw badElf(path, `unknown byte order ${data}`, 5)
    const bits = elfClass === 2 ? 64 : 32
    if (got < headerBytes(bits).elf) throw badElf(path, 'the ELF header is cut off', got)
    const view = new ElfView(head, data === 1, bits)
    const elf = new ElfFile(source, ownsFd, size, bits, data === 1, view.u16(16), view.u16(18))
    elf.#ahead.push({ offset: 0n, bytes: head.subarray(0, got) })
    await elf.#readHeaders(view)
    elf.#ahead = []
    return elf
  }

  async #readHeaders(head: ElfView): Promise<void> {
    const tables = parseHeaderTables(head)
    let { phnum, shnum, shstrndx } = tables
    const bytes = headerBytes(this.bits)
    if (tables.shoff !== 0n && shnum !== 0 && tables.shentsize !== bytes.section) {
      throw badElf(this.path, `section headers of ${tables.shentsize} bytes, where ${bytes.section} are expected`, tables.at + 6)
    }
    if (tables.shoff !== 0n && tables.shentsize === bytes.section) {
      // Numbers too large for the ELF header are in the first section header (gABI, chapter 4, "Section Header").
      const first = parseSection(await this.#table(tables.shoff, 1, bytes.section, 'section headers'), 0, () => '')
      if (first.size > BigInt(MAX_SECTIONS) && shnum === 0)
        throw badElf(this.path, tooMany(first.size, 'sections', MAX_SECTIONS), tables.shoff)
      if (shnum === 0) shnum = Number(first.size)
      if (shstrndx === SHN_XINDEX) shstrndx = first.link
      if (phnum === PN_XNUM) phnum = first.info
    } else {
      shnum = 0
    }
    if (phnum > MAX_SEGMENTS) throw badElf(this.path, tooMany(phnum, 'program headers', MAX_SEGMENTS), tables.at + 4)
    if (phnum > 0 && tables.phentsize !== bytes.segment) {
      throw badElf(this.path, `program headers of ${tables.phentsize} bytes, where ${bytes.segment} are expected`, tables.at + 2)
    }
    const segments = await this.#table(tables.phoff, phnum, bytes.segment, 'program headers')
    this.#segments = Array.from({ length: phnum }, (_, index) => parseSegment(segments, index * bytes.segment))
    // Sorting is stable: of two at one address the later, which is mapped over the earlier, stays behind it.
    this.#loads = this.#segments.filter(({ type }) => type === PT_LOAD).sort((a, b) => (a.vaddr < b.vaddr ? -1 : a.vaddr > b.vaddr ? 1 : 0))
    if (shnum > 0) this.#sections = await this.#parseSections(tables.shoff, shnum, bytes.section, shstrndx)
    const code = this.#sections.filter(({ flags }) => (flags & SHF_ALLOC) !== 0n && (flags & SHF_EXECINSTR) !== 0n)
    this.#holdsCode = code.length === 0 || code.some(({ type }) => type !== SHT_NOBITS)
  }

  async #parseSections(shoff: bigint, count: number, bytes: number, shstrndx: number): Promise<Section[]> {
    const view = await this.#table(shoff, count, bytes, 'section headers')
    const nameOf = await this.#sectionNames(view, count, bytes, shstrndx)
    const sections: Section[] = []
    const slice = new TimeSlice()
    for (let index = 0; index < count; index++) {
      sections.push(parseSection(view, index * bytes, nameOf))
      if (index % 256 === 255 && slice.isOver) await slice.rest()
    }
    return sections
  }

  async #sectionNames(view: ElfView, count: number, bytes: number, shstrndx: number): Promise<(nameOffset: number) => string> {
    if (shstrndx === 0) return () => ''
    if (shstrndx >= count) throw badElf(this.path, `the names of sections are said to be in section ${shstrndx} of ${count}`)
    const { type, offset, size } = parseSection(view, shstrndx * bytes, () => '')
    if (type === SHT_NOBITS) return () => ''
    if (size > BigInt(MAX_SECTION_NAMES_BYTES)) throw badElf(this.path, `a table of section names of ${size} bytes`, offset)
    const table = await this.read(offset, Number(size))
    return (nameOffset) => {
      const text = table.subarray(nameOffset, nameOffset + SECTION_NAME_BYTES)
      const end = text.indexOf(0)
      if (end < 0 && text.length < SECTION_NAME_BYTES) {
        throw badElf(this.path, 'the name of a section does not end within the table of names', offset + BigInt(nameOffset))
      }
      return decodeName(text, 0, end < 0 ? text.length : end)
    }
  }

  async #table(offset: bigint, count: number, bytes: number, what: string): Promise<ElfView> {
    const total = BigInt(count) * BigInt(bytes)
    if (total > 0n && offset + total > this.size) throw badElf(this.path, `the ${what} reach beyond the end of the file`, offset)
    return this.#view(total > 0n ? await this.#readAhead(offset, Number(total)) : Buffer.alloc(0))
  }

  /** Reads as {@link read}, and some of what follows. */
  async #readAhead(fileOffset: bigint, bytes: number): Promise<Buffer> {
    for (const { offset, bytes: known } of this.#ahead) {
      const at = fileOffset - offset
      if (at >= 0n && at + BigInt(bytes) <= BigInt(known.length)) return known.subarray(Number(at), Number(at) + bytes)
    }
    const left = this.size - fileOffset
    const most = left < BigInt(AHEAD_BYTES) ? Number(left) : AHEAD_BYTES
    const read = await this.read(fileOffset, Math.max(bytes, most))
    this.#ahead.push({ offset: fileOffset, bytes: read })
    return read.subarray(0, bytes)
  }

  #view(buffer: Buffer): ElfView {
    return new ElfView(buffer, this.littleEndian, this.bits)
  }

  /** As it was given; escape it before it is shown. */
  get path(): string {
    return this.source.path
  }

  /** Program headers, in the order of the file. */
  get segments(): readonly Segment[] {
    return this.#segments
  }

  /** Section headers, in the order of the file; empty if they were stripped. */
  get sections(): readonly Section[] {
    return this.#sections
  }

  /** Name of the architecture, for messages. */
  get machineName(): string {
    return MACHINE_NAMES.get(this.machine) ?? `machine ${this.machine}`
  }

  /** The mapped segment that begins last before or at an address, as an index of the loads; -1 if none does. */
  #loadIndexAt(vaddr: bigint): number {
    let low = 0
    let high = this.#loads.length
    while (low < high) {
      const middle = (low + high) >>> 1
      const load = this.#loads[middle]
      if (load !== undefined && load.vaddr <= vaddr) low = middle + 1
      else high = middle
    }
    return low - 1
  }

  /** The mapped segment that holds an address; of overlapping ones, the one that begins last. */
  #loadAt(vaddr: bigint): Segment | null {
    const load = this.#loads[this.#loadIndexAt(vaddr)]
    return load !== undefined && vaddr - load.vaddr < load.memorySize ? load : null
  }

  /**
   * Where an address lies in the file, by the program headers. `null` when it has no place there: it is in no segment, in the part of one that is not
   * from the file (`.bss`), or the file holds debug symbols only, whose program headers describe the file that they were split from.
   */
  fileOffsetOf(vaddr: bigint): bigint | null {
    const stretch = this.#stretchAt(vaddr)
    return stretch === null ? null : vaddr + stretch.shift
  }

  /** A function that answers as {@link fileOffsetOf}, and first looks where the last answer was: a file may have ten thousand probes, all in one segment. */
  offsetFinder(): (vaddr: bigint) => bigint | null {
    let stretch: Stretch | null = null
    return (vaddr) => {
      if (stretch === null || vaddr < stretch.start || vaddr >= stretch.end) stretch = this.#stretchAt(vaddr)
      if (stretch === null) return null
      // Code mostly is where its address says; then one number stands for both.
      return stretch.shift === 0n ? vaddr : vaddr + stretch.shift
    }
  }

  /** Equal for files in which addresses lie in the same places. */
  get layoutKey(): string {
    const loads = this.#loads.map(({ vaddr, offset, fileSize, memorySize }) => `${vaddr}:${offset}:${fileSize}:${memorySize}`)
    return `${this.bits}/${this.littleEndian}/${this.size}/${this.#holdsCode}/${loads}`
  }

  #stretchAt(vaddr: bigint): Stretch | null {
    const index = this.#loadIndexAt(vaddr)
    const load = this.#loads[index]
    if (load === undefined || !this.#holdsCode) return null
    const ends = [load.vaddr + load.memorySize, load.vaddr + load.fileSize, load.vaddr + this.size - load.offset]
    const end = ends.reduce((least, one) => (one < least ? one : least), this.#loads[index + 1]?.vaddr ?? ends[0] ?? 0n)
    return vaddr < end ? { start: load.vaddr, end, shift: load.offset - load.vaddr } : null
  }

  /**
   * Where the memory begins that the segment of an address has in no file (`.bss`), behind the last page of what it has in the file. `null` if no segment holds the
   * address.
   */
  anonymousStart(vaddr: bigint): bigint | null {
    const load = this.#loadAt(vaddr)
    if (load === null) return null
    const end = load.vaddr + load.fileSize
    return load.fileSize === 0n ? end - (end % PAGE_BYTES) : end + ((PAGE_BYTES - (end % PAGE_BYTES)) % PAGE_BYTES)
  }

  /** The address of a place in the file; where several segments hold it, in the executable one. `null` if none does. */
  vaddrOf(fileOffset: bigint): bigint | null {
    const holding = this.#loads.filter(({ offset, fileSize }) => fileOffset >= offset && fileOffset - offset < fileSize)
    const segment = holding.find(({ flags }) => (flags & PF_X) !== 0) ?? holding[0]
    return segment === undefined ? null : fileOffset - segment.offset + segment.vaddr
  }

  /** Whether an address is in an executable segment. */
  isExecutable(vaddr: bigint): boolean {
    const load = this.#loadAt(vaddr)
    return load !== null && (load.flags & PF_X) !== 0
  }

  /**
   * Reads exactly `bytes` bytes, at most 16 MiB.
   * @throws {UprobeError} `ERR_UPROBE_BAD_ELF` if the file is shorter; `ERR_UPROBE_FILE` if reading fails; `ERR_UPROBE_LIMIT` for want of memory
   */
  async read(fileOffset: bigint, bytes: number): Promise<Buffer> {
    if (bytes > MAX_READ_BYTES)
      throw badElf(this.path, `a piece of ${bytes} bytes, more than the ${MAX_READ_BYTES} that are accepted`, fileOffset)
    const buffer = Buffer.allocUnsafeSlow(bytes)
    await this.readInto(fileOffset, buffer)
    return buffer
  }

  /** Fills a buffer from the file; throws as {@link read}. */
  async readInto(fileOffset: bigint, buffer: Buffer): Promise<void> {
    if (this.#closed) throw new UprobeError('ERR_UPROBE_CLOSED', `${escapeForDisplay(this.path)} is closed.`)
    if (fileOffset < 0n || fileOffset + BigInt(buffer.length) > this.size) {
      throw badElf(this.path, `${buffer.length} bytes reach beyond the end of the file`, fileOffset)
    }
    const got = await readFully(this.source, buffer, fileOffset)
    if (got !== buffer.length) throw badElf(this.path, 'the file became shorter while it was read', fileOffset + BigInt(got))
  }

  /** Reads as {@link read}, for access by fields. */
  async readView(fileOffset: bigint, bytes: number): Promise<ElfView> {
    return this.#view(await this.read(fileOffset, bytes))
  }

  /** Closes the file, unless the descriptor is the caller's. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    if (this.ownsFd) await closeFd(this.source.fd)
  }
}

/** The size of a file that is a regular one. */
async function sizeOf(fd: number, path: string): Promise<bigint> {
  const stat = await onFile(path, 'read', () => statFd(fd, { bigint: true }))
  if (stat.isFile()) return stat.size
  const shown = escapeForDisplay(path)
  throw new UprobeError('ERR_UPROBE_FILE', `${shown} is not a regular file. Name an executable or a shared library.`, { path: shown })
}

function tooMany(count: number | bigint, what: string, most: number): string {
  return `${count} ${what}, more than the ${most} that are accepted`
}

/** Runs a system call on a file, and says what failed and where. */
async function onFile<T>(path: string, verb: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call()
  } catch (cause) {
    // Loaded when it is needed: of `uprobe list`, loading is a good part.
    const { limitError } = require('../shortage.js') as typeof import('../shortage.js')
    const shown = escapeForDisplay(path)
    const limit = limitError(cause, `${shown} cannot be ${verb}`)
    if (limit !== null) throw limit
    const why = isSystemCallError(cause) ? cause.code : String(cause)
    const details = isSystemCallError(cause) ? { syscall: cause.syscall, errno: Math.abs(cause.errno) } : {}
    throw new UprobeError('ERR_UPROBE_FILE', `${shown} cannot be ${verb} (${why}). Check the path and its permissions.`, {
      cause,
      path: shown,
      ...details,
    })
  }
}

/** Reads until the buffer is full or the file ends; returns the number of bytes. */
async function readFully(source: Source, buffer: Buffer, position: bigint): Promise<number> {
  const { fd, path } = source
  let done = readAtOnce(source, buffer, position)
  while (done < buffer.length) {
    const bytes = await onFile(path, 'read', () => readOnce(fd, buffer, done, position + BigInt(done)))
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
