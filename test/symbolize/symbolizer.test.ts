/**
 * The symbolizing thread: it is there as long as somebody needs it.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { Symbolizer } from '../../lib/symbolize/symbolizer.js'
import { needs } from '../support/needs.js'
import { waitFor } from '../support/wait.js'

function threads(): number {
  return readdirSync('/proc/self/task').length
}

const REQUEST = { pid: null, timeNs: 1n, addresses: [0x1000n, 0x2000n], site: { path: '/a', fileOffset: 0x10n } }
const UNKNOWN = { symbol: null, offset: null, module: null, fileOffset: null, buildId: null }
const FRAMES = [
  { ...UNKNOWN, address: 0x1000n, module: '/a', fileOffset: 0x10n },
  { ...UNKNOWN, address: 0x2000n },
]

test('the thread ends when nobody uses it any more, and comes again when it is asked', needs(), async () => {
  const symbolizer = new Symbolizer(10)
  const before = threads()
  const leave = symbolizer.use()
  assert.deepEqual(await symbolizer.symbolize(REQUEST), FRAMES)
  assert.ok(threads() > before)
  leave()
  leave()
  await waitFor('the thread to end', () => threads() === before)
  assert.deepEqual(await symbolizer.symbolize(REQUEST), FRAMES)
  await waitFor('the thread to end again', () => threads() === before)
})

test('a process that does not exist, or is a number out of range, has no names and does no harm', needs(), async () => {
  const symbolizer = new Symbolizer(10)
  for (const pid of [0, 2 ** 22 + 1, 2 ** 31]) {
    await symbolizer.see(pid, true)
    assert.deepEqual(await symbolizer.symbolize({ ...REQUEST, pid }), FRAMES)
  }
})

test('a hit from before the process began is not explained by its mappings', needs(), async () => {
  const symbolizer = new Symbolizer(10)
  const [, start = ''] = /^([0-9a-f]+)-[0-9a-f]+ r-xp/m.exec(readFileSync('/proc/self/maps', 'utf8')) ?? []
  const address = BigInt(`0x${start}`) + 16n
  const request = { pid: process.pid, addresses: [address], site: null }
  const [[now], [then]] = await Promise.all([
    symbolizer.symbolize({ ...request, timeNs: process.hrtime.bigint() }),
    symbolizer.symbolize({ ...request, timeNs: 1n }),
  ])
  assert.ok(now?.module !== null)
  assert.deepEqual(then, { ...UNKNOWN, address })
})

test('a program that leaves stacks behind ends by itself', needs(), () => {
  const symbolizer = join(__dirname, '..', '..', 'lib', 'symbolize', 'symbolizer')
  const program = `require('tsx/cjs'); require(${JSON.stringify(symbolizer)}).symbolizer.use()`
  const { status, stderr } = spawnSync(process.execPath, ['-e', program], {
    cwd: join(__dirname, '..', '..'),
    encoding: 'utf8',
    timeout: 20_000,
  })
  assert.equal(status, 0, stderr)
})
