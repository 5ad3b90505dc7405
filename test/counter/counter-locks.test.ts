/**
 * The locks by which agents agree who is at a counter.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import fc from 'fast-check'
import { CounterLocks, counterKey } from '../../lib/counter/counter-locks.js'
import { loadNative } from '../../lib/native.js'
import { tempDirectory } from '../support/temp.js'

const SPACE = { pidNamespace: '4026531836', pid: 7, fingerprint: 'a'.repeat(32) }
const [ONE, TWO] = [counterKey(SPACE, 0x1000n), counterKey(SPACE, 0x1002n)]

function file(t: TestContext): string {
  const path = join(tempDirectory(t), 'locks')
  writeFileSync(path, '')
  return path
}

/** As many tracers as wanted, each with its own opening of the file. */
function tracers(t: TestContext, count: number): CounterLocks[] {
  const path = file(t)
  return Array.from({ length: count }, () => {
    const fd = openSync(path, 'r+')
    t.after(() => closeSync(fd))
    return new CounterLocks(loadNative(), fd)
  })
}

test('a counter in an address space has two bytes of its own, which no other has, nor recovery', () => {
  const address = fc.bigInt({ min: 0n, max: 2n ** 47n })
  fc.assert(
    fc.property(address, address, fc.nat(2 ** 22), (a, b, pid) => {
      const [one, other, elsewhere] = [counterKey(SPACE, a), counterKey(SPACE, b), counterKey({ ...SPACE, pid }, a)]
      assert.equal(one.presenceByte, one.stepByte + 1n)
      assert.ok(one.stepByte >= 2n && one.presenceByte < 2n ** 63n && one.stepByte % 2n === 0n)
      assert.equal(one.stepByte === other.stepByte, a === b)
      assert.equal(one.stepByte === elsewhere.stepByte, pid === SPACE.pid)
    }),
  )
  assert.notEqual(counterKey(SPACE, 1n).id, counterKey({ ...SPACE, fingerprint: 'b'.repeat(32) }, 1n).id)
  assert.notEqual(counterKey(SPACE, 1n).id, counterKey({ ...SPACE, pidNamespace: '4' }, 1n).id)
})

test('one tracer at a time is in a step, and it is given back whatever happens in it', (t) => {
  const [a, b] = tracers(t, 2)
  assert.ok(a && b)
  const inner = a.tryStep([ONE, TWO], () => [b.tryStep([ONE], () => 0).done, b.tryStep([TWO], () => 0).done])
  assert.deepEqual(inner, { done: true, value: [false, false] })
  assert.throws(() => a.tryStep([ONE], () => assert.fail('in the step')), /in the step/)
  assert.deepEqual(
    b.tryStep([ONE, TWO, ONE], () => 5),
    { done: true, value: 5 },
  )
})

test('a step on several counters of which one is taken takes none', (t) => {
  const [a, b, c] = tracers(t, 3)
  assert.ok(a && b && c)
  const last = ONE.stepByte > TWO.stepByte ? ONE : TWO
  const first = last === ONE ? TWO : ONE
  a.tryStep([last], () => {
    assert.equal(b.tryStep([last, first], () => 0).done, false)
    assert.equal(c.tryStep([first], () => 0).done, true)
  })
})

test('whoever waits for a step gets it when it is free, or stops waiting when told to', async (t) => {
  const path = file(t)
  const [held, fd] = [openSync(path, 'r+'), openSync(path, 'r+')]
  t.after(() => closeSync(fd))
  const locks = new CounterLocks(loadNative(), fd)
  loadNative().lockByte(held, ONE.stepByte, 'exclusive')
  const abort = new AbortController()
  const given = locks.step([ONE], () => 'aborted', abort.signal)
  abort.abort(new Error('enough'))
  await assert.rejects(given, /enough/)
  const waiting = locks.step([TWO, ONE], () => 'in')
  closeSync(held)
  assert.equal(await waiting, 'in')
})

test('each tracer that is present is counted once, however often it came', (t) => {
  const [a, b, c] = tracers(t, 3)
  assert.ok(a && b && c)
  for (const locks of [a, a, b]) locks.enter(ONE)
  assert.deepEqual([c.othersPresent(ONE), c.othersPresent(TWO)], [true, false])
  assert.equal(a.leave(ONE), true)
  assert.equal(a.leave(ONE), true)
  assert.equal(b.leave(ONE), false)
  assert.equal(b.leave(ONE), false)
  assert.equal(c.othersPresent(ONE), false)
})

test('agents that come and go without pause never clear under another, and the last always clears', async (t) => {
  const path = file(t)
  const bit = join(tempDirectory(t), 'bit')
  writeFileSync(bit, '0')
  const lib = join(__dirname, '..', '..', 'lib')
  // As process-claim.ts does it, with a file for the counter.
  const program = `
    const { CounterLocks, counterKey } = require(${JSON.stringify(join(lib, 'counter', 'counter-locks'))})
    const { loadNative } = require(${JSON.stringify(join(lib, 'native'))})
    const { openSync, readFileSync, writeFileSync } = require('node:fs')
    const locks = new CounterLocks(loadNative(), openSync(${JSON.stringify(path)}, 'r+'))
    const key = counterKey(${JSON.stringify(SPACE)}, 0x1000n)
    const read = () => readFileSync(${JSON.stringify(bit)}, 'utf8')
    const write = (value) => writeFileSync(${JSON.stringify(bit)}, value, { flag: 'r+' })
    process.stdin.once('data', async () => {
      let lost = 0
      for (let i = 0; i < 200; i++) {
        await locks.step([key], () => { locks.enter(key); write('1') })
        for (let look = 0; look < 3; look++) if (read() !== '1') lost++
        await locks.step([key], () => { if (!locks.leave(key)) write('0') })
      }
      console.log(lost)
      process.exit()
    })
    console.log('ready')`
  const args = [...(__filename.endsWith('.ts') ? ['--import', 'tsx'] : []), '-e', program]
  const agents = Array.from({ length: 3 }, () =>
    spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'], cwd: join(lib, '..') }),
  )
  await Promise.all(agents.map(({ stdout }) => once(stdout, 'data')))
  const results = agents.map(async ({ stdout }) => String((await once(stdout, 'data'))[0]).trim())
  for (const { stdin } of agents) stdin.write('go\n')
  assert.deepEqual(await Promise.all(results), ['0', '0', '0'])
  assert.equal(readFileSync(bit, 'utf8'), '0')
})
