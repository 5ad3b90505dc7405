/**
 * Which names are wanted of a symbol table.
 *
 * Making a string of a name costs more than all else that is done with a symbol, and nearly all names are of no interest. So a filter first looks at the bytes
 * where a name begins, and only what passes becomes a string.
 *
 * In `.symtab` the version of a symbol is part of its name (`memcpy@@GLIBC_2.14`), so a name ends at a zero or at an `@`.
 */
import { compileGlob, hasWildcard } from '../glob.js'

const AT = 0x40

/** Which names are wanted. */
export interface NameFilter {
  /** Whether the name that begins at `at` may be wanted, by a look at a few bytes. The buffer ends beyond them, or the name does. */
  mayMatch(names: Buffer, at: number): boolean
  /** Whether a name, without its version, is wanted. */
  matches(name: string): boolean
  /** If one name is wanted: where it is in a part of a table of names; `null` if so often that looking at each symbol costs less. */
  places?(names: Buffer): readonly number[] | null
}

/** A linker writes a name once, and once more for each version. */
const MAX_PLACES = 64

/** One exact name, or those that match `*` and `?`. */
export function filterByPattern(pattern: string): NameFilter {
  const matches = compileGlob(pattern)
  if (!hasWildcard(pattern)) {
    const wanted = Buffer.from(pattern)
    return {
      mayMatch: (names, at) => beginsWith(names, at, wanted) && endsAt(names, at + wanted.length),
      matches,
      places: (names) => placesOf(names, wanted),
    }
  }
  const prefix = Buffer.from(pattern.slice(0, pattern.search(/[*?]/)))
  return { mayMatch: (names, at) => beginsWith(names, at, prefix), matches }
}

/** Several exact names. */
export function filterByNames(wanted: ReadonlySet<string>): NameFilter {
  // Two bytes tell most names apart.
  const beginnings = new Uint8Array(65_536)
  for (const name of wanted) {
    const bytes = Buffer.from(name)
    const first = (bytes[0] ?? 0) << 8
    if (bytes.length > 1) {
      beginnings[first | (bytes[1] ?? 0)] = 1
    } else {
      beginnings[first] = 1
      beginnings[first | AT] = 1
    }
  }
  return {
    mayMatch: (names, at) => beginnings[((names[at] ?? 0) << 8) | (names[at + 1] ?? 0)] === 1,
    matches: (name) => wanted.has(name),
  }
}

/** Searching the names once as plain bytes takes a tenth of what it takes to look for each symbol at the beginning of its name, which is anywhere. */
function placesOf(names: Buffer, wanted: Buffer): number[] | null {
  const places: number[] = []
  for (const end of [0, AT]) {
    const bytes = Buffer.concat([wanted, Buffer.from([end])])
    for (let at = names.indexOf(bytes); at >= 0; at = names.indexOf(bytes, at + 1)) {
      if (places.length === MAX_PLACES) return null
      places.push(at)
    }
  }
  return places
}

function beginsWith(names: Buffer, at: number, bytes: Buffer): boolean {
  for (let index = 0; index < bytes.length; index++) if (names[at + index] !== bytes[index]) return false
  return true
}

function endsAt(names: Buffer, at: number): boolean {
  return names[at] === 0 || names[at] === AT
}
