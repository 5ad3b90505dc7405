/**
 * The names of a probe's sites: which slots have a name and a file in common, so that their counts are added up.
 *
 * A probe may have ten thousand names, and who asks for their counts does not wait for a promise: to compare them all then would hold the event loop for some milliseconds. So they are compared
 * while the probe is being attached, some in a turn, and what is not done by then is done when it is asked for. Only numbers are kept of it, and none if each site has a name of its own; the names
 * are made when they are asked for, since of most probes nobody ever asks.
 */
import type { UsdtNote } from './elf/stapsdt.js'
import type { SitesOfFile } from './probe-sites.js'

/** What is asked of a file. */
export interface NamedFile extends SitesOfFile {
  /** All notes of the file, of which some are its sites, as long as somebody keeps them: there may be very many, and a probe with few sites should not. */
  readonly notes?: WeakRef<readonly UsdtNote[]> | null
}

/** The group of a slot that is in none. */
export const NO_GROUP = -1

/** So many names are compared in a turn: a fraction of a millisecond. Who attaches waits for the kernel meanwhile, and should find the thread free when it has answered. */
const NAMES_A_TURN = 512

/** Slots by what they have in common. Groups are numbered in the order of their first slots. */
export interface SlotGroups {
  /** The group of each slot, or {@link NO_GROUP}; `null` if each slot is a group. */
  readonly groupOf: Int32Array | null
  /** By group. */
  readonly names: readonly string[]
  /** By group. */
  readonly paths: readonly string[]
}

/** See the module's comment. */
export class SiteNames {
  readonly #slots: number
  #comparing: ReturnType<typeof compareNames> | null
  /** What came of it. */
  #compared: Int32Array | null = null
  #leftOut: ReadonlySet<number> = new Set()
  #groups: SlotGroups | null = null

  constructor(private readonly files: readonly NamedFile[]) {
    this.#slots = files.reduce((slots, { sites }) => slots + sites.length, 0)
    this.#comparing = compareNames(files, this.#slots)
  }

  /** Begins to compare the names, if they are many, and goes on turn by turn as long as that is `wanted`. */
  prepare(wanted: () => boolean): void {
    if (this.#slots <= NAMES_A_TURN) return
    const go = (): void => {
      if (wanted() && this.#compareSome()) setImmediate(go)
    }
    setImmediate(go)
  }

  /** The probe does not have the sites of these slots any more. To be told before anything is asked. */
  leaveOut(slots: ReadonlySet<number>): void {
    this.#leftOut = slots
  }

  /** The groups of all slots that are not left out. */
  get groups(): SlotGroups {
    this.#groups ??= this.#group()
    return this.#groups
  }

  /** Returns whether there are more. */
  #compareSome(): boolean {
    const step = this.#comparing?.next()
    if (step === undefined) return false
    if (step.done !== true) return true
    this.#compared = step.value
    this.#comparing = null
    return false
  }

  #group(): SlotGroups {
    while (this.#compareSome());
    const compared = this.#compared
    this.#compared = null
    const names: string[] = []
    const paths: string[] = []
    const together = compared !== null || this.#leftOut.size > 0
    const groupOf = together ? new Int32Array(this.#slots).fill(NO_GROUP) : null
    // Groups are numbered anew, since all of one may be left out.
    const numbers = together ? new Int32Array(this.#slots).fill(NO_GROUP) : null
    for (const { facts, sites } of this.files) {
      const { path } = facts
      for (const site of sites) {
        if (groupOf !== null && numbers !== null) {
          const { slot } = site
          if (this.#leftOut.has(slot)) continue
          const before = compared?.[slot] ?? slot
          const known = numbers[before] ?? NO_GROUP
          groupOf[slot] = known === NO_GROUP ? names.length : known
          if (known !== NO_GROUP) continue
          numbers[before] = names.length
        }
        names.push(site.probe)
        paths.push(path)
      }
    }
    return { groupOf, names, paths }
  }
}

/** Compares names, some at each step. Returns by slot which have a name and a path in common, as one number; `null` if none have. */
function* compareNames(files: readonly NamedFile[], slots: number): Generator<undefined, Int32Array | null> {
  if (yield* haveNotesThatDiffer(files)) return null
  const groupOf = new Int32Array(slots)
  const groupsByPath = new Map<string, Map<string, number>>()
  let groups = 0
  let looked = 0
  for (const { facts, sites } of files) {
    const known = groupsByPath.get(facts.path) ?? new Map<string, number>()
    groupsByPath.set(facts.path, known)
    for (const { slot, probe } of sites) {
      let group = known.get(probe)
      if (group === undefined) {
        group = groups++
        known.set(probe, group)
      }
      groupOf[slot] = group
      if (++looked % NAMES_A_TURN === 0) yield
    }
  }
  return groups === slots ? null : groupOf
}

/** Sites of so small a part of the notes are compared sooner than the notes. */
const FEWEST_OF_NOTES = 1 / 2

/**
 * Whether all sites have names of their own because all notes of each file have. No name is made for that, and what was found out of notes that are kept is known at the next attach.
 */
function* haveNotesThatDiffer(files: readonly NamedFile[]): Generator<undefined, boolean> {
  if (new Set(files.map(({ facts }) => facts.path)).size < files.length) return false
  for (const { notes: kept, sites } of files) {
    const notes = kept?.deref()
    if (!notes || (!differing.has(notes) && sites.length < notes.length * FEWEST_OF_NOTES)) return false
    if (!(yield* differ(notes))) return false
  }
  return true
}

/** Whether no two of some notes have one name. */
const differing = new WeakMap<readonly UsdtNote[], boolean>()

function* differ(notes: readonly UsdtNote[]): Generator<undefined, boolean> {
  const known = differing.get(notes)
  if (known !== undefined) return known
  const seen = new Map<string, Set<string>>()
  let all = true
  for (let index = 0; all && index < notes.length; ) {
    const end = Math.min(index + NAMES_A_TURN, notes.length)
    for (; all && index < end; index++) all = isFirst(notes[index], seen)
    yield
  }
  differing.set(notes, all)
  return all
}

/** Whether a name has not been seen before, and is that of no other note for sure. */
function isFirst(note: UsdtNote | undefined, seen: Map<string, Set<string>>): boolean {
  if (note === undefined) return true
  // `b` of `t:a` and `a:b` of `t` are one name.
  if (note.provider.includes(':')) return false
  const names = seen.get(note.provider) ?? new Set<string>()
  const { size } = names
  if (size === 0) seen.set(note.provider, names)
  return names.add(note.name).size > size
}
