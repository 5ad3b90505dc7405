/**
 * What was probably meant by the name of a function that is not there: `mallco`, where the function is `malloc`.
 *
 * A file may have hundreds of thousands of names, and a process hundreds of files. A string is made only of a name that is about as long, and after a while no more are looked at: who waits for an error
 * message should not wait long.
 */
import type { ElfFile } from '../elf/elf-file.js'
import type { NameFilter } from '../elf/name-filter.js'
import { namedSymbols, symbolTablesOf } from '../elf/symbol-table.js'
import { hasWildcard } from '../glob.js'
import { LONGEST, mistakesAllowed } from './nearest-probe.js'
import type { ProbeSpec } from './spec.js'

const STT_FUNC = 2
/** How long to look. All names of a Node.js binary take about a tenth of it. */
const LOOK_MS = 500
/** The clock is read once in so many names. */
const NAMES_A_LOOK = 256
const AT = 0x40

/**
 * The function whose name is the nearest, as a specification.
 * @param files - that were searched
 * @returns `null` if none is near, or if a pattern, a version or an offset in a file was asked for
 */
export async function nearestFunction(
  { kind, place, path }: ProbeSpec,
  files: readonly ElfFile[],
  signal: AbortSignal,
  lookMs = LOOK_MS,
): Promise<string | null> {
  if (place.by !== 'symbol' || hasWildcard(place.symbol) || place.symbol.includes('@') || place.symbol.length > LONGEST) return null
  // Loaded by who needs it.
  const { distance } = await import('fastest-levenshtein')
  const search = new Search(place.symbol, distance, performance.now() + lookMs)
  for (const elf of files) {
    for (const table of await symbolTablesOf(elf)) {
      for await (const _found of namedSymbols(elf, table, search, (type) => type === STT_FUNC)) signal.throwIfAborted()
      if (search.isOver) break
    }
    signal.throwIfAborted()
  }
  if (search.nearest === null) return null
  const offset = place.offset === 0n ? '' : `+0x${place.offset.toString(16)}`
  return `${kind}:${path === null ? '' : `${path}:`}${search.nearest}${offset}`
}

/** Wants the names that are nearer than all before, and none when the time is over. */
class Search implements NameFilter {
  nearest: string | null = null
  #least: number
  #looks = 0
  #over = false

  constructor(
    private readonly wanted: string,
    private readonly distance: (a: string, b: string) => number,
    private readonly endMs: number,
  ) {
    this.#least = mistakesAllowed(wanted) + 1
  }

  /** Whether the time is over. */
  get isOver(): boolean {
    if (!this.#over) this.#over = performance.now() >= this.endMs
    return this.#over
  }

  /** The lengths differ by no more than the mistakes; of a name that is no ASCII, in bytes. */
  mayMatch(names: Buffer, at: number): boolean {
    if (this.#over || (++this.#looks % NAMES_A_LOOK === 0 && this.isOver)) return false
    const { length } = this.wanted
    let end = at
    const last = at + length + this.#least
    while (end < last && names[end] !== 0 && names[end] !== AT && end < names.length) end++
    return Math.abs(end - at - length) < this.#least
  }

  matches(name: string): boolean {
    const mistakes = this.distance(this.wanted, name)
    // One of that very name was found before, and has no place in the file.
    if (mistakes === 0 || mistakes >= this.#least) return false
    this.#least = mistakes
    this.nearest = name
    return true
  }
}
