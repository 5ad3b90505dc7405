import assert from 'node:assert/strict'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { test } from 'node:test'
import { buildTarget } from '../support/build.js'
import { notesOf } from '../support/notes.js'
import { waitFor } from '../support/wait.js'
import { native, uprobePmu, withoutRights } from './kernel.js'

/** A file that nothing else in the process opens, so that a number that was used again is not taken for it. */
const FILE = __filename

/** How often {@link FILE} is open. */
function openCount(): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === FILE
    } catch {
      // The descriptor of the listing itself.
      return false
    }
  }).length
}

function closingThreads(): number {
  return readdirSync('/proc/self/task').filter((tid) => {
    try {
      return readFileSync(`/proc/self/task/${tid}/comm`, 'utf8') === 'uprobe-closer\n'
    } catch {
      // A thread that ended since the listing.
      return false
    }
  }).length
}

test('resolves when all are closed, and the thread ends', async () => {
  const fds = Array.from({ length: 100 }, () => native.openFile(FILE))
  assert.equal(openCount(), 100)
  await native.closeFds(fds)
  assert.equal(openCount(), 0)
  await waitFor('the closing thread to end', () => closingThreads() === 0)
  await native.closeFds([])
})

test('closes in the order of the calls', async () => {
  const order: number[] = []
  const fds = Array.from({ length: 50 }, () => native.openFile(FILE))
  await Promise.all(fds.map((fd, index) => native.closeFds([fd]).then(() => order.push(index))))
  assert.deepEqual(
    order,
    fds.map((_, index) => index),
  )
})

test('leaves the event loop free while the kernel waits', { skip: withoutRights }, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [note] = notesOf(program, 't:plain')
  assert.ok(note)
  const options = { type: uprobePmu(), path: program, fileOffset: note.fileOffset, refCtrOffset: 0, retprobe: false, tid: -1 }
  const fds = await Promise.all(Array.from({ length: 4 }, () => native.perfEventOpenUprobe(options)))
  let turns = 0
  let closed = false
  const closing = native.closeFds(fds).then(() => {
    closed = true
  })
  while (!closed) {
    await new Promise(setImmediate)
    turns++
  }
  await closing
  assert.ok(turns > 10, `${turns} turns of the event loop`)
})

test('tells of a bad fd, and closes the others', async () => {
  const fds = [native.openFile(FILE), native.openFile(FILE)]
  const bad = native.openFile(FILE)
  native.closeFd(bad)
  await assert.rejects(native.closeFds([...fds.slice(0, 1), bad, ...fds.slice(1)]), { syscall: 'close', code: 'EBADF' })
  assert.equal(openCount(), 0)
})

test('refuses what is no list of fds', () => {
  const close = native.closeFds as (fds: unknown) => unknown
  for (const fds of [undefined, 3, [-1], ['3'], [1.5], [undefined]]) assert.throws(() => close(fds), { name: 'TypeError' })
})
