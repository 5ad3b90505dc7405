/**
 * Programs whose symbols are in a file of their own.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { buildTarget } from './build.js'
import { type Cleanup, tempDirectory } from './temp.js'

/** Runs a tool of binutils. */
export function run(program: string, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 1 << 28 })
  assert.equal(status, 0, stderr)
  return stdout
}

/** As readelf shows it. */
export function buildIdOf(program: string): string {
  return /Build ID: ([0-9a-f]+)/.exec(run('readelf', '-n', program))?.[1] ?? ''
}

/** A root of its own with the program `stacks`, stripped; returns the root, the whole program, and the debug symbols, which are not in place. */
export function strippedRoot(t: Cleanup): { root: string; whole: string; symbols: string; place: string } {
  const root = tempDirectory(t)
  const program = buildTarget(t, 'stacks', 'static')
  const buildId = buildIdOf(program)
  const symbols = join(root, 'symbols')
  run('objcopy', '--only-keep-debug', program, symbols)
  copyFileSync(program, join(root, 'stacks'))
  run('strip', '--strip-all', '--keep-section=.note.stapsdt', join(root, 'stacks'))
  const folder = join(root, 'usr/lib/debug/.build-id', buildId.slice(0, 2))
  mkdirSync(folder, { recursive: true })
  return { root, whole: program, symbols, place: join(folder, `${buildId.slice(2)}.debug`) }
}
