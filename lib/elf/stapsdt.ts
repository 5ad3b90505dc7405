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
import { badElf, decodeName } from './bad-elf.js'
import type { ElfFile } from './elf-file.js'
import { type ElfView, type Section, SHT_NOTE } from './headers.js'
import { TimeSlice } from './time-slice.js'

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

const SECTION = '.note.stapsdt'
const OWNER = Buffer.from('stapsdt\0')
const TYPE = 3
const HEAD_BYTES = 12
/** Bounds on what a file may claim. The largest programs have some thousands of notes, of a hundred bytes or so each. */
const MAX_TOTAL_BYTES = 16 * 1024 * 1024
const MAX_NOTES = 131_072
const MAX_NOTE_BYTES = 64 * 1024

/**
 * Reads all USDT notes, in the order of the file.
 * @throws {UprobeError} `ERR_UPROBE_BAD_ELF` if they are damaged, or more than 131,072 notes or 16 MiB
 */
export async function readUsdtNotes(elf: ElfFile): Promise<UsdtNote[]> {
  const base = elf.sections.find(({ name }) => name === '.stapsdt.base')
  const sections = elf.sections.filter(({ name, type }) => name === SECTION && type === SHT_NOTE)
  const notes: UsdtNote[] = []
  const slice = new TimeSlice()
  let total = 0n
  for (const section of sections) {
    // Sections may overlap, so that what they claim together can be far more than the file.
    total += section.size
    if (total > BigInt(MAX_TOTAL_BYTES)) {
      throw badElf(elf.path, `${total} bytes of USDT notes, more than the ${MAX_TOTAL_BYTES} that are accepted`, section.offset)
    }
    const view = await elf.readView(section.offset, Number(section.size))
    let steps = 0
    for (const { isUsdt, start, end } of notesIn(elf, view, section.offset)) {
      if (++steps % 128 === 0 && slice.isOver) await slice.rest()
      if (!isUsdt) continue
      if (notes.length >= MAX_NOTES)
        throw badElf(elf.path, `more than the ${MAX_NOTES} USDT notes that are accepted`, section.offset + BigInt(start))
      notes.push(parseNote(elf, view, start, end, base, section.offset))
    }
  }
  return notes
}

/** The notes of a section: whether each is a USDT note, and where its description begins and ends. */
function* notesIn(elf: ElfFile, view: ElfView, sectionOffset: bigint): Generator<{ isUsdt: boolean; start: number; end: number }> {
  const { buffer } = view
  let at = 0
  while (at + HEAD_BYTES <= buffer.length) {
    const nameBytes = view.u32(at)
    const descBytes = view.u32(at + 4)
    const nameAt = at + HEAD_BYTES
    const start = nameAt + align4(nameBytes)
    const end = start + descBytes
    if (end > buffer.length) throw badElf(elf.path, `a note reaches beyond its section ${SECTION}`, sectionOffset + BigInt(at))
    const isUsdt = view.u32(at + 8) === TYPE && nameBytes === OWNER.length && OWNER.compare(buffer, nameAt, nameAt + OWNER.length) === 0
    yield { isUsdt, start, end }
    at = start + align4(descBytes)
  }
  if (buffer.subarray(at).some((byte) => byte !== 0))
    throw badElf(elf.path, `the last note of ${SECTION} is cut off`, sectionOffset + BigInt(at))
}

function parseNote(elf: ElfFile, view: ElfView, start: number, end: number, base: Section | undefined, sectionOffset: bigint): UsdtNote {
  const word = elf.bits / 8
  const bad = (what: string): Error => badElf(elf.path, `a USDT note ${what}`, sectionOffset + BigInt(start))
  if (end - start < 3 * word) throw bad(`of ${end - start} bytes is too short for its addresses`)
  if (end - start > MAX_NOTE_BYTES) throw bad(`of ${end - start} bytes is longer than the ${MAX_NOTE_BYTES} that are accepted`)
  const pc = view.word(start)
  const storedBase = view.word(start + word)
  const semaphore = view.word(start + 2 * word)
  const strings = view.buffer.subarray(start + 3 * word, end)
  let at = 0
  const next = (what: string): string => {
    const zero = strings.indexOf(0, at)
    if (zero < 0) throw bad(`has ${what} that does not end within it`)
    const text = decodeName(strings, at, zero)
    at = zero + 1
    return text
  }
  const provider = next('a provider')
  const name = next('a name')
  const args = next('a list of arguments')
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
