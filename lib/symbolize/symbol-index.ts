/**
 * The functions of a file by address.
 *
 * The symbol tables are gone through once, and of each function its start, size and place of its name are kept in typed arrays, sorted; names are read when they are asked for. An address belongs to the
 * innermost function whose size covers it. A function of unknown size, as assembly has them, ends where the next one begins, at the latest with its section; that is believed only
 * of a full table (`.symtab`): in one that names some functions only, others may lie between.
 */
import type { ElfFile } from '../elf/elf-file.js'
import { nameAt, readSymbols, symbolTablesOf } from '../elf/symbol-table.js'
import type { SymbolTable } from '../elf/table-place.js'
import { saysUnusable } from '../shortage.js'

const STT_NOTYPE = 0
const STT_FUNC = 2
const STT_GNU_IFUNC = 10

/** Functions that begin before an address and may still cover it; deeper nesting is not looked at. */
const MAX_LOOK_BACK = 64
/** Names of one function that are compared. */
const MAX_NAMES = 16
/** Symbols of one file; Chromium has 1.6 million. */
const MAX_SYMBOLS = 2 ** 22

/** The function at an address. */
export interface FoundSymbol {
  readonly name: string
  /** Virtual address in the file. */
  readonly start: bigint
}

interface Source {
  readonly elf: ElfFile
  readonly table: SymbolTable
}

/** Growing columns. */
class Columns {
  starts = new Float64Array(1024)
  sizes = new Float64Array(1024)
  names = new Uint32Array(1024)
  sources = new Uint8Array(1024)
  length = 0

  add(start: number, size: number, name: number, source: number): void {
    if (this.length === this.starts.length) this.#grow()
    this.starts[this.length] = start
    this.sizes[this.length] = size
    this.names[this.length] = name
    this.sources[this.length++] = source
  }

  #grow(): void {
    const room = 2 * this.length
    const { starts, sizes, names, sources } = this
    this.starts = new Float64Array(room)
    this.sizes = new Float64Array(room)
    this.names = new Uint32Array(room)
    this.sources = new Uint8Array(room)
    this.starts.set(starts)
    this.sizes.set(sizes)
    this.names.set(names)
    this.sources.set(sources)
  }
}

/** The functions of a file, and of the file of its debug symbols. */
export class SymbolIndex {
  readonly #columns: Columns
  readonly #sources: readonly Source[]
  /** Indexes into the columns, by start. */
  readonly #order: Uint32Array
  readonly #names = new Map<number, string | null>()

  private constructor(columns: Columns, sources: readonly Source[]) {
    this.#columns = columns
    this.#sources = sources
    const { starts } = columns
    this.#order = Uint32Array.from({ length: columns.length }, (_, index) => index).sort((a, b) => (starts[a] ?? 0) - (starts[b] ?? 0))
  }

  /** Reads the symbol tables; those that are broken are left out. */
  static async of(files: readonly ElfFile[]): Promise<SymbolIndex> {
    const columns = new Columns()
    const sources: Source[] = []
    for (const elf of files) {
      try {
        for (const table of await symbolTablesOf(elf)) {
          sources.push({ elf, table })
          await addTable(columns, elf, table, sources.length - 1)
        }
      } catch (error) {
        if (!saysUnusable(error)) throw error
      }
    }
    return new SymbolIndex(columns, sources)
  }

  /** How many symbols are kept. */
  get size(): number {
    return this.#columns.length
  }

  /** The function that holds an address. */
  async find(vaddr: bigint): Promise<FoundSymbol | null> {
    if (vaddr > BigInt(Number.MAX_SAFE_INTEGER)) return null
    const place = this.#search(Number(vaddr))
    if (place === null) return null
    const start = this.#start(place)
    const name = await this.#nameOf(place, start, Number(vaddr) - start)
    return name === null ? null : { name, start: BigInt(start) }
  }

  #start(place: number): number {
    return this.#columns.starts[this.#order[place] ?? 0] ?? 0
  }

  #size(place: number): number {
    return this.#columns.sizes[this.#order[place] ?? 0] ?? 0
  }

  /** The place in the order of a symbol that covers the address. */
  #search(vaddr: number): number | null {
    let low = 0
    let high = this.#order.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#start(middle) <= vaddr) low = middle + 1
      else high = middle
    }
    const last = low - 1
    for (let place = last; place >= 0 && place > last - MAX_LOOK_BACK; place--) {
      if (vaddr - this.#start(place) < this.#size(place)) return place
    }
    return last >= 0 && this.#size(last) === 0 && this.#reaches(last, vaddr) ? last : null
  }

  /** Whether nothing can lie between a function of unknown size and an address behind it. */
  #reaches(place: number, vaddr: number): boolean {
    const source = this.#sources[this.#columns.sources[this.#order[place] ?? 0] ?? 0]
    if (source === undefined || source.table.kind !== 'symtab') return false
    const start = BigInt(this.#start(place))
    const end = BigInt(vaddr)
    return source.elf.sections.some(({ address, size }) => address !== 0n && start >= address && end < address + size)
  }

  /** Of several names of one function the one that is meant for people: with the fewest underscores in front, then the shortest. */
  async #nameOf(found: number, start: number, offset: number): Promise<string | null> {
    const known = this.#names.get(start)
    if (known !== undefined) return known
    const names: string[] = []
    let first = found
    while (first > 0 && this.#start(first - 1) === start) first--
    for (let place = first; this.#start(place) === start && place < this.#order.length && names.length < MAX_NAMES; place++) {
      const size = this.#size(place)
      if (size !== 0 && offset >= size) continue
      const name = await this.#readName(this.#order[place] ?? 0)
      // "$x" and ".L…" mark places for the linker.
      if (name !== null && !/^(\$|\.L|$)/.test(name)) names.push(name)
    }
    const best = names.sort((a, b) => underscores(a) - underscores(b) || a.length - b.length || (a < b ? -1 : 1))[0] ?? null
    if (this.#names.size >= MAX_LOOK_BACK * 1024) this.#names.clear()
    this.#names.set(start, best)
    return best
  }

  async #readName(index: number): Promise<string | null> {
    const source = this.#sources[this.#columns.sources[index] ?? 0]
    if (source === undefined) return null
    try {
      return (await nameAt(source.elf, source.table, this.#columns.names[index] ?? 0)).name
    } catch (error) {
      if (saysUnusable(error)) return null
      throw error
    }
  }
}

function underscores(name: string): number {
  return name.length - name.replace(/^_+/, '').length
}

async function addTable(columns: Columns, elf: ElfFile, table: SymbolTable, source: number): Promise<void> {
  for await (const symbols of readSymbols(elf, table)) {
    for (let entry = 0; entry < symbols.count && columns.length < MAX_SYMBOLS; entry++) {
      const type = symbols.type(entry)
      if ((type !== STT_FUNC && type !== STT_GNU_IFUNC && type !== STT_NOTYPE) || !symbols.isDefined(entry)) continue
      const start = Number(symbols.vaddr(entry))
      const size = Number(symbols.size(entry))
      if (start > Number.MAX_SAFE_INTEGER || size > Number.MAX_SAFE_INTEGER || (type === STT_NOTYPE && size === 0)) continue
      columns.add(start, size, symbols.nameOffset(entry), source)
    }
  }
}
