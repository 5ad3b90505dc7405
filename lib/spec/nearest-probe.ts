/**
 * What was probably meant by a USDT name that is not there: `gc_start`, where the probe is `gc__start`.
 */

import type { UsdtNote } from '../elf/stapsdt.js'
import { hasWildcard } from '../glob.js'
import type { SiteWork } from '../progress.js'
import type { ProbeSpec } from './spec.js'

/** So many letters may be wrong, missing or too many; and of a short name, at most one in so many. */
const MOST_WRONG = 3
const LETTERS_A_MISTAKE = 3
/** Nobody types a longer one, and the time to compare two of them goes with the square of it. */
export const LONGEST = 256

/** How many letters of a name may be wrong. */
export function mistakesAllowed(wanted: string): number {
  return Math.min(MOST_WRONG, Math.floor(wanted.length / LETTERS_A_MISTAKE))
}

/**
 * The probe whose name is the nearest, as a specification.
 * @param notes - of each file that was searched
 * @returns `null` if none is near, or if a pattern was asked for
 */
export async function nearestProbe(
  { place, path }: ProbeSpec,
  notes: readonly (readonly UsdtNote[])[],
  work: SiteWork,
): Promise<string | null> {
  if (place.by !== 'note' || hasWildcard(place.provider) || hasWildcard(place.name)) return null
  // Loaded by who needs it.
  const { distance } = await import('fastest-levenshtein')
  const wanted = `${place.provider}:${place.name}`
  if (wanted.length > LONGEST) return null
  let nearest: string | null = null
  let least = mistakesAllowed(wanted) + 1
  for (const ofFile of notes) {
    await work.each(ofFile, ({ provider, name, fileOffset }) => {
      // One that has no place in the file cannot be attached to.
      if (fileOffset === null) return undefined
      const text = `${provider}:${name}`
      // The lengths differ by no more than the distance.
      if (Math.abs(text.length - wanted.length) >= least) return undefined
      const mistakes = distance(wanted, text)
      if (mistakes < least) {
        least = mistakes
        nearest = text
      }
      return undefined
    })
  }
  return nearest === null ? null : `usdt:${path === null ? '' : `${path}:`}${nearest}`
}
