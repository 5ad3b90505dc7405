/**
 * The examples run, and show what the documentation says that they show.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { needs } from '../support/needs.js'
import { tempDirectory } from '../support/temp.js'

const ROOT = join(__dirname, '..', '..')

test('examples/counters.mjs: the arithmetic of docs/counters.md, step by step', needs({}), () => {
  const output = execFileSync(process.execPath, [join(ROOT, 'examples', 'counters.mjs')], { encoding: 'utf8', timeout: 60_000 })
  const steps = [...output.matchAll(/value (0x\w{4}) {2}(\d) armed {2}(\S+)/g)].map(([, value, armed, state]) => [value, armed, state])
  assert.deepEqual(steps, [
    ['0x0000', '0', 'idle'],
    ['0x0001', '1', 'counted'],
    ['0x0004', '1', 'leaked-count'],
    ['0x0001', '1', 'counted'],
    ['0x0000', '0', 'idle'],
    ['0x8000', '0', 'foreign-claim'],
    ['0x8000', '0', 'foreign-claim'],
    ['0x0000', '0', 'idle'],
    ['0x8000', '1', 'claimed'],
    ['0x0000', '1', 'idle'],
    ['0x8000', '1', 'claimed'],
    ['0x0000', '0', 'idle'],
    ['0x8000', '1', 'claimed'],
    ['0x8000', '0', 'orphan-claim'],
    ['0x0000', '0', 'idle'],
  ])
  assert.deepEqual(output.match(/repair: [\w-]+, \d+ → \d+/g), [
    'repair: leaked-count, 4 → 1',
    'repair: foreign-claim, 32768 → 0',
    'repair: orphan-claim, 32768 → 0',
  ])
})

test('examples/latency.mjs: every call is in one of the snapshots, and the counts add up', needs({}), () => {
  const output = execFileSync(process.execPath, [join(ROOT, 'examples', 'latency.mjs')], { encoding: 'utf8', timeout: 60_000 })
  const seen = Number(/^seen (\d+)$/m.exec(output)?.[1])
  const [hits = 0, ...parts] = [...(/^hits .*$/m.exec(output)?.[0].matchAll(/\d+/g) ?? [])].map(Number)
  assert.equal(output.match(/^round \d: \d+ calls/gm)?.length, 3)
  assert.equal(
    parts.reduce((sum, part) => sum + part, 0),
    hits,
  )
  assert.ok(seen > 0)
  assert.equal(parts[1], seen)
  assert.equal(parts[2], 0)
})

for (const name of ['counters', 'latency']) {
  test(`examples/${name}.mjs: a reader that leaves is no failure, and nothing stays behind`, needs({}), async (t) => {
    const directory = tempDirectory(t)
    const env = { ...process.env, TMPDIR: directory }
    const example = spawn(process.execPath, [join(ROOT, 'examples', `${name}.mjs`)], { env, stdio: ['ignore', 'pipe', 'pipe'] })
    const errors: string[] = []
    example.stderr.setEncoding('utf8').on('data', (text: string) => errors.push(text))
    await once(example.stdout, 'data')
    example.stdout.destroy()
    const [code] = await once(example, 'close')
    assert.deepEqual([code, errors.join('')], [0, ''])
    assert.deepEqual(readdirSync(directory), [])
  })
}
