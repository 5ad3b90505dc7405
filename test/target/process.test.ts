/**
 * Who stands for a process, at moments that a test cannot wait for: what /proc answers is put together here.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import test from 'node:test'
import { loadNative } from '../../lib/native.js'
import { TargetProcess } from '../../lib/target/process.js'
import { descriptors } from '../support/descriptors.js'
import { needs } from '../support/needs.js'

test('a thread that becomes the leader while it is looked for is found as the leader', needs(), (t) => {
  const target = TargetProcess.open(loadNative(), process.pid)
  t.after(() => target.close())
  const { readSync, readdirSync } = fs
  // First the leader is dead, and the other thread, which calls exec, still has its own number; when it is looked at, it has the leader's already.
  let leaderDead = true
  t.mock.method(fs, 'readdirSync', (path: string) => {
    if (path !== `/proc/${process.pid}/task`) return readdirSync(path)
    leaderDead = false
    return ['4194304']
  })
  t.mock.method(fs, 'readSync', (fd: number, buffer: Buffer, ...rest: [number, number, number]) => {
    const bytes = readSync(fd, buffer, ...rest)
    if (leaderDead && fs.readlinkSync(`/proc/self/fd/${fd}`) === `/proc/${process.pid}/task/${process.pid}/stat`) {
      buffer.write('Z', buffer.lastIndexOf(')') + 2)
    }
    return bytes
  })
  assert.equal(target.refreshThread(), true)
  assert.equal(leaderDead, false)
  assert.equal(target.tid, process.pid)
  leaderDead = true
  assert.equal(target.isAlive(), true)
})

test('a process that is held is asked for its state without a descriptor', needs(), async (t) => {
  const target = TargetProcess.open(loadNative(), process.pid)
  t.after(() => target.close())
  const refuse = (): never => {
    throw Object.assign(new Error('too many open files'), { errno: -24, code: 'EMFILE', syscall: 'open' })
  }
  for (const name of ['openSync', 'readFileSync', 'readdirSync'] as const) t.mock.method(fs, name, refuse)
  assert.equal(target.isAlive(), true)
  assert.equal(target.refreshThread(), true)
  assert.equal(target.addressSpaceGone(), false)
  await target.programMapped()
})

test('a process that cannot be opened for want of a descriptor is not taken for gone, whichever call finds none', needs(), async (t) => {
  const native = loadNative()
  const { openSync, readFileSync } = fs
  const openDescriptors = () => descriptors().filter((link) => /^\/proc\/\d|pidfd/.test(link)).length
  let left = 0
  const counting = <T>(work: () => T): T => {
    if (left-- === 0) throw Object.assign(new Error('too many open files'), { errno: -24, code: 'EMFILE', syscall: 'open' })
    return work()
  }
  t.mock.method(fs, 'openSync', (...args: Parameters<typeof openSync>) => counting(() => openSync(...args)))
  t.mock.method(fs, 'readFileSync', (...args: Parameters<typeof readFileSync>) => counting(() => readFileSync(...args)))
  const before = openDescriptors()
  let refused = 0
  for (; ; refused++) {
    left = refused
    let target: TargetProcess
    try {
      target = TargetProcess.open(native, process.pid)
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'ERR_UPROBE_LIMIT')
      assert.equal(openDescriptors(), before)
      continue
    }
    target.close()
    break
  }
  // Its state, its number, its memory.
  assert.equal(refused, 3)
  assert.equal(openDescriptors(), before)
})
