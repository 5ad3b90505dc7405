/**
 * Folders of a test's own, and fresh copies of the programs it traces.
 *
 * A uprobe belongs to an inode. What one test leaves behind by mistake, or what another tool does to a shared binary, would reach every other test
 * that traces the same file; so each test traces a copy of its own.
 */
import { chmodSync, copyFileSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'

/** What a helper needs to know of a test, a suite or a benchmark: when it is over. */
export interface Cleanup {
  after(step: () => unknown): void
}

/** Makes a folder that every user can enter, and removes it when the test is over. */
export function tempDirectory(t: Cleanup): string {
  const directory = realpathSync(mkdtempSync(join(tmpdir(), 'uprobe-test-')))
  chmodSync(directory, 0o755)
  t.after(() => rmSync(directory, { recursive: true, force: true, maxRetries: 3 }))
  return directory
}

/** Copies a program into a folder of the test's own: a new inode. Returns the path of the copy. */
export function freshCopy(t: Cleanup, program: string, name: string = basename(program)): string {
  const copy = join(tempDirectory(t), name)
  copyFileSync(program, copy)
  chmodSync(copy, 0o755)
  return copy
}
