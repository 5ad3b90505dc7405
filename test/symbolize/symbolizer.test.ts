/**
 * The symbolizing thread: it is there as long as somebody needs it.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { Symbolizer } from '../../lib/symbolize/symbolizer.js'
import { needs } from '../support/needs.js'
import { tempDirectory } from '../support/temp.js'
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

test('what the host preloads is not loaded into the thread, where it would start a thread in turn', needs(), (t) => {
  const preloaded = join(tempDirectory(t), 'preloaded.cjs')
  writeFileSync(preloaded, "console.log('preloaded')")
  const symbolizer = join(__dirname, '..', '..', 'lib', 'symbolize', 'symbolizer')
  const program = `require('tsx/cjs')
    const { symbolizer } = require(${JSON.stringify(symbolizer)})
    symbolizer.symbolize({ pid: null, timeNs: 1n, addresses: [], site: null }).then(() => console.log('answered'))`
  const { stdout, stderr } = spawnSync(process.execPath, ['--require', preloaded, '-e', program], {
    cwd: join(__dirname, '..', '..'),
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: `--require ${preloaded}` },
    timeout: 20_000,
  })
  assert.equal(stdout, 'preloaded\nanswered\n', stderr)
})

test('a thread that finds no descriptor says so, and is there when there are some again', needs({ programs: ['prlimit'] }), () => {
  const symbolizer = join(__dirname, '..', '..', 'lib', 'symbolize', 'symbolizer')
  const program = `require('tsx/cjs')
    const { openSync, closeSync } = require('node:fs')
    const { Symbolizer } = require(${JSON.stringify(symbolizer)})
    void (async () => {
      const one = new Symbolizer(10)
      const started = new Symbolizer(10)
      await started.symbolize({ pid: null, timeNs: 1n, addresses: [], site: null })
      const all = []
      try { for (;;) all.push(openSync('/dev/null')) } catch {}
      for (const each of [one, started]) await each.see(process.pid, true).catch(({ code }) => console.log(code))
      for (const fd of all) closeSync(fd)
      for (const each of [one, started]) {
        await each.see(process.pid, true)
        console.log('seen')
      }
    })()`
  const { stdout, stderr } = spawnSync('prlimit', ['--nofile=128', process.execPath, '-e', program], {
    cwd: join(__dirname, '..', '..'),
    encoding: 'utf8',
    timeout: 20_000,
  })
  assert.equal(stdout, 'ERR_UPROBE_LIMIT\nERR_UPROBE_LIMIT\nseen\nseen\n', stderr)
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
