/**
 * Reading files of /proc and /sys, which may be missing, forbidden, or gone with their process: then there is nothing to read.
 */
import { readFileSync } from 'node:fs'
import { isSystemCallError } from './errors.js'

/** The text of a file, or `null` if it cannot be read. */
export function readTextOrNull(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (isSystemCallError(error)) return null
    throw error
  }
}
