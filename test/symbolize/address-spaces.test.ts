/**
 * What is read of processes, where files must make room for others and where descriptors run out.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { AddressSpaces } from '../../lib/symbolize/address-spaces.js'
import { readMaps } from '../../lib/target/maps.js'
import { buildTarget } from '../support/build.js'
import { descriptors } from '../support/descriptors.js'
import { type Holdings, holdings } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
import { functionOffset } from '../support/notes.js'
import { strippedRoot } from '../support/stripped.js'
import { Target } from '../support/target.js'
import type { Cleanup } from '../support/temp.js'

/** A process, and the addresses of a function in its program and of one in a library. */
async function processOf(t: Cleanup): Promise<{ target: Target; addresses: bigint[] }> {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const library = buildTarget(t, 'stacks-lib', 'shared')
  await target.ask(`load ${library}`)
  const mappings = await readMaps(`/proc/${target.pid}`)
  const addressOf = (path: string, symbol: string): bigint => {
    const offset = functionOffset(path, symbol)
    const code = mappings.find((m) => m.path === path && m.executable && offset >= m.fileOffset && offset - m.fileOffset < m.end - m.start)
    assert.ok(code !== undefined)
    return code.start + offset - code.fileOffset
  }
  // Behind the first instruction, as addresses that are returned to.
  return {
    target,
    addresses: [addressOf(target.program, 'leaf'), addressOf(library, 'lib_outer') + 2n, addressOf(target.program, 'main') + 2n],
  }
}

test(
  'a file that had to make room for others is opened anew, as long as its process is there',
  needs({ programs: ['gcc', 'nm'] }),
  async (t) => {
    const { target, addresses } = await processOf(t)
    const spaces = new AddressSpaces(1)
    const mapped = new Set((await readMaps(`/proc/${target.pid}`)).map(({ path }) => path))
    const request = { pid: target.pid, addresses, site: null }
    let open: Holdings['descriptors'] | null = null
    for (let round = 0; round < 3; round++) {
      const [frames = []] = await spaces.symbolize([{ ...request, timeNs: process.hrtime.bigint() }])
      assert.deepEqual(
        frames.map(({ symbol }) => symbol),
        ['leaf', 'lib_outer', 'main'],
      )
      // One file at a time.
      assert.equal(descriptors().filter((link) => mapped.has(link)).length, 1)
      const now = holdings().descriptors
      open ??= now
      assert.deepEqual(now, open)
    }
    const timeNs = process.hrtime.bigint()
    await target.end()
    const [frames = []] = await spaces.symbolize([{ ...request, timeNs }])
    assert.deepEqual(
      frames.map(({ symbol, module, fileOffset, buildId }) => [symbol, module !== null, fileOffset !== null, buildId !== null]),
      [
        ['leaf', true, true, true],
        [null, true, true, true],
        ['main', true, true, true],
      ],
    )
  },
)

const DEBUG = needs({ programs: ['gcc', 'nm', 'objcopy', 'strip', 'readelf', 'chroot', 'prlimit'] })

test('wherever descriptors run out, a name is there or refused, and there when there are some again', DEBUG, async (t) => {
  const { root, whole, symbols, place } = strippedRoot(t)
  copyFileSync(symbols, place)
  const target = await Target.start(t, 'chroot', { args: [root, '/stacks'] })
  const offset = functionOffset(whole, 'leaf')
  const code = (await readMaps(`/proc/${target.pid}`)).find(({ executable }) => executable)
  assert.ok(code !== undefined)
  const program = `require('tsx/cjs')
    const { openSync, closeSync, readdirSync } = require('node:fs')
    const { AddressSpaces } = require(${JSON.stringify(join(__dirname, '..', '..', 'lib', 'symbolize', 'address-spaces'))})
    const ask = async (spaces) => {
      const timeNs = process.hrtime.bigint()
      const [[{ symbol }]] = await spaces.symbolize([{ pid: ${target.pid}, addresses: [${code.start + offset - code.fileOffset}n], site: null, timeNs }])
      return symbol
    }
    void (async () => {
      // What is loaded late, and opens something, is loaded.
      await ask(new AddressSpaces())
      for (let left = 0; ; left++) {
        const all = []
        try { for (;;) all.push(openSync('/dev/null')) } catch {}
        for (const fd of all.splice(0, left)) closeSync(fd)
        const spaces = new AddressSpaces()
        const answer = await ask(spaces).catch(({ code }) => code)
        // As many can be opened as before: what was refused has left nothing open.
        const again = []
        try { for (;;) again.push(openSync('/dev/null')) } catch {}
        for (const fd of [...all, ...again]) closeSync(fd)
        console.log(answer, answer === 'leaf' || again.length === left, await ask(spaces))
        if (answer === 'leaf') break
      }
    })()`
  const { stdout, stderr } = spawnSync('prlimit', ['--nofile=128', process.execPath, '-e', program], {
    cwd: join(__dirname, '..', '..'),
    encoding: 'utf8',
    timeout: 60_000,
  })
  const lines = stdout.trimEnd().split('\n')
  assert.ok(lines.length > 3, stderr)
  assert.equal(lines.pop(), 'leaf true leaf')
  for (const line of lines) assert.match(line, /^(ERR_UPROBE_LIMIT|EMFILE) true leaf$/)
})
