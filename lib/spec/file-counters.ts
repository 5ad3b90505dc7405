/**
 * The counters of the sites of a file, with every site of the file that shares them.
 *
 * A library may have ten thousand, each with one site, and hardly anybody asks for more than whether that is so. So notes are kept, and what they say is put together for whoever asks.
 */
import type { CounterMap, FileCounter, SharingSite } from '../counter/read.js'
import type { ElfFile } from '../elf/elf-file.js'
import { type AddressKey, type CountedNote, type CounterNotes, keyOf, NoteIndex } from '../elf/note-index.js'
import type { UsdtNote } from '../elf/stapsdt.js'
import { readUsdtNotes } from '../elf/usdt-notes.js'
import type { SiteWork } from '../progress.js'
import type { FoundSite } from './find-sites.js'
import type { OriginalCode } from './original-code.js'

/** See the module's comment. */
export class FileCounters implements CounterMap {
  readonly #made = new Map<AddressKey, FileCounter>()
  #anyShared: boolean | null = null

  private constructor(
    private readonly elf: ElfFile,
    private readonly originals: OriginalCode,
    private readonly notes: CounterNotes,
  ) {}

  /**
   * Finds the counters of some sites.
   * @param notes - all of the file, if they are known
   * @param originals - knows the code at the sites; learns that at all others that share their counters
   */
  static async of(
    elf: ElfFile,
    found: readonly FoundSite[],
    notes: readonly UsdtNote[] | null,
    originals: OriginalCode,
    work: SiteWork,
  ): Promise<FileCounters> {
    // A site that was found by its offset has no counter, also where the file has as many notes as sites are asked for: one.
    const all = found.length === notes?.length && found.some(({ counterVaddr }) => counterVaddr !== null)
    if (all) return new FileCounters(elf, originals, await NoteIndex.of(notes).allCounted())
    const wanted = new Set<AddressKey>()
    await work.each(found, ({ counterVaddr }) => {
      if (counterVaddr !== null) wanted.add(keyOf(counterVaddr))
      return undefined
    })
    if (wanted.size === 0) return new FileCounters(elf, originals, new Map())
    const counted = await NoteIndex.of(notes ?? (await readUsdtNotes(elf))).counted(wanted)
    for (const sharing of counted.values()) await work.each(notesOf(sharing), ({ fileOffset }) => originals.learn(fileOffset))
    return new FileCounters(elf, originals, counted)
  }

  get size(): number {
    return this.notes.size
  }

  has(vaddr: bigint): boolean {
    return this.notes.has(keyOf(vaddr))
  }

  get(vaddr: bigint): FileCounter | undefined {
    const key = keyOf(vaddr)
    const made = this.#made.get(key)
    if (made !== undefined) return made
    const notes = this.notes.get(key)
    if (notes === undefined) return undefined
    const counter = this.#make(notesOf(notes))
    if (counter !== undefined) this.#made.set(key, counter)
    return counter
  }

  *keys(): Generator<bigint> {
    for (const key of this.notes.keys()) yield BigInt(key)
  }

  *values(): Generator<FileCounter> {
    for (const vaddr of this.keys()) {
      const counter = this.get(vaddr)
      if (counter !== undefined) yield counter
    }
  }

  isShared(vaddr: bigint): boolean {
    this.#anyShared ??= isAnyShared(this.notes)
    return this.#anyShared && Array.isArray(this.notes.get(keyOf(vaddr)))
  }

  #make(notes: readonly CountedNote[]): FileCounter | undefined {
    const [first] = notes
    if (first === undefined) return undefined
    const { semaphoreVaddr: vaddr, refCtrOffset, provider, name } = first
    // Two notes of one address are one uprobe, which counts once.
    const sites = new Map<bigint, SharingSite>()
    for (const { vaddr, fileOffset } of notes) {
      if (!sites.has(fileOffset)) sites.set(fileOffset, { vaddr, fileOffset, original: this.originals.get(fileOffset) })
    }
    const anonymousStart = refCtrOffset === null ? this.elf.anonymousStart(vaddr) : null
    return { vaddr, refCtrOffset, anonymousStart, provider, name, sites: [...sites.values()] }
  }
}

/** What was found out of the counters of notes that are kept. */
const anyShared = new WeakMap<CounterNotes, boolean>()

function isAnyShared(notes: CounterNotes): boolean {
  let shared = anyShared.get(notes)
  if (shared === undefined) {
    let found = false
    notes.forEach((sharing) => {
      found ||= Array.isArray(sharing)
    })
    shared = found
    anyShared.set(notes, shared)
  }
  return shared
}

function notesOf(sharing: CountedNote | readonly CountedNote[]): readonly CountedNote[] {
  // Of a read-only array Array.isArray does not tell the compiler.
  return 'length' in sharing ? sharing : [sharing]
}
