/**
 * What the tests of lib/elf share: writing a file, and asserting how one is refused.
 */
import assert from 'node:assert/strict'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ElfFile } from '../../lib/elf/elf-file.js'
import { UprobeError, type UprobeErrorCode } from '../../lib/errors.js'
import { type Cleanup, tempDirectory } from '../support/temp.js'

/** Writes a file into a folder of the test's own; returns its path. */
export function writeElf(t: Cleanup, bytes: Uint8Array, name = 'file'): string {
  const path = join(tempDirectory(t), name)
  writeFileSync(path, bytes)
  return path
}

/** Opens a file as long as `use` takes. */
export async function withElf<T>(path: string, use: (elf: ElfFile) => Promise<T>): Promise<T> {
  const elf = await ElfFile.open(path)
  try {
    return await use(elf)
  } finally {
    await elf.close()
  }
}

/** Asserts that something is refused with a code, and what the message says. */
export async function refuses(attempt: Promise<unknown>, code: UprobeErrorCode, message: RegExp): Promise<void> {
  await assert.rejects(attempt, (error) => {
    assert.ok(error instanceof UprobeError, String(error))
    assert.equal(error.code, code, error.message)
    assert.match(error.message, message)
    return true
  })
}

/** Options for `test`: skips it when a file is missing, or fails it in continuous integration. Reading takes no rights, unlike `needs()` of test/support. */
export function readingNeeds(...files: readonly string[]): { skip: string | false } {
  const missing = files.filter((file) => !existsSync(file))
  if (missing.length === 0) return { skip: false }
  if (process.env.CI === 'true') throw new Error(`this test cannot run here: there is no ${missing.join(', ')}`)
  return { skip: `there is no ${missing.join(', ')}` }
}
