/**
 * The dynamic symbol table of a file without section headers.
 *
 * The dynamic loader needs no sections: the segment PT_DYNAMIC lists the addresses of the symbol table, of its strings and of a hash table. Nothing
 * says how many symbols there are. The loader never asks; we take it from the hash table, which has an entry for each.
 *
 *     DT_HASH      u32 nbucket | u32 nchain = number of symbols | …
 *     DT_GNU_HASH  u32 nbuckets | u32 symoffset | u32 bloom words | u32 shift | bloom (words) | u32 bucket × nbuckets | u32 chain …
 *
 * A bucket of DT_GNU_HASH holds the index of its first symbol; the others follow, and the last one's chain value is odd. So the last symbol of the
 * bucket with the greatest index is the last of the table.
 */
import { badElf } from './bad-elf.js'
import type { ElfFile } from './elf-file.js'
import { type ElfView, PT_DYNAMIC } from './headers.js'
import type { Piece, SymbolTable } from './table-place.js'
import { TimeSlice } from './time-slice.js'

const DT_NULL = 0n
const DT_HASH = 4n
const DT_STRTAB = 5n
const DT_SYMTAB = 6n
const DT_STRSZ = 10n
const DT_GNU_HASH = 0x6ffffef5n
const DT_VERSYM = 0x6ffffff0n
const DT_VERDEF = 0x6ffffffcn

const MAX_DYNAMIC_BYTES = 64 * 1024
const MAX_BUCKETS = 2 ** 20
/** Steps along the last chain; honest chains have a handful. */
const MAX_CHAIN = 65_536
const MAX_DEFINITIONS_BYTES = 64 * 1024

/** Finds the table through PT_DYNAMIC; `null` if there is none. Throws `ERR_UPROBE_BAD_ELF`. */
export async function dynamicSymbolTable(elf: ElfFile): Promise<SymbolTable | null> {
  const segment = elf.segments.find(({ type }) => type === PT_DYNAMIC)
  if (segment === undefined) return null
  if (segment.fileSize > BigInt(MAX_DYNAMIC_BYTES)) throw badElf(elf.path, `${segment.fileSize} bytes of dynamic entries`, segment.offset)
  const entries = parseEntries(await elf.readView(segment.offset, Number(segment.fileSize)))
  const place = (tag: bigint): bigint | null => {
    const address = entries.get(tag)
    return address === undefined ? null : elf.fileOffsetOf(address)
  }
  const offset = place(DT_SYMTAB)
  const names = place(DT_STRTAB)
  const count = await countSymbols(elf, place(DT_HASH), place(DT_GNU_HASH))
  if (offset === null || names === null || count === null) return null
  const numbers = place(DT_VERSYM)
  const definitions = place(DT_VERDEF)
  return {
    kind: 'dynsym',
    offset,
    count,
    names: { offset: names, bytes: Number(entries.get(DT_STRSZ) ?? 0n) },
    versions:
      numbers === null || definitions === null
        ? null
        : { numbers: { offset: numbers, bytes: count * 2 }, definitions: upTo(elf, definitions) },
  }
}

function parseEntries(view: ElfView): Map<bigint, bigint> {
  const entries = new Map<bigint, bigint>()
  const word = view.bits / 8
  for (let at = 0; at + 2 * word <= view.buffer.length; at += 2 * word) {
    const tag = view.word(at)
    if (tag === DT_NULL) break
    entries.set(tag, view.word(at + word))
  }
  return entries
}

/** The size of the version definitions is not given; they are chained, and end by themselves. */
function upTo(elf: ElfFile, offset: bigint): Piece {
  const left = elf.size - offset
  return { offset, bytes: left < BigInt(MAX_DEFINITIONS_BYTES) ? Number(left) : MAX_DEFINITIONS_BYTES }
}

async function countSymbols(elf: ElfFile, hash: bigint | null, gnuHash: bigint | null): Promise<number | null> {
  if (hash !== null) return (await elf.readView(hash, 8)).u32(4)
  return gnuHash === null ? null : countByGnuHash(elf, gnuHash)
}

async function countByGnuHash(elf: ElfFile, hash: bigint): Promise<number> {
  const head = await elf.readView(hash, 16)
  const bucketCount = head.u32(0)
  const firstIndex = head.u32(4)
  if (bucketCount > MAX_BUCKETS)
    throw badElf(elf.path, `${bucketCount} buckets of symbols, more than the ${MAX_BUCKETS} that are accepted`, hash)
  const bucketsAt = hash + 16n + BigInt(head.u32(8)) * BigInt(elf.bits / 8)
  const buckets = await elf.readView(bucketsAt, bucketCount * 4)
  const slice = new TimeSlice()
  let last = 0
  for (let bucket = 0; bucket < bucketCount; bucket++) {
    last = Math.max(last, buckets.u32(bucket * 4))
    if (bucket % 4096 === 4095 && slice.isOver) await slice.rest()
  }
  if (last < firstIndex) return firstIndex
  const chainAt = bucketsAt + BigInt(bucketCount * 4) + BigInt(last - firstIndex) * 4n
  const left = elf.size - chainAt
  const chain = await elf.readView(chainAt, Math.max(0, Math.min(MAX_CHAIN, Number(left / 4n))) * 4)
  for (let step = 0; step * 4 < chain.buffer.length; step++) if ((chain.u32(step * 4) & 1) === 1) return last + step + 1
  throw badElf(elf.path, 'a chain of the symbol hash table has no end', chainAt)
}
