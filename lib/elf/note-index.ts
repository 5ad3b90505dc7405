/**
 * Finds the notes of a name, or of a counter, among all of a file.
 *
 * A library may have ten thousand, and mostly one is asked for. To look at each takes less time than to make an index; so that is made when somebody asks for the second time, and kept as long
 * as the notes are.
 */
import type { UsdtNote } from './stapsdt.js'
import { TimeSlice } from './time-slice.js'

/** A note whose probe has a counter, and a place in the file. */
export type CountedNote = UsdtNote & { readonly semaphoreVaddr: bigint; readonly fileOffset: bigint }

/** A key for an address. Numbers are found sooner than bigints, and are exact below 2^53. */
export type AddressKey = number | bigint

/** Notes by the address of their counter: most have one of their own. */
export type CounterNotes = ReadonlyMap<AddressKey, CountedNote | readonly CountedNote[]>

/** How many notes are looked at before the clock is. */
const NOTES_A_LOOK = 256

/** The key of an address. */
export function keyOf(vaddr: bigint): AddressKey {
  const key = Number(vaddr)
  return Number.isSafeInteger(key) ? key : vaddr
}

/** See the module's comment. */
export class NoteIndex {
  static readonly #indexes = new WeakMap<readonly UsdtNote[], NoteIndex>()
  #byName: Promise<ReadonlyMap<string, readonly UsdtNote[]>> | null = null
  #byCounter: Promise<CounterNotes> | null = null
  #asked = { name: false, counter: false }

  private constructor(private readonly notes: readonly UsdtNote[]) {}

  /** The index of a list of notes, which nobody changes. */
  static of(notes: readonly UsdtNote[]): NoteIndex {
    const index = NoteIndex.#indexes.get(notes) ?? new NoteIndex(notes)
    NoteIndex.#indexes.set(notes, index)
    return index
  }

  /** The notes of one probe, in the order of the file. */
  async named(provider: string, name: string): Promise<readonly UsdtNote[]> {
    const found: UsdtNote[] = []
    const choose = (note: UsdtNote): void => {
      if (note.name === name && note.provider === provider) found.push(note)
    }
    if (this.#asked.name) {
      this.#byName ??= this.#indexNames()
      for (const note of (await this.#byName).get(name) ?? []) choose(note)
    } else {
      this.#asked.name = true
      await this.#each(choose)
    }
    return found
  }

  /** The notes of some counters. */
  async counted(keys: ReadonlySet<AddressKey>): Promise<CounterNotes> {
    if (!this.#asked.counter && this.#byCounter === null) {
      this.#asked.counter = true
      return this.#indexCounters(keys)
    }
    const all = await this.allCounted()
    const found = new Map<AddressKey, CountedNote | readonly CountedNote[]>()
    for (const key of keys) {
      const notes = all.get(key)
      if (notes !== undefined) found.set(key, notes)
    }
    return found
  }

  /** The notes of all counters. */
  allCounted(): Promise<CounterNotes> {
    this.#byCounter ??= this.#indexCounters(null)
    return this.#byCounter
  }

  async #indexNames(): Promise<ReadonlyMap<string, readonly UsdtNote[]>> {
    const byName = new Map<string, UsdtNote[]>()
    await this.#each((note) => {
      const known = byName.get(note.name)
      if (known === undefined) byName.set(note.name, [note])
      else known.push(note)
    })
    return byName
  }

  async #indexCounters(wanted: ReadonlySet<AddressKey> | null): Promise<CounterNotes> {
    const byCounter = new Map<AddressKey, CountedNote | CountedNote[]>()
    await this.#each((note) => {
      if (!hasCounter(note)) return
      const key = keyOf(note.semaphoreVaddr)
      if (wanted !== null && !wanted.has(key)) return
      const known = byCounter.get(key)
      if (known === undefined) byCounter.set(key, note)
      else if (Array.isArray(known)) known.push(note)
      else byCounter.set(key, [known, note])
    })
    return byCounter
  }

  async #each(look: (note: UsdtNote) => void): Promise<void> {
    const slice = new TimeSlice()
    for (let start = 0; start < this.notes.length; start += NOTES_A_LOOK) {
      this.notes.slice(start, start + NOTES_A_LOOK).forEach(look)
      if (slice.isOver) await slice.rest()
    }
  }
}

function hasCounter(note: UsdtNote): note is CountedNote {
  return note.semaphoreVaddr !== null && note.fileOffset !== null
}
