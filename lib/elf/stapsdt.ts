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
const OWNER = 'stapsdt\0'
const TYPE = 3
const HEAD_BYTES = 12
/** Bounds on what a file may claim. The largest programs have some thousands of notes, of a hundred bytes or so each. */
const MAX_TOTAL_BYTES = 16 * 1024 * 1024
const MAX_NOTES = 131_072
const MAX_NOTE_BYTES = 64 * 1024
/** How much becomes text at once, or a note that is longer. A name of more than 12 characters is a slice of it (V8), so whoever keeps the name keeps as much. */
const WINDOW_BYTES = 4096
/** How many notes are read before it is asked whether others want the thread. */
const NOTES_AT_ONCE = 128
const NOT_ASCII = /[^\0-\x7f]/

/** Makes of a note, whose parts are those of {@link UsdtNote}, what is wanted of it; `null` if it is not wanted. */
type NoteMaker<T> = (
  provider: string,
  name: string,
  args: string,
  pc: bigint,
  base: bigint,
  semaphore: bigint,
  vaddr: bigint,
  semaphoreVaddr: bigint | null,
) => T | null

/**
 * Reads all USDT notes and returns what `make` makes of them, in the order of the file.
 * @throws {UprobeError} `ERR_UPROBE_BAD_ELF` if they are damaged, or more than 131,072 notes or 16 MiB
 */
export async function collectUsdtNotes<T>(elf: ElfFile, make: NoteMaker<T>): Promise<T[]> {
  return collectFrom(elf, await readNoteSections(elf), make)
}

/** The sections of notes, and what they hold. */
export interface NoteSections {
  readonly sections: ReadonlyArray<{ readonly section: Section; readonly view: ElfView }>
  /** What tells how far the program was moved. */
  readonly base: Section | undefined
}

/** Reads the sections of notes, of which {@link collectFrom} makes notes; throws as {@link collectUsdtNotes}. */
export async function readNoteSections(elf: ElfFile): Promise<NoteSections> {
  const sections: Array<{ section: Section; view: ElfView }> = []
  let total = 0n
  for (const section of elf.sections) {
    if (section.name !== SECTION || section.type !== SHT_NOTE) continue
    // Sections may overlap, so that what they claim together can be far more than the file.
    total += section.size
    if (total > BigInt(MAX_TOTAL_BYTES)) {
      throw badElf(elf.path, `${total} bytes of USDT notes, more than the ${MAX_TOTAL_BYTES} that are accepted`, section.offset)
    }
    sections.push({ section, view: await elf.readView(section.offset, Number(section.size)) })
  }
  return { sections, base: elf.sections.find(({ name }) => name === '.stapsdt.base') }
}

/** As {@link collectUsdtNotes}, of sections that were read. */
export async function collectFrom<T>(elf: ElfFile, { sections, base }: NoteSections, make: NoteMaker<T>): Promise<T[]> {
  const work: Work<T> = { made: [], notes: 0 }
  const slice = new TimeSlice()
  for (const { section, view } of sections) {
    const reader = new NoteReader(elf, section, view, base, work, make)
    while (reader.readSome()) if (slice.isOver) await slice.rest()
  }
  return work.made
}

/** What the sections of a file have in common. */
interface Work<T> {
  readonly made: T[]
  /** How many USDT notes there were. */
  notes: number
}

/** How far a section was read. */
interface State {
  /** Where the next note begins. */
  readonly next: number
  /** A piece of the section, a character for each byte, and where it begins and ends. */
  readonly text: string
  readonly textStart: number
  readonly textEnd: number
  // What the next note mostly has as well; texts also as their bytes, with the zero behind them.
  readonly provider: string
  readonly providerBytes: string
  readonly args: string
  readonly argsBytes: string
  readonly base: bigint
  /** The base as it is stored: its first 4 bytes, and its last. */
  readonly baseStart: number
  readonly baseRest: number
  /** How far the program was moved since then. */
  readonly moved: bigint
}

/** No byte is such a character, and no half of an address is negative. */
const START: Omit<State, 'moved'> = {
  next: 0,
  text: '',
  textStart: 0,
  textEnd: 0,
  provider: '',
  providerBytes: '\u0100',
  args: '',
  argsBytes: '\u0100',
  base: 0n,
  baseStart: -1,
  baseRest: -1,
}

/**
 * Goes through the notes of a section.
 *
 * A file may have ten thousand, and the first time V8 has no optimized code yet. What then counts is how many steps its interpreter takes, so there is one loop, numbers are
 * read as elements of an array, and texts are found and compared by methods of strings, which are compiled code; and how much is made, which its collector copies twice if it stays, so a text
 * or a number that notes have in common is kept as one. The loop is not in the async function that waits between its parts, since V8 optimizes that later, and a process that ends waits for it.
 */
class NoteReader<T> {
  #state: State
  /** All of the section, and the owner, in units of 4 bytes. */
  readonly #words: Uint32Array
  readonly #owner: Uint32Array

  constructor(
    private readonly elf: ElfFile,
    private readonly section: Section,
    private readonly view: ElfView,
    private readonly baseSection: Section | undefined,
    private readonly work: Work<T>,
    private readonly make: NoteMaker<T>,
  ) {
    this.#state = { ...START, moved: baseSection?.address ?? 0n }
    this.#words = wordsOf(view.buffer, view.littleEndian)
    this.#owner = wordsOf(Buffer.from(OWNER, 'latin1'), view.littleEndian)
  }

  /** Goes through some notes; false if there were no more. */
  readSome(): boolean {
    const { elf, baseSection, work, make } = this
    const { buffer, data, littleEndian } = this.view
    const words = this.#words
    const [ownerStart, ownerRest] = this.#owner
    const isWide = elf.bits === 64
    const addressWords = elf.bits / 32
    const minBytes = 12 * addressWords
    // Local variables, which V8 reaches sooner than fields.
    let { next, text, textStart, textEnd, provider, providerBytes, args, argsBytes, base, baseStart, baseRest, moved } = this.#state
    for (let left = NOTES_AT_ONCE; left > 0; left--) {
      const at = next
      if (at + HEAD_BYTES > buffer.length) {
        this.#checkEnd(at)
        return false
      }
      const word = at >> 2
      const ownerBytes = words[word] ?? 0
      const descBytes = words[word + 1] ?? 0
      const start = at + HEAD_BYTES + ownerBytes + (-ownerBytes & 3)
      const end = start + descBytes
      next = end + (-descBytes & 3)
      if (end > buffer.length) throw this.#bad(`a note reaches beyond its section ${SECTION}`, at)
      if (ownerBytes !== OWNER.length || words[word + 2] !== TYPE || words[word + 3] !== ownerStart || words[word + 4] !== ownerRest)
        continue
      if (++work.notes > MAX_NOTES) throw this.#bad(`more than the ${MAX_NOTES} USDT notes that are accepted`, start)
      if (descBytes < minBytes || descBytes > MAX_NOTE_BYTES) throw this.#badSize(descBytes, minBytes, start)
      if (end > textEnd) {
        textStart = at
        textEnd = Math.min(Math.max(at + WINDOW_BYTES, end), buffer.length)
        text = buffer.toString('latin1', at, textEnd)
      }

      // Where each text begins.
      const providerAt = start + minBytes - textStart
      if (!text.startsWith(providerBytes, providerAt)) {
        providerBytes = withZero(text, providerAt)
        provider = decoded(providerBytes.slice(0, -1))
      }
      const nameAt = providerAt + providerBytes.length
      const argsAt = text.indexOf('\0', nameAt) + 1
      if (!text.startsWith(argsBytes, argsAt)) {
        argsBytes = withZero(text, argsAt)
        args = decoded(argsBytes.slice(0, -1))
      }
      if (argsAt === 0 || argsAt + argsBytes.length > end - textStart)
        throw this.#bad(`a USDT note has ${unended(nameAt, argsAt, end - textStart)} that does not end within it`, start)
      const name = decoded(text.slice(nameAt, argsAt - 1))

      const addresses = start >> 2
      const pc = isWide ? data.getBigUint64(start, littleEndian) : BigInt(words[addresses] ?? 0)
      const semaphore = isWide ? data.getBigUint64(start + 16, littleEndian) : BigInt(words[addresses + 2] ?? 0)
      if (words[addresses + addressWords] !== baseStart || words[addresses + 2 * addressWords - 1] !== baseRest) {
        baseStart = words[addresses + addressWords] ?? 0
        baseRest = words[addresses + 2 * addressWords - 1] ?? 0
        base = isWide ? data.getBigUint64(start + 8, littleEndian) : BigInt(baseStart)
        moved = baseSection === undefined ? 0n : baseSection.address - base
      }
      const vaddr = moved === 0n ? pc : wrap(elf, pc + moved)
      const semaphoreVaddr = semaphore === 0n ? null : moved === 0n ? semaphore : wrap(elf, semaphore + moved)
      const item = make(provider, name, args, pc, base, semaphore, vaddr, semaphoreVaddr)
      if (item !== null) work.made.push(item)
    }
    this.#state = { next, text, textStart, textEnd, provider, providerBytes, args, argsBytes, base, baseStart, baseRest, moved }
    return true
  }

  /** Whether what is left of the section is padding. */
  #checkEnd(at: number): void {
    if (this.view.buffer.subarray(at).some((byte) => byte !== 0)) throw this.#bad(`the last note of ${SECTION} is cut off`, at)
  }

  #badSize(bytes: number, minBytes: number, start: number): Error {
    const wrong = bytes < minBytes ? 'too short for its addresses' : `longer than the ${MAX_NOTE_BYTES} that are accepted`
    return this.#bad(`a USDT note of ${bytes} bytes is ${wrong}`, start)
  }

  #bad(what: string, at: number): Error {
    return badElf(this.elf.path, what, this.section.offset + BigInt(at))
  }
}

/** Which text of a note does not end before `end`: the name begins behind the zero of the provider, and the arguments behind that of the name, or at 0. */
function unended(nameAt: number, argsAt: number, end: number): string {
  if (nameAt > end) return 'a provider'
  return argsAt === 0 || argsAt > end ? 'a name' : 'a list of arguments'
}

/** A text of a note, from where it begins, with the zero behind it; longer than what there is if there is none. */
function withZero(text: string, at: number): string {
  const end = text.indexOf('\0', at)
  return end === -1 ? `${text.slice(at)}\0` : text.slice(at, end + 1)
}

/** Bytes as numbers of 4, in their byte order; what is left over at the end is not among them. */
function wordsOf(bytes: Buffer, littleEndian: boolean): Uint32Array {
  const whole = bytes.subarray(0, bytes.length & ~3)
  // An array of numbers begins at a multiple of their size, and has the byte order of the machine, which is little-endian wherever this package runs.
  if (littleEndian && whole.byteOffset % 4 === 0) return new Uint32Array(whole.buffer, whole.byteOffset, whole.length / 4)
  const copy = Buffer.allocUnsafeSlow(whole.length)
  whole.copy(copy)
  if (!littleEndian) copy.swap32()
  return new Uint32Array(copy.buffer, copy.byteOffset, copy.length / 4)
}

/** The text that these bytes are, each given as a character. */
function decoded(bytes: string): string {
  return NOT_ASCII.test(bytes) ? decodeName(Buffer.from(bytes, 'latin1')) : bytes
}

/** Addresses wrap around at the width of the class. */
function wrap(elf: ElfFile, address: bigint): bigint {
  return BigInt.asUintN(elf.bits, address)
}
