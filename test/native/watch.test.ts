import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { RingReader } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { holdings } from '../support/leftovers.js'
import { Target } from '../support/target.js'
import { waitFor } from '../support/wait.js'
import { native, record, withoutRights } from './kernel.js'

interface Watching {
  readonly reader: RingReader
  readonly target: Target
  /** What came, as in `task exec` and `pidfd readable`. */
  readonly events: string[]
  unwatchAll(): void
}

/** A target that is watched by its pidfd and by its leader thread. */
async function watching(t: TestContext): Promise<Watching> {
  const events: string[] = []
  const names = new Map<number, string>()
  const { reader } = await record(t, {
    onDoorbell: (recording, told) => {
      // Whoever is not told of events takes none.
      if (told) for (const { watch, event } of recording.reader.takeEvents()) events.push(`${names.get(watch)} ${event}`)
    },
  })
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  names.set(reader.watch(native.pidfdOpen(target.pid), 'pidfd'), 'pidfd')
  names.set(reader.watch(await native.taskWatchOpen(target.pid), 'task'), 'task')
  const unwatchAll = () => {
    for (const watch of names.keys()) reader.unwatch(watch)
  }
  return { reader, target, events, unwatchAll }
}

/** How many pidfds and perf events this process has open. */
function watchFds(): number {
  const { descriptors } = holdings()
  return Object.entries(descriptors)
    .filter(([kind]) => /pidfd|perf_event/.test(kind))
    .reduce((sum, [, count]) => sum + count, 0)
}

test('tells of an exec, and goes on watching', { skip: withoutRights }, async (t) => {
  const { target, events } = await watching(t)
  assert.equal(await target.ask('exec'), 'ready')
  await waitFor('the event', () => events.length > 0)
  assert.deepEqual(events, ['task exec'])
  assert.equal(await target.ask('exec'), 'ready')
  await waitFor('the second event', () => events.length > 1)
  assert.deepEqual(events, ['task exec', 'task exec'])
})

test('a renaming is not an exec', { skip: withoutRights }, async (t) => {
  const events: string[] = []
  const { reader } = await record(t, {
    onDoorbell: (recording) => events.push(...recording.reader.takeEvents().map(({ event }) => event)),
  })
  const watch = reader.watch(await native.taskWatchOpen(process.pid), 'task')
  const title = process.title
  process.title = 'renamed'
  process.title = title
  await reader.drain()
  reader.unwatch(watch)
  assert.deepEqual(events, [])
})

test('tells of the end of the process, once', { skip: withoutRights }, async (t) => {
  const { reader, target, events } = await watching(t)
  await target.stop()
  await waitFor('both events', () => events.length >= 2)
  await reader.drain()
  assert.deepEqual(events.sort(), ['pidfd readable', 'task hangup'])
})

test('tells of the end of the leader while another thread goes on', { skip: withoutRights }, async (t) => {
  const { target, events } = await watching(t)
  assert.equal(await target.ask('leader-exit'), 'leader gone')
  await waitFor('the hangup', () => events.length > 0)
  assert.deepEqual(events, ['task hangup'])
  assert.equal(await target.ask('plain 1'), 'executed 1')
  await target.stop()
  await waitFor('the end', () => events.length > 1)
  assert.deepEqual(events, ['task hangup', 'pidfd readable'])
})

test('tells of a process that had ended before it was watched', { skip: withoutRights }, async (t) => {
  const events: string[] = []
  const { reader } = await record(t, {
    onDoorbell: (recording) => events.push(...recording.reader.takeEvents().map(({ event }) => event)),
  })
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const [pidfd, task] = [native.pidfdOpen(target.pid), await native.taskWatchOpen(target.pid)]
  await target.stop()
  reader.watch(pidfd, 'pidfd')
  reader.watch(task, 'task')
  await waitFor('both events', () => events.length >= 2)
  assert.deepEqual(events.sort(), ['hangup', 'readable'])
})

test('an ended watch is silent, and its fd is closed', { skip: withoutRights }, async (t) => {
  const { target, events, unwatchAll } = await watching(t)
  assert.equal(watchFds(), 2)
  unwatchAll()
  assert.equal(watchFds(), 0)
  unwatchAll()
  await target.stop()
  assert.deepEqual(events, [])
})

test('closing the reader closes what it watches', { skip: withoutRights }, async (t) => {
  const { reader } = await watching(t)
  await reader.close()
  assert.equal(watchFds(), 0)
})

test('leaves an fd that cannot be watched to the caller', { skip: withoutRights }, async (t) => {
  const { reader } = await record(t)
  const file = native.openFile('/proc/self/exe')
  assert.throws(() => reader.watch(file, 'pidfd'), { syscall: 'epoll_ctl', code: 'EPERM' })
  const pidfd = native.pidfdOpen(process.pid)
  assert.throws(() => reader.watch(pidfd, 'task'), { syscall: 'mmap' })
  assert.throws(() => reader.watch(pidfd, 'both' as 'task'), { name: 'TypeError' })
  native.closeFd(file)
  native.closeFd(pidfd)
})
