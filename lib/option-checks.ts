/**
 * Checks that options share.
 */
import { UprobeError } from './errors.js'

/** Throws `ERR_UPROBE_BAD_OPTION`. */
export function bad(name: string, remedy: string): never {
  throw new UprobeError('ERR_UPROBE_BAD_OPTION', `Option ${name}: ${remedy}.`)
}

export function integer(name: string, value: unknown, fallback: number, least: number, most: number): number {
  if (value === undefined) return fallback
  if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > most) {
    bad(name, `give an integer from ${least} to ${most}`)
  }
  return value
}

export function boolean(name: string, value: unknown): boolean {
  if (value !== undefined && typeof value !== 'boolean') bad(name, 'give true or false')
  return value ?? false
}

/**
 * Refuses names that are none, and `null`, which a value that is missing from a configuration may be: a filter that is not there would let everything through.
 * @param within - for an option that is an object itself, its name and a dot
 */
export function onlyKnown(options: object, known: readonly string[], within = ''): void {
  for (const [name, value] of Object.entries(options)) {
    if (!known.includes(name)) bad(`${within}${name}`, `there is no such option; there are ${known.join(', ')}`)
    if (value === null) bad(`${within}${name}`, 'it is null; leave it out, or give undefined, where nothing is meant')
  }
}
