/**
 * USDT probes as a file describes them: notes of type 3 by the owner "stapsdt" in the section `.note.stapsdt`.
 *
 * A compiler leaves one note where a probe macro was expanded, so a probe that was inlined in three places has three notes. The notes are not loaded
 * into memory and no program header leads to them. One note is
 *
 *     u32 namesz = 8 | u32 descsz | u32 type = 3 | "stapsdt\0" | word pc | word base | word semaphore | provider\0 | name\0 | args\0
 *
 * padded to 4 bytes, a word being as wide as an address. `pc`, `base` and `semaphore` were written at link time. A tool that moves the program later (prelink) does not
 * know the notes, but it moves the section `.stapsdt.base`; the distance between that section's address and `base` is how far everything moved: the
 * probe, and its semaphore.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { badElf, decodeName, type ElfFile, type ElfView, type Section, SHT_NOBITS } from './elf-file.js'

/** One USDT note. */
export interface UsdtNote {
  readonly provider: string
  readonly name: string
  /** The operands, as stored. */
  readonly args: string
  /** Address of the probe, as stored. */
  readonly pc: bigint
  /** Link-time address of `.stapsdt.base`, as stored. */
  readonly base: bigint
  /** Address of the semaphore, as stored; 0 if there is none. */
  readonly semaphore: bigint
  /** Address of the probe in the file as it is. */
  readonly vaddr: bigint
  /** Where that lies in the file; `null` when no program header maps it from the file. */
  readonly fileOffset: bigint | null
  /** Address of the semaphore in the file as it is; `null` if there is none. */
  readonly semaphoreVaddr: bigint | null
  /** Where that lies in the file: what the kernel calls ref_ctr_offset. `null` if there is none, or it has no place in the file (`.bss`). */
  readonly refCtrOffset: bigint | null
}

const SHT_NOTE = 7
const SECTION = '.note.stapsdt'
const OWNER = Buffer.from('stapsdt\0')
const TYPE = 3
const MAX_SECTION_BYTES = 64 * 1024 * 1024
const MAX_NOTES = 1_000_000
/** Notes that are read before the event loop gets its turn. */
const SLICE = 2000

/** Reads all USDT notes. Throws `ERR_UPROBE_BAD_ELF` when they are damaged. */
export async function readUsdtNotes(elf: ElfFile): Promise<UsdtNote[]> {
  const notes: UsdtNote[] = []
  const base = elf.sections.find((section) => section.name === '.stapsdt.base')
  for (const section of elf.sections) {
    if (section.name !== SECTION || section.type !== SHT_NOTE) continue
    await readSection(elf, section, base, notes)
  }
  return notes
}

async function readSection(elf: ElfFile, section: Section, base: Section | undefined, notes: UsdtNote[]): Promise<void> {
  if (section.type === SHT_NOBITS) return
  if (section.size > BigInt(MAX_SECTION_BYTES)) {
    throw badElf(elf.path, `${SECTION} of ${section.size} bytes, more than the ${MAX_SECTION_BYTES} that are accepted`, section.offset)
  }
  const buffer = await elf.read(section.offset, Number(section.size))
  const view = elf.view(buffer)
  for (let at = 0; at + 12 <= buffer.length; ) {
    const nameBytes = view.u32(at)
    const descBytes = view.u32(at + 4)
    const type = view.u32(at + 8)
    const nameAt = at + 12
    const descAt = nameAt + align4(nameBytes)
    const end = descAt + descBytes
    if (descAt > buffer.length || end > buffer.length) throw badElf(elf.path, `a note in ${SECTION} reaches beyond its section`, section.offset + BigInt(at))
    if (type === TYPE && nameBytes === OWNER.length && buffer.subarray(nameAt, nameAt + OWNER.length).equals(OWNER)) {
      if (notes.length >= MAX_NOTES) throw badElf(elf.path, `more than the ${MAX_NOTES} notes that are accepted`, section.offset + BigInt(at))
      notes.push(parseNote(elf, view, descAt, end, base, section.offset))
      if (notes.length % SLICE === 0) await nextTurn()
    }
    at = descAt + align4(descBytes)
  }
}

function parseNote(elf: ElfFile, view: ElfView, start: number, end: number, base: Section | undefined, sectionOffset: bigint): UsdtNote {
  const word = elf.bits / 8
  const bad = (what: string): Error => badElf(elf.path, `a USDT note ${what}`, sectionOffset + BigInt(start))
  if (end - start < 3 * word) throw bad(`of ${end - start} bytes is too short for its addresses`)
  const [pc, storedBase, semaphore] = [view.word(start), view.word(start + word), view.word(start + 2 * word)]
  const strings: string[] = []
  let at = start + 3 * word
  for (const what of ['provider', 'name', 'arguments']) {
    const zero = view.buffer.subarray(0, end).indexOf(0, at)
    if (zero < 0 || at >= end) throw bad(`has ${what} that do not end within it`)
    strings.push(decodeName(view.buffer.subarray(at, zero)))
    at = zero + 1
  }
  const [provider = '', name = '', args = ''] = strings
  const moved = base === undefined ? 0n : base.address - storedBase
  const vaddr = wrap(elf, pc + moved)
  const semaphoreVaddr = semaphore === 0n ? null : wrap(elf, semaphore + moved)
  return {
    provider,
    name,
    args,
    pc,
    base: storedBase,
    semaphore,
    vaddr,
    fileOffset: elf.fileOffsetOf(vaddr),
    semaphoreVaddr,
    refCtrOffset: semaphoreVaddr === null ? null : elf.fileOffsetOf(semaphoreVaddr),
  }
}

/** Addresses wrap around at the width of the class. */
function wrap(elf: ElfFile, address: bigint): bigint {
  return BigInt.asUintN(elf.bits, address)
}

function align4(bytes: number): number {
  return Math.ceil(bytes / 4) * 4
}
