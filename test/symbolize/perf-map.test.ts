/**
 * Maps of JIT code as others may leave them: what is no map of the process is not read, and what is broken does no harm.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { appendFileSync, chownSync, copyFileSync, linkSync, mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { PerfMap } from '../../lib/symbolize/perf-map.js'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { type Cleanup, tempDirectory } from '../support/temp.js'

const NEEDS = needs({ programs: ['gcc', 'chroot', 'mkfifo'] })
const CONTENT = '1000 10 JS:one a.js:1:1\n2000 20 JS:two b.js:1:1\n'

/** A process in a root of its own, and where its map would be. */
async function inRoot(t: Cleanup): Promise<{ root: string; map: string; proc: string }> {
  const root = tempDirectory(t)
  mkdirSync(join(root, 'tmp'))
  copyFileSync(buildTarget(t, 'stacks', 'static'), join(root, 'stacks'))
  const { pid } = await Target.start(t, 'chroot', { args: [root, '/stacks'] })
  return { root, map: join(root, 'tmp', `perf-${pid}.map`), proc: `/proc/${pid}` }
}

function nameAt(map: PerfMap, address: bigint): string | null {
  return map.find(address)?.name ?? null
}

test('finds code by its address, and nothing beside it', NEEDS, async (t) => {
  const { map, proc } = await inRoot(t)
  writeFileSync(map, CONTENT)
  const found = PerfMap.of(proc, () => true)
  t.after(() => found.close())
  assert.deepEqual(
    [0xfffn, 0x1000n, 0x100fn, 0x1010n, 0x2010n, 0x2020n].map((address) => nameAt(found, address)),
    [null, 'JS:one a.js:1:1', 'JS:one a.js:1:1', null, 'JS:two b.js:1:1', null],
  )
  assert.equal(found.find(0x2010n)?.start, 0x2000n)
})

test('reads on when the file has come or grown, also from the middle of a line', NEEDS, async (t) => {
  const { map, proc } = await inRoot(t)
  const found = PerfMap.of(proc, () => true)
  t.after(() => found.close())
  assert.equal(nameAt(found, 0x1000n), null)
  writeFileSync(map, CONTENT.slice(0, 15))
  assert.equal(nameAt(found, 0x1000n), null)
  appendFileSync(map, CONTENT.slice(15))
  assert.equal(nameAt(found, 0x1000n), 'JS:one a.js:1:1')
  // The later one is right: the memory was used again.
  appendFileSync(map, '0x1008 100 JS:three c.js:1:1\n')
  assert.deepEqual(
    [0x1000n, 0x1009n, 0x1080n].map((address) => nameAt(found, address)),
    ['JS:one a.js:1:1', 'JS:three c.js:1:1', 'JS:three c.js:1:1'],
  )
})

test('a process of the same number, or another program, that writes the file anew is not taken for the one before', NEEDS, async (t) => {
  const { map, proc } = await inRoot(t)
  writeFileSync(map, CONTENT)
  let isStill = true
  const found = PerfMap.of(proc, () => isStill)
  t.after(() => found.close())
  assert.equal(nameAt(found, 0x1000n), 'JS:one a.js:1:1')
  // What its own process wrote last is read on, also when it is gone.
  isStill = false
  appendFileSync(map, '3000 10 JS:last d.js:1:1\n')
  assert.equal(nameAt(found, 0x3000n), 'JS:last d.js:1:1')
  writeFileSync(map, `${'7000 10 JS:other e.js:1:1\n'.repeat(9)}4000 10 JS:other e.js:1:1\n`)
  assert.deepEqual(
    [0x1000n, 0x4000n, 0x7000n].map((address) => nameAt(found, address)),
    ['JS:one a.js:1:1', null, null],
  )
})

test('a map that appears, or is filled, when the process is gone is not read', NEEDS, async (t) => {
  const { map, proc } = await inRoot(t)
  let isStill = true
  const none = PerfMap.of(proc, () => isStill)
  assert.equal(nameAt(none, 0x1000n), null)
  writeFileSync(map, '')
  const empty = PerfMap.of(proc, () => isStill)
  t.after(() => empty.close())
  t.after(() => none.close())
  isStill = false
  writeFileSync(map, CONTENT)
  assert.deepEqual([nameAt(none, 0x1000n), nameAt(empty, 0x1000n)], [null, null])
})

test('a link of the root leads to where it leads inside of it', NEEDS, async (t) => {
  const { root, map, proc } = await inRoot(t)
  writeFileSync(map, CONTENT)
  renameSync(join(root, 'tmp'), join(root, 'elsewhere'))
  symlinkSync('/elsewhere', join(root, 'tmp'))
  const found = PerfMap.of(proc, () => true)
  t.after(() => found.close())
  assert.equal(nameAt(found, 0x1000n), 'JS:one a.js:1:1')
})

for (const [what, leave] of [
  ['a symbolic link', (map: string, other: string) => symlinkSync(other, map)],
  ['a second name of another file', (map: string, other: string) => linkSync(other, map)],
  [
    "a file of another user's",
    (map: string, other: string) => {
      copyFileSync(other, map)
      chownSync(map, 12345, 12345)
    },
  ],
  ['a directory', (map: string) => mkdirSync(map)],
  ['a FIFO', (map: string) => spawnSync('mkfifo', [map])],
] as const) {
  test(`does not read ${what}`, NEEDS, async (t) => {
    const { root, map, proc } = await inRoot(t)
    const other = join(root, 'tmp', 'other')
    writeFileSync(other, CONTENT)
    leave(map, other)
    const found = PerfMap.of(proc, () => true)
    t.after(() => found.close())
    assert.equal(nameAt(found, 0x1000n), null)
  })
}

test('passes over lines that say nothing, or too much', NEEDS, async (t) => {
  const { map, proc } = await inRoot(t)
  const long = `9000 10 ${'x'.repeat(3_000_000)}\n`
  writeFileSync(
    map,
    `\n\0\n-1 5 minus\n3000 0 empty\n4000 ffffffffffffffff endless\nffffffffffffffff 10 high\n5000 10\nxyz 1 z\n${long}1000 10 \x1b[2Jname; with all\n6000 10 last`,
  )
  const found = PerfMap.of(proc, () => true)
  t.after(() => found.close())
  const asked = [0x3000n, 0x4001n, 0x5001n, 0x6001n, 0x9001n, 0xffff_ffff_ffff_fff1n]
  assert.deepEqual(
    asked.map((address) => nameAt(found, address)),
    asked.map(() => null),
  )
  assert.equal(nameAt(found, 0x1001n), '\x1b[2Jname; with all')
})
