/**
 * C++ unit tests of the addon's parts that need no Node: a program that lists its cases (`--list`) and runs one by its name, silently if it holds. It is compiled with each
 * sanitizer, and each case is a process of its own.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { needs } from './needs.js'
import { type Cleanup, tempDirectory } from './temp.js'

const ROOT = join(__dirname, '..', '..')

function compile(t: Cleanup, sources: readonly string[], sanitizers: string): string {
  const program = join(tempDirectory(t), 'unit')
  const strict = ['-std=gnu++17', '-O1', '-g', '-Wall', '-Wextra', '-Werror', '-fno-exceptions', '-fno-rtti', '-pthread']
  const paths = sources.map((name) => join(ROOT, name))
  execFileSync('g++', [...strict, `-fsanitize=${sanitizers}`, '-o', program, ...paths], { stdio: ['ignore', 'ignore', 'inherit'] })
  return program
}

/** The thread sanitizer's shadow memory leaves room for few bits of randomness in the addresses of a program, fewer than some kernels use. */
const FIXED_ADDRESSES = existsSync('/usr/bin/setarch') ? ['setarch', '-R'] : []

/**
 * Registers the tests of one program.
 * @param what - what it tests, as the tests' name begins
 * @param sources - relative to the root of the package
 * @param atLeast - how many cases there must be
 */
export function testSanitized(what: string, sources: readonly string[], atLeast: number): void {
  for (const sanitizers of ['address,undefined', 'thread']) {
    test(`${what}, with -fsanitize=${sanitizers}`, needs({ programs: ['g++'] }), async (t) => {
      const program = compile(t, sources, sanitizers)
      const cases = execFileSync(program, ['--list'], { encoding: 'utf8' }).trim().split('\n')
      assert.ok(cases.length >= atLeast, `${cases.length} cases`)
      for (const name of cases) {
        await t.test(name, () => {
          const [command = program, ...args] = [...(sanitizers === 'thread' ? FIXED_ADDRESSES : []), program, name]
          const { status, signal, stderr } = spawnSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'ignore', 'pipe'] })
          assert.deepEqual({ status, signal }, { status: 0, signal: null }, stderr)
        })
      }
    })
  }
}
