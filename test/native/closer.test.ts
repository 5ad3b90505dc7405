import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { addonPath } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { descriptors } from '../support/descriptors.js'
import { counterValue, isArmed } from '../support/memory.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { threadsNamed } from '../support/threads.js'
import { waitFor } from '../support/wait.js'
import { native, uprobePmu, withoutRights } from './kernel.js'

/** A file that nothing else in the process opens, so that a number that was used again is not taken for it. */
const FILE = __filename

/** How often {@link FILE} is open. */
function openCount(): number {
  return descriptors().filter((link) => link === FILE).length
}

/** Descriptors that are no files by a path: those of the library, and others that stay. */
function withoutPath(): number {
  return descriptors().filter((link) => !link.startsWith('/')).length
}

const closingThreads = (): number => threadsNamed('uprobe-closer').length

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

/** The children of this process, zombies included, as far as the kernel lists them. */
function children(): string {
  return readdirSync('/proc/self/task')
    .map((tid) => {
      try {
        return readFileSync(`/proc/self/task/${tid}/children`, 'utf8')
      } catch {
        // A thread that ended since the listing, or a kernel without CONFIG_PROC_CHILDREN.
        return ''
      }
    })
    .join('')
}

test('hundreds of calls leave no child, no thread and no descriptor', async () => {
  // That of the test before.
  await waitFor('the closing thread to end', () => closingThreads() === 0)
  const childrenBefore = children()
  const before = withoutPath()
  const others = Array.from({ length: 50 }, () => native.openFile('/dev/null'))
  for (let round = 0; round < 10; round++) {
    const fds = Array.from({ length: 100 }, () => native.openFile(FILE))
    // Overlapping calls of one to four fds.
    const calls: Promise<void>[] = []
    for (let start = 0, count = 1; start < fds.length; start += count, count = (count % 4) + 1) {
      calls.push(native.closeFds(fds.slice(start, start + count)))
    }
    await Promise.all(calls)
  }
  assert.equal(openCount(), 0)
  for (const fd of others) assert.equal(readlinkSync(`/proc/self/fd/${fd}`), '/dev/null')
  await waitFor('the closing thread to end', () => closingThreads() === 0)
  assert.equal(withoutPath(), before)
  assert.equal(children(), childrenBefore)
  for (const fd of others) native.closeFd(fd)
})

test('leaves the event loop free while the kernel waits, and closes what else is closed at once', { skip: withoutRights }, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [note] = notesOf(program, 't:plain')
  assert.ok(note)
  const options = { type: uprobePmu(), path: program, fileOffset: note.fileOffset, refCtrOffset: 0, retprobe: false, tid: -1 }
  const fds = await Promise.all(Array.from({ length: 24 }, () => native.perfEventOpenUprobe(options)))
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const client = connect((server.address() as AddressInfo).port, '127.0.0.1')
  const [served] = (await once(server, 'connection')) as [Socket]
  let closed = false
  const closing = native.closeFds(fds).then(() => {
    closed = true
  })
  await waitFor('a child', () => children() !== '' || closed)
  client.resume()
  served.destroy()
  await once(client, 'end')
  assert.equal(closed, false)
  await closing
  client.destroy()
  server.close()
})

/** What the fixture needs to probe a fresh target, and how to see whether it is as it was. */
async function probedTarget(t: TestContext): Promise<{ plan: ExitingPlan; untouched: () => boolean }> {
  const program = buildTarget(t, 'usdt')
  const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
  const target = await Target.start(t, program)
  const site = { type: uprobePmu(), fileOffset: String(fileOffset), refCtrOffset: Number(refCtrOffset) }
  return {
    plan: { addon: addonPath(), path: program, tid: target.pid, site },
    untouched: () => counterValue(target.pid, program, refCtrOffset) === 0 && !isArmed(target.pid, program, fileOffset),
  }
}

interface ExitingPlan {
  addon: string
  path: string
  tid: number
  site: { type: number; fileOffset: string; refCtrOffset: number }
}

const EXITING = join(__dirname, 'fixtures', 'exiting.cjs')

for (const outstanding of [1, 4]) {
  test(`a process that exits with closings outstanding leaves its target as it was when it is gone (calls: ${outstanding})`, {
    skip: withoutRights,
  }, async (t) => {
    const { plan, untouched } = await probedTarget(t)
    for (let round = 0; round < 3; round++) {
      const outcome = spawnSync(process.execPath, [EXITING, JSON.stringify({ ...plan, outstanding })], { encoding: 'utf8' })
      assert.deepEqual({ status: outcome.status, stdout: outcome.stdout }, { status: 7, stdout: 'closing\n' }, outcome.stderr)
      assert.equal(untouched(), true)
    }
  })
}

test('a Worker that ends with closings outstanding leaves its target as it was', { skip: withoutRights }, async (t) => {
  const { plan, untouched } = await probedTarget(t)
  for (let round = 0; round < 3; round++) {
    const worker = new Worker(EXITING, { workerData: { ...plan, outstanding: 2 } })
    assert.deepEqual(await once(worker, 'exit'), [7])
    await waitFor('the closing thread to end', () => closingThreads() === 0)
    assert.equal(untouched(), true)
  }
})
