/**
 * The counters of the sites of a file, with every site of the file that shares them.
 *
 * A library may have ten thousand, each with one site, and hardly anybody asks for more than whether that is so. So notes are kept, and what they say is put together for whoever asks.
 */
import type { CounterMap, FileCounter, SharingSite } from '../counter/read.js'
import type { ElfFile } from '../elf/elf-file.js'
import { readUsdtNotes, type UsdtNote } from '../elf/stapsdt.js'
import type { SiteWork } from '../progress.js'
import type { FoundSite } from './find-sites.js'
import type { OriginalCode } from './original-code.js'

type NoteWithCounter = UsdtNote & { readonly semaphoreVaddr: bigint; readonly fileOffset: bigint }

/** A key for an address. Numbers are found sooner than bigints, and are exact below 2^53. */
function keyOf(vaddr: bigint): number | bigint {
  const key = Number(vaddr)
  return Number.isSafeInteger(key) ? key : vaddr
}

/** See the module's comment. */
export class FileCounters implements CounterMap {
  /** By address of the counter: its note, or all of them. */
  readonly #notes = new Map<number | bigint, NoteWithCounter | NoteWithCounter[]>()
  readonly #made = new Map<number | bigint, FileCounter>()
  #anyShared = false

  private constructor(
    private readonly elf: ElfFile,
    private readonly originals: OriginalCode,
  ) {}

  /**
   * Finds the counters of some sites.
   * @param notes - all of the file, if they are known
   * @param originals - learns the code at all sites that share them
   */
  static async of(
    elf: ElfFile,
    found: readonly FoundSite[],
    notes: readonly UsdtNote[] | null,
    originals: OriginalCode,
    work: SiteWork,
  ): Promise<FileCounters> {
    const counters = new FileCounters(elf, originals)
    // A site that was found by its offset has no counter, also where the file has as many notes as sites are asked for: one.
    const all = found.length === notes?.length && found.some(({ counterVaddr }) => counterVaddr !== null)
    const wanted = new Set<number | bigint>()
    if (!all) {
      await work.each(found, ({ counterVaddr }) => {
        if (counterVaddr !== null) wanted.add(keyOf(counterVaddr))
        return undefined
      })
      if (wanted.size === 0) return counters
    }
    await work.each(notes ?? (await readUsdtNotes(elf)), (note) => {
      if (!hasCounter(note)) return undefined
      const key = keyOf(note.semaphoreVaddr)
      if (!all && !wanted.has(key)) return undefined
      counters.#add(key, note)
      return originals.learn(note.fileOffset)
    })
    return counters
  }

  get size(): number {
    return this.#notes.size
  }

  has(vaddr: bigint): boolean {
    return this.#notes.has(keyOf(vaddr))
  }

  get(vaddr: bigint): FileCounter | undefined {
    const key = keyOf(vaddr)
    const made = this.#made.get(key)
    if (made !== undefined) return made
    const notes = this.#notes.get(key)
    if (notes === undefined) return undefined
    const counter = this.#make(Array.isArray(notes) ? notes : [notes])
    if (counter !== undefined) this.#made.set(key, counter)
    return counter
  }

  *keys(): Generator<bigint> {
    for (const key of this.#notes.keys()) yield BigInt(key)
  }

  *values(): Generator<FileCounter> {
    for (const vaddr of this.keys()) {
      const counter = this.get(vaddr)
      if (counter !== undefined) yield counter
    }
  }

  isShared(vaddr: bigint): boolean {
    return this.#anyShared && Array.isArray(this.#notes.get(keyOf(vaddr)))
  }

  #add(key: number | bigint, note: NoteWithCounter): void {
    const known = this.#notes.get(key)
    if (known === undefined) {
      this.#notes.set(key, note)
      return
    }
    this.#anyShared = true
    if (Array.isArray(known)) known.push(note)
    else this.#notes.set(key, [known, note])
  }

  #make(notes: readonly NoteWithCounter[]): FileCounter | undefined {
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

function hasCounter(note: UsdtNote): note is NoteWithCounter {
  return note.semaphoreVaddr !== null && note.fileOffset !== null
}
