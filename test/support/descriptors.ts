/**
 * What the descriptors of this process lead to. Their number alone says little: the loader of TypeScript opens and closes files for a while after its start.
 */
import { readdirSync, readlinkSync } from 'node:fs'

/** What each descriptor refers to: a path, or such as `socket:[123]`. */
export function descriptors(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      // The descriptor with which the folder was read is gone by now.
      return []
    }
  })
}
