/**
 * A lease directory of a test's own, so that tests know of no other agent's claims and leave none.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const made: string[] = []

/** A path for a lease directory, which does not exist yet; it goes with the process of the tests, since tracers of a test are closed after everything else. */
export function leaseDirectory(): string {
  const parent = mkdtempSync(join(tmpdir(), 'uprobe-lease-'))
  if (made.push(parent) === 1) {
    process.once('exit', () => {
      for (const path of made) rmSync(path, { recursive: true, force: true })
    })
  }
  return join(parent, 'leases')
}

/** One that is there, and empty. */
export function madeLeaseDirectory(): string {
  const path = leaseDirectory()
  mkdirSync(path, { mode: 0o700 })
  return path
}

/** Names of what is in a lease directory, without the numbers in them: `lease`, `owner`, … */
export function leaseFiles(directory: string): string[] {
  if (!existsSync(directory)) return []
  return readdirSync(directory)
    .map((name) => name.replace(/-.*\./, '.'))
    .sort()
}
