/**
 * Compiling the C programs of test/targets.
 *
 * A program is compiled once in a test file, and each test gets a copy (see temp.ts for the reason).
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Cleanup, freshCopy } from './temp.js'

/** How a program is linked. */
export type Linkage = 'pie' | 'no-pie' | 'static' | 'shared'

const FLAGS: Record<Linkage, readonly string[]> = {
  pie: ['-fPIE', '-pie'],
  'no-pie': ['-fno-pie', '-no-pie'],
  static: ['-static', '-DSTATIC_TARGET'],
  shared: ['-fPIC', '-shared'],
}

const SOURCES = join(__dirname, '..', 'targets')

let outputs: string | undefined
const built = new Map<string, string>()

function outputDirectory(): string {
  if (outputs === undefined) {
    const directory = mkdtempSync(join(tmpdir(), 'uprobe-build-'))
    process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
    outputs = directory
  }
  return outputs
}

function compile(source: string, linkage: Linkage): string {
  const name = `${source}-${linkage}`
  const known = built.get(name)
  if (known !== undefined) return known
  // In a guest there is no compiler; its image brings the programs along.
  if (process.env.UPROBE_TEST_TARGETS !== undefined) return join(process.env.UPROBE_TEST_TARGETS, name)
  const output = join(outputDirectory(), name)
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror', '-pthread', ...FLAGS[linkage]]
  const gcc = spawnSync('gcc', [...flags, '-o', output, join(SOURCES, `${source}.c`), '-ldl'], { encoding: 'utf8' })
  if (gcc.error !== undefined) throw new Error(`gcc is needed to build the targets: ${gcc.error.message}`)
  if (gcc.status !== 0) throw new Error(`gcc could not build ${source}.c:\n${gcc.stderr}`)
  built.set(name, output)
  return output
}

/**
 * Builds `test/targets/SOURCE.c` and returns the path of a fresh copy, which goes when the test is over.
 * @param source - name of the source without `.c`
 */
export function buildTarget(t: Cleanup, source: string, linkage: Linkage = 'pie'): string {
  return freshCopy(t, compile(source, linkage), source)
}
