/**
 * Symbols: finding functions by name, and the function that holds an address.
 *
 * Symbol tables are large (a Node.js binary has 185,000 symbols, and megabytes of names), and mostly of no interest. So tables are read in pieces, names are
 * compared as bytes where they lie, and a string is made only of what matched. An exact name is first looked up in the string table, which yields the few name
 * offsets that a symbol may have; for a pattern, symbols are sorted by their name offset, so that the string table is read once from start to end.
 * The event loop gets its turn in between.
 *
 * A file may have two tables: `.symtab` with everything, which `strip` removes, and `.dynsym` with what other files may use. Both are read; what stands in both is one symbol.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { compileGlob, hasWildcard } from '../glob.js'
import { badElf, decodeName, type ElfFile, type Section } from './elf-file.js'

/** A defined symbol. */
export interface ElfSymbol {
  readonly name: string
  /** Its version in a shared library, as `GLIBC_2.14`; `null` if it has none. */
  readonly version: string | null
  /** Whether the name without a version means this one (`name@@VERSION`). */
  readonly defaultVersion: boolean
  readonly vaddr: bigint
  /** In bytes; 0 if the file does not say. */
  readonly size: bigint
  /** `ifunc`: the address is that of a resolver, which chooses the implementation when the program starts. */
  readonly kind: 'function' | 'ifunc' | 'object' | 'other'
  readonly table: 'symtab' | 'dynsym'
}

const SHT_SYMTAB = 2
const SHT_DYNSYM = 11
const SHT_GNU_VERDEF = 0x6ffffffd
const SHT_GNU_VERSYM = 0x6fffffff
const SHN_UNDEF = 0
const SHN_LORESERVE = 0xff00
const SHN_XINDEX = 0xffff
const VERSYM_HIDDEN = 0x8000

const PIECE_BYTES = 1024 * 1024
const SLICE_MS = 4
/** Bound on what a file may claim; the largest programs have some millions. */
const MAX_SYMBOLS = 2 ** 24
/** Longest name that is looked at; C++ produces names of many kilobytes. */
const MAX_NAME_BYTES = 64 * 1024

type Kind = ElfSymbol['kind']

interface RawSymbol {
  readonly index: number
  readonly nameOffset: number
  readonly vaddr: bigint
  readonly size: bigint
  readonly kind: Kind
}

/** Gives the event loop a turn when a slice of time is used up. */
class Slice {
  #start = performance.now()

  async rest(): Promise<void> {
    if (performance.now() - this.#start < SLICE_MS) return
    await nextTurn()
    this.#start = performance.now()
  }
}

/**
 * Functions by name: exact, or with `*` and `?`; `NAME@VERSION` and `NAME@@VERSION` mean one version.
 * @returns defined functions and ifuncs; for an exact name also code labels of no type, as assembly has them
 */
export async function findFunctions(elf: ElfFile, pattern: string): Promise<ElfSymbol[]> {
  const [, name = pattern, marker = '', version = ''] = /^([^@]+)(@@?)(.+)$/.exec(pattern) ?? []
  const exact = !hasWildcard(name)
  const wanted = (symbol: RawSymbol): boolean =>
    symbol.kind === 'function' || symbol.kind === 'ifunc' || (exact && symbol.kind === 'other' && elf.isExecutable(symbol.vaddr))
  const found = await findSymbols(elf, exact ? [name] : compileGlob(name), wanted)
  return found.filter((symbol) => version === '' || (symbol.version === version && (marker === '@' || symbol.defaultVersion)))
}

/**
 * Addresses of symbols of any kind, for operands such as `40+CheckpointStats(%rip)`. A name that stands for several addresses (static variables of several
 * compilation units) is left out, since nothing says which is meant.
 */
export async function findSymbolAddresses(elf: ElfFile, names: ReadonlySet<string>): Promise<Map<string, bigint>> {
  const addresses = new Map<string, bigint>()
  const ambiguous = new Set<string>()
  for (const { name, vaddr } of await findSymbols(elf, [...names], () => true)) {
    const known = addresses.get(name)
    if (known === undefined) addresses.set(name, vaddr)
    else if (known !== vaddr) ambiguous.add(name)
  }
  for (const name of ambiguous) addresses.delete(name)
  return addresses
}

/** The function that holds an address; one of unknown size reaches to the next. `null` if there is none. */
export async function functionContaining(elf: ElfFile, vaddr: bigint): Promise<ElfSymbol | null> {
  for (const table of tablesOf(elf)) {
    let best: RawSymbol | null = null
    for await (const symbols of readTable(elf, table)) {
      for (const symbol of symbols) {
        if (symbol.kind !== 'function' && symbol.kind !== 'ifunc') continue
        if (symbol.vaddr > vaddr) continue
        if (best === null || symbol.vaddr > best.vaddr || (symbol.vaddr === best.vaddr && symbol.size > best.size)) best = symbol
      }
    }
    if (best === null || (best.size !== 0n && vaddr >= best.vaddr + best.size)) continue
    const { strings } = table
    const bytes = await elf.read(strings.offset + BigInt(best.nameOffset), Math.min(MAX_NAME_BYTES, Number(strings.size) - best.nameOffset))
    return toSymbol(best, elf.string(bytes, 0, strings.offset), table, null)
  }
  return null
}

/** Whether a file is a Go program: its stacks move, which return probes do not survive. */
export function isGoBinary(elf: ElfFile): boolean {
  return elf.sections.some(({ name }) => name === '.go.buildinfo' || name === '.note.go.buildid' || name === '.gopclntab')
}

interface Table {
  readonly kind: 'symtab' | 'dynsym'
  readonly symbols: Section
  readonly strings: Section
}

function tablesOf(elf: ElfFile): Table[] {
  const tables: Table[] = []
  for (const symbols of elf.sections) {
    if (symbols.type !== SHT_SYMTAB && symbols.type !== SHT_DYNSYM) continue
    const strings = elf.sections[symbols.link]
    if (strings === undefined) throw badElf(elf.path, `a symbol table refers to section ${symbols.link}, which does not exist`, symbols.offset)
    tables.push({ kind: symbols.type === SHT_SYMTAB ? 'symtab' : 'dynsym', symbols, strings })
  }
  return tables
}

async function findSymbols(
  elf: ElfFile,
  wanted: readonly string[] | ((name: string) => boolean),
  accept: (symbol: RawSymbol) => boolean,
): Promise<ElfSymbol[]> {
  const found = new Map<string, ElfSymbol>()
  for (const table of tablesOf(elf)) {
    const versions = table.kind === 'dynsym' ? await readVersions(elf) : null
    const matches = typeof wanted === 'function' ? matchPattern(elf, table, wanted, accept) : matchNames(elf, table, wanted, accept)
    for await (const [raw, name] of matches) {
      const symbol = toSymbol(raw, name, table, versions)
      const key = `${name}\0${symbol.vaddr}`
      // The entry of .dynsym knows the version, which the one of .symtab does not.
      const known = found.get(key)
      if (known === undefined || (known.version === null && symbol.version !== null)) found.set(key, symbol)
    }
  }
  return [...found.values()]
}

/** Symbols of exact names: the string table is searched first, so that symbols are compared by number. */
async function* matchNames(
  elf: ElfFile,
  table: Table,
  names: readonly string[],
  accept: (symbol: RawSymbol) => boolean,
): AsyncGenerator<[RawSymbol, string]> {
  const offsets = await nameOffsets(elf, table.strings, names)
  if (offsets.size === 0) return
  for await (const symbols of readTable(elf, table, (nameOffset) => offsets.has(nameOffset))) {
    for (const symbol of symbols) {
      const name = offsets.get(symbol.nameOffset)
      if (name !== undefined && accept(symbol)) yield [symbol, name]
    }
  }
}

/** Where in a string table each name stands, as a string of its own or, since linkers share tails, as the end of a longer one. */
async function nameOffsets(elf: ElfFile, strings: Section, names: readonly string[]): Promise<Map<number, string>> {
  const needles = names.filter((name) => name.length > 0 && name.length < MAX_NAME_BYTES).map((name) => ({ name, bytes: Buffer.from(`${name}\0`) }))
  const longest = Math.max(0, ...needles.map(({ bytes }) => bytes.length))
  const offsets = new Map<number, string>()
  const slice = new Slice()
  for (let start = 0; start < Number(strings.size); start += PIECE_BYTES) {
    // Pieces overlap by the longest name, so that none is cut.
    const piece = await elf.read(strings.offset + BigInt(start), Math.min(PIECE_BYTES + longest, Number(strings.size) - start))
    for (const { name, bytes } of needles) {
      for (let at = piece.indexOf(bytes); at >= 0; at = piece.indexOf(bytes, at + 1)) offsets.set(start + at, name)
    }
    await slice.rest()
  }
  return offsets
}

/** Symbols whose names match a pattern, in the order of the string table. */
async function* matchPattern(
  elf: ElfFile,
  table: Table,
  matches: (name: string) => boolean,
  accept: (symbol: RawSymbol) => boolean,
): AsyncGenerator<[RawSymbol, string]> {
  const candidates: RawSymbol[] = []
  for await (const symbols of readTable(elf, table)) for (const symbol of symbols) if (accept(symbol)) candidates.push(symbol)
  // A name offset below 2^32 and an index below 2^20 or so fit a double together, and sorting numbers is fast.
  const order = Float64Array.from(candidates, (symbol, index) => symbol.nameOffset * 2 ** 21 + Math.min(index, 2 ** 21 - 1))
  if (candidates.length >= 2 ** 21) throw badElf(elf.path, `${candidates.length} functions, more than a pattern can be matched against`)
  order.sort()
  const { strings } = table
  const slice = new Slice()
  let piece: Buffer = Buffer.alloc(0)
  let pieceStart = 0
  for (const key of order) {
    const symbol = candidates[key % 2 ** 21]
    if (symbol === undefined) continue
    const { nameOffset } = symbol
    let end = piece.indexOf(0, Math.max(0, nameOffset - pieceStart))
    if (nameOffset < pieceStart || nameOffset >= pieceStart + piece.length || end < 0) {
      const left = Number(strings.size) - nameOffset
      if (left <= 0) throw badElf(elf.path, 'a symbol name lies outside its string table', strings.offset + BigInt(nameOffset))
      piece = await elf.read(strings.offset + BigInt(nameOffset), Math.min(PIECE_BYTES, left))
      pieceStart = nameOffset
      end = piece.indexOf(0)
      if (end < 0) throw badElf(elf.path, 'a symbol name is not terminated', strings.offset + BigInt(nameOffset))
    }
    await slice.rest()
    const name = decodeName(piece.subarray(nameOffset - pieceStart, end))
    if (matches(name)) yield [symbol, name]
  }
}

/** Reads the defined symbols of a table, a piece at a time. */
async function* readTable(elf: ElfFile, table: Table, wantedName?: (nameOffset: number) => boolean): AsyncGenerator<RawSymbol[]> {
  const wide = elf.bits === 64
  const entryBytes = wide ? 24 : 16
  const { symbols } = table
  const count = Number(symbols.size / BigInt(entryBytes))
  if (count > MAX_SYMBOLS) throw badElf(elf.path, `${count} symbols, more than the ${MAX_SYMBOLS} that are accepted`, symbols.offset)
  const perPiece = Math.floor(PIECE_BYTES / entryBytes)
  const slice = new Slice()
  for (let first = 0; first < count; first += perPiece) {
    const entries = Math.min(perPiece, count - first)
    const view = elf.view(await elf.read(symbols.offset + BigInt(first * entryBytes), entries * entryBytes))
    const found: RawSymbol[] = []
    for (let entry = 0; entry < entries; entry++) {
      const at = entry * entryBytes
      const nameOffset = view.u32(at)
      if (nameOffset === 0 || wantedName?.(nameOffset) === false) continue
      const section = view.u16(at + (wide ? 6 : 14))
      if (section === SHN_UNDEF || (section >= SHN_LORESERVE && section !== SHN_XINDEX)) continue
      const vaddr = view.word(at + (wide ? 8 : 4))
      const size = view.word(at + (wide ? 16 : 8))
      if (vaddr === 0n) continue
      const info = view.buffer[at + (wide ? 4 : 12)] ?? 0
      found.push({ index: first + entry, nameOffset, vaddr, size, kind: kindOf(info & 15) })
      if ((entry & 4095) === 4095) await slice.rest()
    }
    yield found
    await slice.rest()
  }
}

/** STT_* of a symbol. */
function kindOf(type: number): Kind {
  switch (type) {
    case 1:
      return 'object'
    case 2:
      return 'function'
    case 10:
      return 'ifunc'
    default:
      return 'other'
  }
}

interface Versions {
  /** One u16 a symbol. */
  readonly bySymbol: Buffer
  readonly littleEndian: boolean
  readonly names: ReadonlyMap<number, string>
}

/** The versions that a library defines: `.gnu.version` numbers them by symbol, `.gnu.version_d` names the numbers. */
async function readVersions(elf: ElfFile): Promise<Versions | null> {
  const numbers = elf.sections.find(({ type }) => type === SHT_GNU_VERSYM)
  const definitions = elf.sections.find(({ type }) => type === SHT_GNU_VERDEF)
  const strings = definitions === undefined ? undefined : elf.sections[definitions.link]
  if (numbers === undefined || definitions === undefined || strings === undefined) return null
  const names = new Map<number, string>()
  const view = elf.view(await elf.read(definitions.offset, Number(definitions.size)))
  const table = await elf.read(strings.offset, Number(strings.size))
  // Entries are chained by distances; each step goes forward, so a cycle cannot be made.
  for (let at = 0; at + 20 <= view.buffer.length; ) {
    const index = view.u16(at + 4) & ~VERSYM_HIDDEN
    const auxAt = at + view.u32(at + 12)
    if (auxAt + 4 <= view.buffer.length) names.set(index, elf.string(table, view.u32(auxAt), strings.offset))
    const next = view.u32(at + 16)
    if (next === 0) break
    at += next
  }
  return { bySymbol: await elf.read(numbers.offset, Number(numbers.size)), littleEndian: elf.littleEndian, names }
}

function toSymbol(raw: RawSymbol, name: string, table: Table, versions: Versions | null): ElfSymbol {
  const at = raw.index * 2
  const number =
    versions === null || at + 2 > versions.bySymbol.length ? 0 : versions.littleEndian ? versions.bySymbol.readUInt16LE(at) : versions.bySymbol.readUInt16BE(at)
  // 0 is local and 1 global without a version.
  const version = (number & ~VERSYM_HIDDEN) < 2 ? null : (versions?.names.get(number & ~VERSYM_HIDDEN) ?? null)
  return {
    name,
    version,
    defaultVersion: version !== null && (number & VERSYM_HIDDEN) === 0,
    vaddr: raw.vaddr,
    size: raw.size,
    kind: raw.kind,
    table: table.kind,
  }
}
