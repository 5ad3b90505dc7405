/**
 * Watches that end while they are still being opened, and processes that are gone before they are watched.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import test, { type TestContext } from 'node:test'
import pino from 'pino'
import { FoundProcesses } from '../../lib/counter/found.js'
import { Ring } from '../../lib/delivery/ring.js'
import { loadNative, type Native } from '../../lib/native.js'
import { TargetProcess } from '../../lib/target/process.js'
import { TaskEvents } from '../../lib/target/task-events.js'
import { TargetWatches } from '../../lib/target/watches.js'
import { holdings } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
import { turns, waitFor } from '../support/wait.js'

const ROOT = needs()

async function newRing(t: TestContext): Promise<Ring> {
  const ring = await Ring.open(loadNative(), { ringBytes: 4096, flushIntervalMs: 1, pendingLimitBytes: 4096 }, pino({ enabled: false }))
  t.after(() => ring.close())
  return ring
}

function start(t: TestContext, ...command: [string, ...string[]]): ChildProcess {
  const [program, ...args] = command
  const child = spawn(program, args, { stdio: ['pipe', 'ignore', 'ignore'] })
  t.after(() => child.kill('SIGKILL'))
  return child
}

function open(t: TestContext, { pid }: ChildProcess): TargetProcess {
  assert.ok(pid !== undefined, 'it did not start')
  const target = TargetProcess.open(loadNative(), pid)
  t.after(() => target.close())
  return target
}

/** How many pidfds and perf events this process has open. */
function watchFds(): number {
  return Object.entries(holdings().descriptors)
    .filter(([kind]) => /pidfd|perf_event/.test(kind))
    .reduce((sum, [, count]) => sum + count, 0)
}

const HOST = { onEnd: () => undefined, onThreadChange: () => undefined, onError: () => undefined }

/** The addon, whose task watches are opened when `release` is called. */
function slowNative(): { native: Native; opens: () => number; release: () => void } {
  const real = loadNative()
  const waiting: Array<() => void> = []
  let opens = 0
  const native: Native = Object.create(real, {
    taskWatchOpen: {
      value: async (tid: number) => {
        opens++
        await new Promise<void>((resolve) => waiting.push(resolve))
        return real.taskWatchOpen(tid)
      },
    },
  })
  const release = (): void => {
    for (const resolve of waiting.splice(0)) resolve()
  }
  return { native, opens: () => opens, release }
}

for (const prepared of [true, false]) {
  test(
    `ending a watch waits for what is being opened for it, and closes that (${prepared ? 'prepared' : 'not prepared'})`,
    ROOT,
    async (t) => {
      const target = open(t, start(t, 'sleep', '600'))
      const { native, opens, release } = slowNative()
      const tasks = new TaskEvents(native)
      const watches = new TargetWatches(native, await newRing(t), HOST, tasks)
      const before = watchFds()
      if (prepared) tasks.prepare(target)
      const adding = watches.add(target)
      await waitFor('the opening', () => opens() === 1)
      let removed = false
      const removing = watches.remove(target).then(() => {
        removed = true
      })
      await new Promise(setImmediate)
      assert.equal(removed, false)
      release()
      await removing
      assert.equal(watchFds(), before)
      await adding
      assert.equal(watchFds(), before)
    },
  )
}

test('what was prepared and never added is closed', ROOT, async (t) => {
  const target = open(t, start(t, 'sleep', '600'))
  const tasks = new TaskEvents(loadNative())
  const watches = new TargetWatches(loadNative(), await newRing(t), HOST, tasks)
  const before = watchFds()
  tasks.prepare(target)
  await watches.remove(target)
  assert.equal(watchFds(), before)
  tasks.prepare(target)
  await tasks.close()
  assert.equal(watchFds(), before)
})

test('of many that are prepared, the first is opened alone, and each once', ROOT, async (t) => {
  const targets = [1, 2, 3].map(() => open(t, start(t, 'sleep', '600')))
  const { native, opens, release } = slowNative()
  const tasks = new TaskEvents(native)
  const before = watchFds()
  for (const target of [...targets, ...targets]) tasks.prepare(target)
  await turns(20)
  assert.equal(opens(), 1)
  release()
  await waitFor('the others', () => opens() === 3)
  const closing = tasks.close()
  release()
  await closing
  assert.deepEqual([opens(), watchFds()], [3, before])
})

test('a process that is gone before it is taken in is not, and leaves nothing', ROOT, async (t) => {
  const child = start(t, 'sleep', '600')
  const target = open(t, child)
  const found = new FoundProcesses(loadNative(), await newRing(t), (error) => assert.fail(String(error)))
  const before = watchFds()
  child.kill('SIGKILL')
  await once(child, 'exit')
  await assert.rejects(
    found.add(target, () => undefined),
    { code: 'ERR_UPROBE_TARGET_GONE' },
  )
  assert.deepEqual([found.size, watchFds()], [0, before])
})

test('a process that has become another program before it is watched is not taken in', ROOT, async (t) => {
  const shell = start(t, 'sh', '-c', 'read line; exec sleep 600')
  const target = open(t, shell)
  const { native, opens, release } = slowNative()
  const ring = await newRing(t)
  let ends = 0
  const found = new FoundProcesses(native, ring, (error) => assert.fail(String(error)))
  const adding = found.add(target, () => {
    ends++
  })
  await waitFor('the opening', () => opens() === 1)
  shell.stdin?.write('\n')
  await waitFor('the exec', () => target.addressSpaceGone())
  release()
  await assert.rejects(adding, { code: 'ERR_UPROBE_TARGET_GONE' })
  assert.deepEqual([found.size, ends], [0, 0])
})
