/**
 * Symbols: finding functions by name, the addresses of variables, and the function that holds an address.
 *
 * Symbol tables are large (a Node.js binary has 185,000 symbols and tens of megabytes of names), and mostly of no interest. They are read in pieces
 * (symbol-table.ts), names are compared as bytes where they lie (name-filter.ts), and a string is made only of what may match. The event loop gets its turn in between.
 */

import { hasWildcard } from '../glob.js'
import type { ElfFile } from './elf-file.js'
import { filterByNames, filterByPattern, type NameFilter } from './name-filter.js'
import { type NamedSymbol, nameAt, namedSymbols, readSymbols, type Symbols, symbolTablesOf } from './symbol-table.js'
import type { SymbolTable } from './table-place.js'
import { TimeSlice } from './time-slice.js'
import { NO_VERSION, readVersions, type SymbolVersion } from './versions.js'

/** A defined symbol. */
export interface ElfSymbol {
  readonly name: string
  /** Its version in a shared library, as `GLIBC_2.14`; `null` if it has none. */
  readonly version: string | null
  /** Whether the name without a version means this one (`NAME@@VERSION`). */
  readonly defaultVersion: boolean
  readonly vaddr: bigint
  /** In bytes; 0 if the file does not say. */
  readonly size: bigint
  /** `ifunc`: the address is that of a resolver, which chooses the implementation when the program starts. */
  readonly kind: 'function' | 'ifunc' | 'object' | 'other'
  readonly table: 'symtab' | 'dynsym'
}

const STT_NOTYPE = 0
const STT_OBJECT = 1
const STT_FUNC = 2
const STT_SECTION = 3
const STT_FILE = 4
const STT_TLS = 6
const STT_GNU_IFUNC = 10

/**
 * Functions by name: exact, or with `*` and `?`; `NAME@VERSION` and `NAME@@VERSION` mean one version, the latter only if it is the default.
 * @returns defined functions and ifuncs; for an exact name also code labels of no type, as assembly has them. A name that stands for several functions (static ones,
 *   versions) is there several times; one function in both symbol tables, once.
 * @throws {UprobeError} `ERR_UPROBE_BAD_ELF`; `ERR_UPROBE_TOO_MANY_SITES` if more than 262,144 match
 */
export async function findFunctions(elf: ElfFile, pattern: string): Promise<ElfSymbol[]> {
  const [, name = pattern, marker = '', version = ''] = /^([^@]+)(@@?)(.+)$/.exec(pattern) ?? []
  const exact = !hasWildcard(name)
  const wantsType = (type: number): boolean => type === STT_FUNC || type === STT_GNU_IFUNC || (exact && type === STT_NOTYPE)
  const found = await findSymbols(elf, filterByPattern(name), wantsType)
  return found.filter(
    (symbol) =>
      (symbol.kind !== 'other' || elf.isExecutable(symbol.vaddr)) &&
      (version === '' || (symbol.version === version && (marker === '@' || symbol.defaultVersion))),
  )
}

/**
 * Addresses of functions and variables, for operands such as `40+CheckpointStats(%rip)`. A name that stands for several addresses (static variables of
 * several compilation units) is left out, since nothing says which is meant; so are thread-local variables, which have no address in the file.
 * @throws {UprobeError} as {@link findFunctions}
 */
export async function findSymbolAddresses(elf: ElfFile, names: ReadonlySet<string>): Promise<Map<string, bigint>> {
  const addresses = new Map<string, bigint>()
  const ambiguous = new Set<string>()
  const wantsType = (type: number): boolean => type !== STT_SECTION && type !== STT_FILE && type !== STT_TLS
  for (const { name, vaddr } of await findSymbols(elf, filterByNames(names), wantsType)) {
    const known = addresses.get(name)
    if (known === undefined) addresses.set(name, vaddr)
    else if (known !== vaddr) ambiguous.add(name)
  }
  for (const name of ambiguous) addresses.delete(name)
  return addresses
}

/**
 * The function that holds an address: the innermost one, or else the last before it if that is of unknown size. `null` if there is none.
 * @throws {UprobeError} `ERR_UPROBE_BAD_ELF`
 */
export async function functionContaining(elf: ElfFile, vaddr: bigint): Promise<ElfSymbol | null> {
  let inside: Candidate | null = null
  let nearest: Candidate | null = null
  const slice = new TimeSlice()
  for (const table of await symbolTablesOf(elf)) {
    for await (const symbols of readSymbols(elf, table)) {
      for (let entry = 0; entry < symbols.count; entry++) {
        if (entry % 512 === 511 && slice.isOver) await slice.rest()
        const type = symbols.type(entry)
        if ((type !== STT_FUNC && type !== STT_GNU_IFUNC) || !symbols.isDefined(entry)) continue
        const start = symbols.vaddr(entry)
        if (start > vaddr) continue
        if (nearest === null || start >= nearest.vaddr) nearest = candidate(table, symbols, entry)
        if (vaddr - start < symbols.size(entry) && (inside === null || start >= inside.vaddr)) inside = candidate(table, symbols, entry)
      }
    }
  }
  const found = inside ?? (nearest?.size === 0n ? nearest : null)
  if (found === null) return null
  return toElfSymbol({ ...found, ...(await nameAt(elf, found.table, found.nameOffset)) }, found.table.kind, NO_VERSION)
}

type Candidate = Omit<NamedSymbol, 'name' | 'suffix'> & { readonly table: SymbolTable; readonly nameOffset: number }

function candidate(table: SymbolTable, symbols: Symbols, entry: number): Candidate {
  return {
    table,
    index: symbols.first + entry,
    nameOffset: symbols.nameOffset(entry),
    vaddr: symbols.vaddr(entry),
    size: symbols.size(entry),
    type: symbols.type(entry),
  }
}

/** Whether a file is a Go program: its stacks move, which return probes do not survive. */
export function isGoBinary(elf: ElfFile): boolean {
  return elf.sections.some(({ name }) => name === '.go.buildinfo' || name === '.note.go.buildid' || name === '.gopclntab')
}

async function findSymbols(elf: ElfFile, filter: NameFilter, wantsType: (type: number) => boolean): Promise<ElfSymbol[]> {
  const found = new DistinctSymbols()
  // .dynsym comes first, so that of a symbol in both tables the entry with the version stays.
  for (const table of await symbolTablesOf(elf)) {
    let versionOf: ((index: number) => SymbolVersion) | null = null
    for await (const named of namedSymbols(elf, table, filter, wantsType)) {
      versionOf ??= await readVersions(elf, table)
      found.add(named, table.kind, versionOf)
    }
  }
  return found.symbols
}

/** Symbols, each once: those of one name, version and address are the same, and so is one without a version. */
class DistinctSymbols {
  readonly symbols: ElfSymbol[] = []
  /** The first at each address. */
  readonly #byAddress = new Map<number, ElfSymbol>()
  /** Keys of the others. A key for every symbol would cost more than finding it. */
  readonly #seen = new Set<string>()

  add(named: readonly NamedSymbol[], table: ElfSymbol['table'], versionOf: (index: number) => SymbolVersion): void {
    for (const raw of named) {
      const symbol = toElfSymbol(raw, table, versionOf(raw.index))
      if (this.#isNew(symbol)) this.symbols.push(symbol)
    }
  }

  #isNew(symbol: ElfSymbol): boolean {
    const { name, version, vaddr } = symbol
    const first = this.#byAddress.get(Number(vaddr))
    if (first === undefined) {
      this.#byAddress.set(Number(vaddr), symbol)
      return true
    }
    if (first.vaddr === vaddr && first.name === name && (version === null || version === first.version)) return false
    const place = `${vaddr.toString(36)} ${name}`
    const key = version === null ? place : `${place}@${version}`
    if (this.#seen.has(key)) return false
    this.#seen.add(key).add(place)
    return true
  }
}

function toElfSymbol({ name, suffix, vaddr, size, type }: NamedSymbol, table: ElfSymbol['table'], known: SymbolVersion): ElfSymbol {
  // "@@V" in the name itself, as .symtab has it, says the same as the tables of versions do for .dynsym.
  const { version, isDefault } = suffix === '' ? known : { version: suffix.replace(/^@/, ''), isDefault: suffix.startsWith('@') }
  return { name, version, defaultVersion: isDefault, vaddr, size, kind: kindOf(type), table }
}

function kindOf(type: number): ElfSymbol['kind'] {
  switch (type) {
    case STT_OBJECT:
      return 'object'
    case STT_FUNC:
      return 'function'
    case STT_GNU_IFUNC:
      return 'ifunc'
    default:
      return 'other'
  }
}
