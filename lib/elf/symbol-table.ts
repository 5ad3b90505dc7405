/**
 * The symbol tables of a file: where they are, and reading them a piece at a time.
 *
 * A file may have two: `.symtab` with everything, which `strip` removes, and `.dynsym` with what other files may use. The gABI allows one of each, and more than that
 * are not looked at. Where section headers were stripped, `.dynsym` is found as the dynamic loader finds it (dynamic.ts).
 *
 * A symbol table refers to its string table by offsets in any order, and both may be large. `namedSymbols` holds a window of the string table in memory and goes
 * through the symbols once for each window. A window is wide enough for the whole table of all but the largest programs.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import { badElf, decodeName } from './bad-elf.js'
import { dynamicSymbolTable } from './dynamic.js'
import { type ElfFile, MAX_READ_BYTES } from './elf-file.js'
import { type Section, SHN_XINDEX, SHT_DYNSYM, SHT_GNU_VERDEF, SHT_GNU_VERSYM, SHT_NOBITS, SHT_SYMTAB } from './headers.js'
import type { NameFilter } from './name-filter.js'
import type { Piece, SymbolTable } from './table-place.js'
import { TimeSlice } from './time-slice.js'

/** A symbol whose name is wanted. */
export interface NamedSymbol {
  readonly index: number
  readonly name: string
  /** What follows an `@` or `@@` in the name, as `@GLIBC_2.14`; empty if nothing does. */
  readonly suffix: string
  readonly vaddr: bigint
  readonly size: bigint
  /** STT_*. */
  readonly type: number
}

/** Bounds on what a file may claim. Chromium with all its symbols has 1.6 million, and 190 MB of names. */
const MAX_SYMBOLS = 2 ** 23
const MAX_NAMES_BYTES = 512 * 1024 * 1024
/** Longest name that is looked at; longer ones count as not wanted. */
const MAX_NAME_BYTES = 64 * 1024
/** Most bytes of names that become strings. Names may overlap, so that there can be far more of them than bytes in the file. */
const MAX_STRING_BYTES = 256 * 1024 * 1024
const MAX_FOUND = 2 ** 18
/** As much as is read at once, less the rest of the last name. */
const WINDOW_BYTES = MAX_READ_BYTES - MAX_NAME_BYTES
const PIECE_BYTES = 1024 * 1024
/** Symbols that are looked at before the clock is. */
const STEP = 256

const SHN_UNDEF = 0
const SHN_LORESERVE = 0xff00

/** Size of a symbol table entry. */
export function symbolBytes(bits: 32 | 64): number {
  return bits === 64 ? 24 : 16
}

/** The symbol tables of a file, `.dynsym` first. Throws `ERR_UPROBE_BAD_ELF`. */
export async function symbolTablesOf(elf: ElfFile): Promise<SymbolTable[]> {
  const dynsym = sectionTable(elf, 'dynsym', SHT_DYNSYM) ?? (elf.sections.length === 0 ? await dynamicSymbolTable(elf) : null)
  const symtab = sectionTable(elf, 'symtab', SHT_SYMTAB)
  const tables = [dynsym, symtab].filter((table) => table !== null)
  for (const { count, offset, names } of tables) {
    if (count > MAX_SYMBOLS) throw badElf(elf.path, `${count} symbols, more than the ${MAX_SYMBOLS} that are accepted`, offset)
    if (names.bytes > MAX_NAMES_BYTES) {
      throw badElf(elf.path, `${names.bytes} bytes of symbol names, more than the ${MAX_NAMES_BYTES} that are accepted`, names.offset)
    }
  }
  return tables
}

function sectionTable(elf: ElfFile, kind: SymbolTable['kind'], type: number): SymbolTable | null {
  const symbols = elf.sections.find((section) => section.type === type)
  if (symbols === undefined) return null
  const names = linked(elf, symbols)
  if (names.type === SHT_NOBITS) return null
  const count = Number(symbols.size / BigInt(symbolBytes(elf.bits)))
  const numbers = elf.sections.find((section) => section.type === SHT_GNU_VERSYM)
  const definitions = elf.sections.find((section) => section.type === SHT_GNU_VERDEF)
  const versions =
    kind === 'symtab' || numbers === undefined || definitions === undefined
      ? null
      : { numbers: pieceOf(numbers), definitions: pieceOf(definitions) }
  return { kind, offset: symbols.offset, count, names: pieceOf(names), versions }
}

function linked(elf: ElfFile, symbols: Section): Section {
  const strings = elf.sections[symbols.link]
  if (strings !== undefined) return strings
  throw badElf(elf.path, `a symbol table refers to section ${symbols.link} of ${elf.sections.length}`, symbols.offset)
}

function pieceOf({ offset, size }: Section): Piece {
  return { offset, bytes: Number(size) }
}

/** Some consecutive symbols. An entry is counted from the first of them. */
export class Symbols {
  readonly #data: DataView
  readonly #entryBytes: number

  constructor(
    /** Index of the first one in its table. */
    readonly first: number,
    readonly count: number,
    buffer: Buffer,
    private readonly littleEndian: boolean,
    private readonly wide: boolean,
  ) {
    this.#data = new DataView(buffer.buffer, buffer.byteOffset, buffer.length)
    this.#entryBytes = wide ? 24 : 16
  }

  nameOffset(entry: number): number {
    return this.#data.getUint32(entry * this.#entryBytes, this.littleEndian)
  }

  /** The first symbol from `entry` to before `last` that has one of the names that begin at `wanted`, or one that begins behind all names; `last` if there is none. */
  firstNamed(entry: number, last: number, wanted: ReadonlySet<number>, namesBytes: number): number {
    const data = this.#data
    const { littleEndian } = this
    let at = entry * this.#entryBytes
    for (let next = entry; next < last; next++, at += this.#entryBytes) {
      const nameOffset = data.getUint32(at, littleEndian)
      if (nameOffset >= namesBytes || wanted.has(nameOffset)) return next
    }
    return last
  }

  /** STT_*. */
  type(entry: number): number {
    return this.#data.getUint8(entry * this.#entryBytes + (this.wide ? 4 : 12)) & 15
  }

  /** Whether the symbol has an address in this file: it is neither undefined nor an absolute number nor a size (SHN_UNDEF, SHN_ABS, SHN_COMMON). */
  isDefined(entry: number): boolean {
    const section = this.#data.getUint16(entry * this.#entryBytes + (this.wide ? 6 : 14), this.littleEndian)
    return section !== SHN_UNDEF && (section < SHN_LORESERVE || section === SHN_XINDEX)
  }

  vaddr(entry: number): bigint {
    return this.#word(entry * this.#entryBytes + (this.wide ? 8 : 4))
  }

  size(entry: number): bigint {
    return this.#word(entry * this.#entryBytes + (this.wide ? 16 : 8))
  }

  #word(at: number): bigint {
    return this.wide ? this.#data.getBigUint64(at, this.littleEndian) : BigInt(this.#data.getUint32(at, this.littleEndian))
  }
}

/** Goes through a table. What is given is overwritten by the next piece. */
export async function* readSymbols(elf: ElfFile, table: SymbolTable): AsyncGenerator<Symbols> {
  const entryBytes = symbolBytes(elf.bits)
  const perPiece = Math.floor(PIECE_BYTES / entryBytes)
  const buffer = Buffer.allocUnsafeSlow(Math.min(perPiece, table.count) * entryBytes)
  for (let first = 0; first < table.count; first += perPiece) {
    const count = Math.min(perPiece, table.count - first)
    const piece = buffer.subarray(0, count * entryBytes)
    await elf.readInto(table.offset + BigInt(first * entryBytes), piece)
    yield new Symbols(first, count, piece, elf.littleEndian, elf.bits === 64)
  }
}

/**
 * The defined symbols of a table that have a wanted name and are of a wanted type, some at a time.
 * @throws {UprobeError} `ERR_UPROBE_BAD_ELF`; `ERR_UPROBE_TOO_MANY_SITES` if there are more than 262,144
 */
export async function* namedSymbols(
  elf: ElfFile,
  table: SymbolTable,
  filter: NameFilter,
  wantsType: (type: number) => boolean,
): AsyncGenerator<NamedSymbol[]> {
  const search = new NameSearch(elf, table, filter, wantsType)
  const slice = new TimeSlice()
  const { names } = table
  for (let from = 0; from < names.bytes; from += WINDOW_BYTES) {
    // A name that begins in the window may end behind it.
    const window = await elf.read(names.offset + BigInt(from), Math.min(WINDOW_BYTES + MAX_NAME_BYTES, names.bytes - from))
    const wanted = await placesIn(window, from, filter, slice)
    for await (const symbols of readSymbols(elf, table)) {
      for (let entry = 0; entry < symbols.count; entry += STEP) {
        const last = Math.min(entry + STEP, symbols.count)
        const first = wanted === null ? entry : symbols.firstNamed(entry, last, wanted, names.bytes)
        const found = search.look(window, from, symbols, first, last)
        if (found.length > 0) yield found
        if (slice.isOver) await slice.rest()
      }
    }
  }
}

/** Where in the table of names the one name that is wanted begins, within a window at `from`; `null` if each symbol must be looked at. */
async function placesIn(window: Buffer, from: number, filter: NameFilter, slice: TimeSlice): Promise<ReadonlySet<number> | null> {
  if (filter.places === undefined) return null
  const wanted = new Set<number>()
  for (let at = 0; at < window.length; at += PIECE_BYTES) {
    // A name that begins in the piece may end behind it.
    const places = filter.places(window.subarray(at, at + PIECE_BYTES + MAX_NAME_BYTES))
    if (places === null) return null
    for (const place of places) wanted.add(from + at + place)
    if (slice.isOver) await slice.rest()
  }
  return wanted
}

/** The inner loop of {@link namedSymbols}, apart from what is asynchronous, since V8 optimizes it only so while it runs. */
class NameSearch {
  #found = 0
  #stringBytes = 0

  constructor(
    private readonly elf: ElfFile,
    private readonly table: SymbolTable,
    private readonly filter: NameFilter,
    private readonly wantsType: (type: number) => boolean,
  ) {}

  /** Looks at the symbols from `entry` to before `last` whose names begin in the window, which is at `from` in the table of names. */
  look(window: Buffer, from: number, symbols: Symbols, entry: number, last: number): NamedSymbol[] {
    const found: NamedSymbol[] = []
    const namesBytes = this.table.names.bytes
    // What lies behind the table of names belongs to the last window, which refuses it.
    const to = from + WINDOW_BYTES < namesBytes ? from + WINDOW_BYTES : Infinity
    for (; entry < last; entry++) {
      const nameOffset = symbols.nameOffset(entry)
      if (nameOffset < from || nameOffset >= to || nameOffset === 0) continue
      const type = symbols.type(entry)
      if (!this.wantsType(type) || !symbols.isDefined(entry)) continue
      if (nameOffset >= namesBytes) throw this.#bad('a symbol name begins behind the table of names', nameOffset)
      if (!this.filter.mayMatch(window, nameOffset - from)) continue
      const text = this.#text(window, from, nameOffset)
      if (text === null) continue
      const { name, suffix } = splitName(text)
      if (!this.filter.matches(name)) continue
      if (++this.#found > MAX_FOUND) throw tooMany(this.elf)
      found.push({ index: symbols.first + entry, name, suffix, vaddr: symbols.vaddr(entry), size: symbols.size(entry), type })
    }
    return found
  }

  /** A name as a string; `null` if it is too long. */
  #text(window: Buffer, from: number, nameOffset: number): string | null {
    const at = nameOffset - from
    const end = window.indexOf(0, at)
    if (end < 0 && from + window.length === this.table.names.bytes)
      throw this.#bad('a symbol name does not end within the table of names', nameOffset)
    if (end < 0 || end - at > MAX_NAME_BYTES) return null
    this.#stringBytes += end - at
    if (this.#stringBytes > MAX_STRING_BYTES)
      throw this.#bad(`more than ${MAX_STRING_BYTES} bytes of symbol names, which overlap`, nameOffset)
    return decodeName(window, at, end)
  }

  #bad(what: string, nameOffset: number): UprobeError {
    return badElf(this.elf.path, what, this.table.names.offset + BigInt(nameOffset))
  }
}

function splitName(text: string): Pick<NamedSymbol, 'name' | 'suffix'> {
  const mark = text.indexOf('@')
  return mark < 0 ? { name: text, suffix: '' } : { name: text.slice(0, mark), suffix: text.slice(mark + 1) }
}

/** The name of one symbol. Throws `ERR_UPROBE_BAD_ELF`. */
export async function nameAt(elf: ElfFile, { names }: SymbolTable, nameOffset: number): Promise<Pick<NamedSymbol, 'name' | 'suffix'>> {
  const bytes = Math.min(MAX_NAME_BYTES, names.bytes - nameOffset)
  const window = bytes > 0 ? await elf.read(names.offset + BigInt(nameOffset), bytes) : Buffer.alloc(0)
  const end = window.indexOf(0)
  if (end < 0) throw badElf(elf.path, 'a symbol name does not end within the table of names', names.offset + BigInt(nameOffset))
  return splitName(decodeName(window, 0, end))
}

function tooMany(elf: ElfFile): UprobeError {
  const path = escapeForDisplay(elf.path)
  return new UprobeError('ERR_UPROBE_TOO_MANY_SITES', `More than ${MAX_FOUND} symbols of ${path} match. Narrow the pattern.`, { path })
}
