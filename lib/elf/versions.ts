/**
 * Versions of dynamic symbols (`memcpy@@GLIBC_2.14`).
 *
 * `.gnu.version` has a 16-bit number for each symbol: 0 for a local one, 1 for a global one without a version, otherwise the index of a definition. Bit 15 is set
 * for a version that is kept for old programs only; without it, the version is what the bare name means to a linker. `.gnu.version_d` is a chain of definitions,
 * each with its index and, in an auxiliary entry, its name.
 */
import { badElf, decodeName } from './bad-elf.js'
import type { ElfFile } from './elf-file.js'
import type { SymbolTable } from './table-place.js'

/** The version of a symbol. */
export interface SymbolVersion {
  readonly version: string | null
  readonly isDefault: boolean
}

const HIDDEN = 0x8000
const INDEX = 0x7fff
const FIRST_DEFINED = 2
const MAX_DEFINITIONS_BYTES = 1024 * 1024
const MAX_VERSION_BYTES = 256

export const NO_VERSION: SymbolVersion = { version: null, isDefault: false }

/** Reads the versions of a table; the function that is returned gives those of a symbol by its index. Throws `ERR_UPROBE_BAD_ELF`. */
export async function readVersions(elf: ElfFile, table: SymbolTable): Promise<(index: number) => SymbolVersion> {
  if (table.versions === null) return () => NO_VERSION
  const { numbers, definitions } = table.versions
  if (definitions.bytes > MAX_DEFINITIONS_BYTES)
    throw badElf(elf.path, `${definitions.bytes} bytes of version definitions`, definitions.offset)
  const versions = await readDefinitions(elf, table, definitions.offset, definitions.bytes)
  const bySymbol = await elf.readView(numbers.offset, Math.min(numbers.bytes, table.count * 2))
  return (index) => {
    const at = index * 2
    const number = at + 2 <= bySymbol.buffer.length ? bySymbol.u16(at) : 0
    const version = versions.get(number & INDEX) ?? null
    return (number & INDEX) < FIRST_DEFINED || version === null ? NO_VERSION : { version, isDefault: (number & HIDDEN) === 0 }
  }
}

async function readDefinitions(elf: ElfFile, { names }: SymbolTable, offset: bigint, bytes: number): Promise<Map<number, string>> {
  const view = await elf.readView(offset, bytes)
  const versions = new Map<number, string>()
  // Each step goes forward, so that a chain ends; and more definitions than there are indexes are not believed.
  let at = 0
  for (let count = 0; count <= INDEX && at + 20 <= bytes; count++) {
    const aux = at + view.u32(at + 12)
    if (aux + 4 > bytes) throw badElf(elf.path, 'a version definition reaches beyond its section', offset + BigInt(at))
    const nameOffset = view.u32(aux)
    if (nameOffset >= names.bytes) throw badElf(elf.path, 'the name of a version begins behind the table of names', offset + BigInt(aux))
    const text = await elf.read(names.offset + BigInt(nameOffset), Math.min(MAX_VERSION_BYTES, names.bytes - nameOffset))
    const end = text.indexOf(0)
    if (end < 0) throw badElf(elf.path, `the name of a version does not end within ${text.length} bytes`, names.offset + BigInt(nameOffset))
    versions.set(view.u16(at + 4) & INDEX, decodeName(text, 0, end))
    const next = view.u32(at + 16)
    if (next === 0) break
    at += next
  }
  return versions
}
