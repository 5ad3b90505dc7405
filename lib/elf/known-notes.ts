/**
 * Notes of files that were read before.
 *
 * An agent attaches to the same few libraries again and again, and of one with ten thousand probes reading the notes takes most of the time. What they are is determined by bytes of the file, so those
 * are kept with them, and compared: the file is read each time, and neither its name nor its times are trusted. Those of the files that were used last are kept, up to a bound; the others as long as
 * somebody has them, or V8 has not collected its garbage.
 */

/** What notes were read from. */
interface Origin {
  /** Equal for files whose notes, if they are equal, mean the same. */
  readonly key: string
  /** The sections of notes. */
  readonly contents: readonly Buffer[]
}

interface Known<Note> extends Origin {
  readonly notes: readonly Note[]
}

/** A process maps some dozens of files. */
const MAX_FILES = 64
/** Of some 300 bytes each. */
const MAX_KEPT_NOTES = 20_000

/** See the module's comment. */
export class KnownNotes<Note> {
  /** By key; the file that was used last is the last. */
  readonly #files = new Map<string, WeakRef<Known<Note>>>()
  /** What somebody has the notes of is not let go. */
  readonly #held = new WeakMap<readonly Note[], Known<Note>>()
  /** Nor are these, in the same order. */
  #kept: ReadonlyArray<Known<Note>> = []

  /** The notes that were read from the same bytes before, if they are still there. */
  find({ key, contents }: Origin): readonly Note[] | null {
    const known = this.#files.get(key)?.deref()
    if (known === undefined || !known.contents.every((content, index) => contents[index]?.equals(content))) return null
    this.#use(known)
    return known.notes
  }

  /** Keeps notes. */
  keep(origin: Origin, notes: readonly Note[]): void {
    const known = { ...origin, notes }
    this.#held.set(notes, known)
    this.#use(known)
  }

  #use(known: Known<Note>): void {
    this.#files.delete(known.key)
    this.#files.set(known.key, new WeakRef(known))
    for (const oldest of this.#files.keys()) {
      if (this.#files.size <= MAX_FILES) break
      this.#files.delete(oldest)
    }
    const kept = [...this.#kept.filter(({ key }) => key !== known.key), known]
    let total = kept.reduce((sum, { notes }) => sum + notes.length, 0)
    while (kept.length > MAX_FILES || total > MAX_KEPT_NOTES) total -= kept.shift()?.notes.length ?? 0
    this.#kept = kept
  }
}
