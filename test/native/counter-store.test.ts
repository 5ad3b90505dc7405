/**
 * Runs the C++ unit tests of the counter's store (counter_store_test.cc), once under the address sanitizer and once under the thread sanitizer. There the
 * program's threads count on a counter in their own process while it is claimed and released.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { needs } from '../support/needs.js'
import { type Cleanup, tempDirectory } from '../support/temp.js'

const ROOT = join(__dirname, '..', '..')
const SOURCES = ['test/native/counter_store_test.cc', 'native/counter_store.cc', 'native/vma.cc'].map((name) => join(ROOT, name))

function compile(t: Cleanup, sanitizers: string): string {
  const program = join(tempDirectory(t), 'counter_store_test')
  const strict = ['-std=gnu++17', '-O1', '-g', '-Wall', '-Wextra', '-Werror', '-fno-exceptions', '-fno-rtti', '-pthread']
  execFileSync('g++', [...strict, `-fsanitize=${sanitizers}`, '-o', program, ...SOURCES], { stdio: ['ignore', 'ignore', 'inherit'] })
  return program
}

/** The thread sanitizer's shadow memory leaves room for few bits of randomness in the addresses of a program, fewer than some kernels use. */
const FIXED_ADDRESSES = existsSync('/usr/bin/setarch') ? ['setarch', '-R'] : []

for (const sanitizers of ['address,undefined', 'thread']) {
  test(`the counter's store, with -fsanitize=${sanitizers}`, needs({ programs: ['g++'] }), async (t) => {
    const program = compile(t, sanitizers)
    const cases = execFileSync(program, ['--list'], { encoding: 'utf8' }).trim().split('\n')
    assert.ok(cases.length > 20)
    for (const name of cases) {
      await t.test(name, () => {
        const [command = program, ...args] = [...(sanitizers === 'thread' ? FIXED_ADDRESSES : []), program, name]
        const { status, signal, stderr } = spawnSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'ignore', 'pipe'] })
        assert.deepEqual({ status, signal }, { status: 0, signal: null }, stderr)
      })
    }
  })
}
