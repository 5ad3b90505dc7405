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
/** Memory of those that are kept, in bytes; what a file says of itself may be anything. */
const MAX_KEPT_BYTES = 16 * 1024 * 1024
/** Of what is made of a note. */
const NOTE_BYTES = 300

/** About how much memory a file's notes take, with all that they were read from. */
function bytesOf<Note>({ key, contents, notes }: Known<Note>): number {
  return contents.reduce((sum, { length }) => sum + length, 2 * key.length + NOTE_BYTES * notes.length)
}

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
    for (const [oldest, reference] of this.#files) {
      if (this.#files.size <= MAX_FILES) break
      const forgotten = reference.deref()
      this.#files.delete(oldest)
      this.#kept = this.#kept.filter((one) => one !== forgotten)
    }
    const others = this.#kept.filter(({ key }) => key !== known.key)
    // One that is too large alone does not drive out the others.
    const kept = bytesOf(known) > MAX_KEPT_BYTES ? others : [...others, known]
    let total = kept.reduce((sum, one) => sum + bytesOf(one), 0)
    while (total > MAX_KEPT_BYTES) {
      const [oldest] = kept.splice(0, 1)
      total -= oldest === undefined ? 0 : bytesOf(oldest)
    }
    this.#kept = kept
  }
}
