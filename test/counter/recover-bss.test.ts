/**
 * What a dead agent left in memory that is no file's: there the address alone says little, since other memory may be there by now.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs'
import test, { type TestContext } from 'node:test'
import type { LeaseClaim } from '../../lib/counter/lease-owner.js'
import { needs } from '../support/needs.js'
import { CLAIMED, outcomes, type Scene, scene } from './orphans.js'

const GCC = needs({ programs: ['gcc', 'nm'] })

interface BssScene extends Scene {
  /** Address of the counter in `.bss`. */
  readonly address: bigint
  claimAt(address: bigint): LeaseClaim
  read(address: bigint): number
  store(address: bigint, value: number): void
}

async function bssScene(t: TestContext): Promise<BssScene> {
  const all = await scene(t, 'bad-counter', 't:good')
  const { target, claim } = all
  const [, vaddr = ''] = /^([0-9a-f]+) b bss_semaphore$/m.exec(execFileSync('nm', [target.program], { encoding: 'utf8' })) ?? []
  const [, base = ''] = /^([0-9a-f]+)-/.exec(readFileSync(`/proc/${target.pid}/maps`, 'utf8')) ?? []
  const memory = openSync(`/proc/${target.pid}/mem`, 'r+')
  t.after(() => closeSync(memory))
  const bytes = Buffer.alloc(2)
  return {
    ...all,
    address: BigInt(`0x${base}`) + BigInt(`0x${vaddr}`),
    claimAt: (address) => ({
      ...claim,
      counters: [{ provider: 't', name: 'bss', refCtrOffset: null, vaddr: BigInt(`0x${vaddr}`), address }],
    }),
    read: (address) => {
      assert.equal(readSync(memory, bytes, 0, 2, address), 2)
      return bytes.readUInt16LE()
    },
    store: (address, value) => {
      bytes.writeUInt16LE(value)
      // fs.writeSync takes its position as a number; user addresses are below 2^48.
      assert.equal(writeSync(memory, bytes, 0, 2, Number(address)), 2)
    },
  }
}

test('a claim in .bss is cleared, when it reads what a claim leaves', GCC, async (t) => {
  const { address, claimAt, read, store, orphan, recover } = await bssScene(t)
  for (const other of [CLAIMED + 1, 0x80ff, 0x1234, 0x7fff]) {
    store(address, other)
    orphan(claimAt(address))
    assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
    assert.equal(read(address), other)
  }
  store(address, CLAIMED)
  orphan(claimAt(address))
  assert.deepEqual(outcomes(await recover()), [['cleared', [[CLAIMED, 0]]]])
  assert.equal(read(address), 0)
})

test('memory that does not belong to the file is never written, whatever it reads', GCC, async (t) => {
  const { target, claimAt, read, store, orphan, recover } = await bssScene(t)
  const maps = readFileSync(`/proc/${target.pid}/maps`, 'utf8')
  const [, heap = ''] = /^([0-9a-f]+)-[0-9a-f]+ rw-p .*\[heap\]$/m.exec(maps) ?? []
  const [, stack = ''] = /^([0-9a-f]+)-[0-9a-f]+ rw-p .*\[stack\]$/m.exec(maps) ?? []
  const [, code = ''] = /^([0-9a-f]+)-[0-9a-f]+ r-xp .*bad-counter$/m.exec(maps) ?? []
  for (const [start, end] of [
    [heap, 0x800n],
    [stack, 0x10n],
  ] as const) {
    assert.notEqual(start, '')
    const place = BigInt(`0x${start}`) + end
    store(place, CLAIMED)
    orphan(claimAt(place))
    assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
    assert.equal(read(place), CLAIMED)
  }
  // Code cannot be a counter.
  const place = BigInt(`0x${code}`)
  const before = read(place)
  orphan(claimAt(place))
  assert.deepEqual(outcomes(await recover()), [['nothing-left', []]])
  assert.equal(read(place), before)
})
