/**
 * What is proposed for a function that is not there: in a small program, and in one with hundreds of thousands of names.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { nearestFunction } from '../../lib/spec/nearest-function.js'
import { parseSpec } from '../../lib/spec/spec.js'
import { readingNeeds, withElf } from '../elf/files.js'
import { buildTarget } from '../support/build.js'

const GCC = readingNeeds('/usr/bin/gcc')

function near(path: string, spec: string, lookMs?: number): Promise<string | null> {
  return withElf(path, (elf) => nearestFunction(parseSpec(spec), [elf], new AbortController().signal, lookMs))
}

test('proposes the function that differs by a few letters, as it can be typed', GCC, async (t) => {
  const path = buildTarget(t, 'func')
  for (const [typed, meant] of [
    ['uprobe:f_ad', 'uprobe:f_add'],
    ['uretprobe:f_addd', 'uretprobe:f_add'],
    ['uprobe:fadd+4', 'uprobe:f_add+0x4'],
    [`uprobe:${path}:f_sdd`, `uprobe:${path}:f_add`],
  ] as const) {
    assert.equal(await near(path, typed), meant)
  }
})

test('proposes nothing where nothing is near, and for what is no plain name', GCC, async (t) => {
  const path = buildTarget(t, 'func')
  for (const typed of ['something_else', 'f_x', 'f_ad*', 'f_ad@V1', `f_add${'x'.repeat(300)}`, `${path}:0x1000`]) {
    assert.equal(await near(path, `uprobe:${typed}`), null, typed)
  }
})

test('proposes no variable, and not the very name that was looked for', GCC, async (t) => {
  const path = buildTarget(t, 'usdt')
  assert.equal(await near(path, 'uprobe:t_gated_semaphor'), null)
  assert.equal(await near(path, 'uprobe:main'), null)
})

test('looks through a program with very many names, and stops looking when the time is over', async () => {
  assert.equal(await near(process.execPath, 'uprobe:uv_runn', 60_000), 'uprobe:uv_run')
  assert.equal(await near(process.execPath, 'uprobe:uv_runn', 0), null)
})
