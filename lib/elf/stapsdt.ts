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
import { align4, type ElfView, type Section, SHT_NOTE } from './headers.js'
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
    const parser = new NoteParser(elf, view, base, section.offset)
    let steps = 0
    while (parser.next()) {
      if (++steps % 128 === 0 && slice.isOver) await slice.rest()
      if (!parser.isUsdt) continue
      if (notes.length >= MAX_NOTES)
        throw badElf(elf.path, `more than the ${MAX_NOTES} USDT notes that are accepted`, section.offset + BigInt(parser.start))
      notes.push(parser.parse())
    }
  }
  return notes
}

/**
 * Goes through the notes of a section. A file may have ten thousand, and the first time V8 has no optimized code yet, so nothing is made for a note but the note itself: no
 * view, no generator, and one string for a provider that many share.
 */
class NoteParser {
  /** Whether the note that `next` stepped over is a USDT note, and where its description begins and ends. */
  isUsdt = false
  start = 0
  #end = 0
  #nextAt = 0
  /** Where the next text of the note begins. */
  #at = 0
  #lastBase = 0n
  #provider = ''
  #providerAt = 0
  #providerEnd = 0
  readonly #buffer: Buffer

  constructor(
    private readonly elf: ElfFile,
    private readonly view: ElfView,
    private readonly base: Section | undefined,
    private readonly sectionOffset: bigint,
  ) {
    this.#buffer = view.buffer
  }

  /** Steps over the next note; false if there is none. */
  next(): boolean {
    const { view } = this
    const at = this.#nextAt
    const buffer = this.#buffer
    if (at + HEAD_BYTES > buffer.length) {
      if (buffer.subarray(at).some((byte) => byte !== 0))
        throw badElf(this.elf.path, `the last note of ${SECTION} is cut off`, this.sectionOffset + BigInt(at))
      return false
    }
    const nameBytes = view.u32(at)
    const descBytes = view.u32(at + 4)
    const nameAt = at + HEAD_BYTES
    this.start = nameAt + align4(nameBytes)
    this.#end = this.start + descBytes
    if (this.#end > buffer.length)
      throw badElf(this.elf.path, `a note reaches beyond its section ${SECTION}`, this.sectionOffset + BigInt(at))
    this.isUsdt = view.u32(at + 8) === TYPE && nameBytes === OWNER.length && this.#isOwner(nameAt)
    this.#nextAt = this.start + align4(descBytes)
    return true
  }

  #isOwner(at: number): boolean {
    for (let index = 0; index < OWNER.length; index++) if (this.#buffer[at + index] !== OWNER[index]) return false
    return true
  }

  /** The USDT note that `next` stepped over. */
  parse(): UsdtNote {
    const { elf, view, base, start } = this
    const word = elf.bits / 8
    const bytes = this.#end - start
    if (bytes < 3 * word) throw this.#bad(`of ${bytes} bytes is too short for its addresses`)
    if (bytes > MAX_NOTE_BYTES) throw this.#bad(`of ${bytes} bytes is longer than the ${MAX_NOTE_BYTES} that are accepted`)
    const pc = view.word(start)
    const storedBase = this.#base(start + word)
    const semaphore = view.word(start + 2 * word)
    this.#at = start + 3 * word
    const provider = this.#providerName()
    const name = this.#text('a name')
    const args = this.#text('a list of arguments')
    const moved = base === undefined ? 0n : base.address - storedBase
    const vaddr = moved === 0n ? pc : wrap(elf, pc + moved)
    const semaphoreVaddr = semaphore === 0n ? null : moved === 0n ? semaphore : wrap(elf, semaphore + moved)
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

  /** All notes that one run of the linker left have the same base, so it is kept as one value. */
  #base(at: number): bigint {
    const base = this.view.word(at)
    if (base !== this.#lastBase) this.#lastBase = base
    return this.#lastBase
  }

  /** The text at the current place, up to its zero. */
  #text(what: string): string {
    const buffer = this.#buffer
    const from = this.#at
    let at = from
    let bits = 0
    for (let byte = buffer[at]; at < this.#end && byte !== undefined && byte !== 0; byte = buffer[++at]) bits |= byte
    if (at >= this.#end) throw this.#bad(`has ${what} that does not end within it`)
    this.#at = at + 1
    return bits < 0x80 ? buffer.toString('latin1', from, at) : decodeName(buffer, from, at)
  }

  /** The same for the provider, which mostly is that of the note before. */
  #providerName(): string {
    const buffer = this.#buffer
    const from = this.#at
    const length = this.#providerEnd - this.#providerAt
    let same = 0
    // The zero is compared as well.
    while (same <= length && from + same < this.#end && buffer[from + same] === buffer[this.#providerAt + same]) same++
    if (same > length && length > 0) {
      this.#at = from + same
      return this.#provider
    }
    this.#provider = this.#text('a provider')
    this.#providerAt = from
    this.#providerEnd = this.#at - 1
    return this.#provider
  }

  #bad(what: string): Error {
    return badElf(this.elf.path, `a USDT note ${what}`, this.sectionOffset + BigInt(this.start))
  }
}

/** Addresses wrap around at the width of the class. */
function wrap(elf: ElfFile, address: bigint): bigint {
  return BigInt.asUintN(elf.bits, address)
}
