/**
 * Notes of files that were read before.
 *
 * An agent attaches to the same few libraries again and again, and of one with ten thousand probes reading the notes takes most of the time. What they are is determined by bytes of the file, so those
 * are kept with them, and compared: the file is read each time, and neither its name nor its times are trusted. All of it is let go when V8 collects its garbage, unless somebody still has it.
 */

/** What notes were read from. */
interface Origin {
  /** Equal for files whose notes, if they are equal, mean the same. */
  readonly key: string
  /** The sections of notes. */
  readonly contents: readonly Buffer[]
}

interface Known<Note> {
  readonly contents: readonly Buffer[]
  readonly notes: readonly Note[]
}

/** A process maps some dozens of files. */
const MAX_FILES = 64

/** See the module's comment. */
export class KnownNotes<Note> {
  /** By key; the file that was used last is the last. */
  readonly #files = new Map<string, WeakRef<Known<Note>>>()
  /** What somebody has the notes of is not let go. */
  readonly #held = new WeakMap<readonly Note[], Known<Note>>()

  /** The notes that were read from the same bytes before, if they are still there. */
  find({ key, contents }: Origin): readonly Note[] | null {
    const known = this.#files.get(key)?.deref()
    if (known === undefined || !known.contents.every((content, index) => contents[index]?.equals(content))) return null
    this.#put(key, known)
    return known.notes
  }

  /** Keeps notes, as long as V8 does. */
  keep({ key, contents }: Origin, notes: readonly Note[]): void {
    const known = { contents, notes }
    this.#held.set(notes, known)
    this.#put(key, known)
    for (const oldest of this.#files.keys()) {
      if (this.#files.size <= MAX_FILES) return
      this.#files.delete(oldest)
    }
  }

  #put(key: string, known: Known<Note>): void {
    this.#files.delete(key)
    this.#files.set(key, new WeakRef(known))
  }
}
