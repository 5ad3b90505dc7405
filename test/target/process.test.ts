/**
 * Who stands for a process, at moments that a test cannot wait for: what /proc answers is put together here.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import test from 'node:test'
import { loadNative } from '../../lib/native.js'
import { TargetProcess } from '../../lib/target/process.js'
import { needs } from '../support/needs.js'

test('a thread that becomes the leader while it is looked for is found as the leader', needs(), (t) => {
  const target = TargetProcess.open(loadNative(), process.pid)
  t.after(() => target.close())
  const { readFileSync, readdirSync } = fs
  // First the leader is dead, and the other thread, which calls exec, still has its own number; when it is looked at, it has the leader's already.
  let leaderDead = true
  t.mock.method(fs, 'readdirSync', (path: string) => {
    if (path !== `/proc/${process.pid}/task`) return readdirSync(path)
    leaderDead = false
    return ['4194304']
  })
  t.mock.method(fs, 'readFileSync', (...args: Parameters<typeof readFileSync>) => {
    const text = readFileSync(...args)
    return args[0] === `/proc/${process.pid}/stat` && leaderDead ? String(text).replace(/\) [RS] /, ') Z ') : text
  })
  assert.equal(target.refreshThread(), true)
  assert.equal(leaderDead, false)
  assert.equal(target.tid, process.pid)
  leaderDead = true
  assert.equal(target.isAlive(), true)
})

test(
  'a process that cannot be looked at for want of a descriptor may be in the middle of an exec, and is waited for',
  needs(),
  async (t) => {
    const target = TargetProcess.open(loadNative(), process.pid)
    t.after(() => target.close())
    const { readFileSync } = fs
    let refusals = 3
    t.mock.method(fs, 'readFileSync', (...args: Parameters<typeof readFileSync>) => {
      if (args[0] !== `/proc/${process.pid}/stat` || refusals === 0) return readFileSync(...args)
      refusals--
      throw Object.assign(new Error('too many open files'), { errno: -24, code: 'EMFILE', syscall: 'open' })
    })
    await target.programMapped()
    assert.equal(refusals, 0)
  },
)
