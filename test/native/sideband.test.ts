/**
 * What the kernel tells of new processes and mappings, as the reading thread passes it on.
 *
 * In guests on 5.10 only: its many processes take long, and the others do not differ here.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { type TestContext, test } from 'node:test'
import type { RingReader, SidebandFilter } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { holdings } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { waitFor } from '../support/wait.js'
import { native, record, withoutRights } from './kernel.js'

const RIGHTS = { skip: withoutRights }
/** The reading thread keeps up with whatever emulated processors can start. */
const EMULATED = process.env.UPROBE_TEST_GUEST === '1' && 'an emulated processor starts processes too slowly'

/** A shell that carries out what it is asked, line by line, and says `done`. */
function shell(t: TestContext): Promise<Target> {
  return Target.start(t, '/bin/sh', { args: ['-c', 'echo ready; while read -r line; do eval "$line"; echo done; done'] })
}

interface Watching {
  readonly reader: RingReader
  readonly watches: readonly number[]
  /** What came, as in `map 17`, `fork 18` and `lost`. */
  readonly events: string[]
  filter(filter: { files?: readonly string[]; names?: readonly string[]; pids?: readonly number[] }): void
}

/** Side bands of all CPUs. */
async function watching(t: TestContext, { pages = 64, taking = true }: { pages?: number; taking?: boolean } = {}): Promise<Watching> {
  const events: string[] = []
  const { reader } = await record(t, {
    onDoorbell: (recording) => {
      if (taking) take(recording.reader, events)
    },
  })
  const watches = onlineCpus().map((cpu) => reader.watch(native.sidebandOpen(cpu), 'sideband', pages))
  return {
    reader,
    watches,
    events,
    filter: ({ files = [], names = [], pids = [] }) =>
      reader.setSidebandFilter({
        inodes: BigUint64Array.from(files, (file) => statSync(file, { bigint: true }).ino),
        names,
        pids: Int32Array.from(pids),
      }),
  }
}

function take(reader: RingReader, events: string[]): void {
  for (const event of reader.takeEvents()) events.push('pid' in event ? `${event.event} ${event.pid}` : event.event)
}

function onlineCpus(): number[] {
  const [, last = '0'] = /(\d+)$/.exec(readFileSync('/sys/devices/system/cpu/online', 'utf8').trim()) ?? []
  return Array.from({ length: Number(last) + 1 }, (_, cpu) => cpu)
}

/** How many perf events this process has open. */
function perfEvents(): number {
  return holdings().descriptors['anon_inode:[perf_event]'] ?? 0
}

test('tells of a process that maps a file, known by its inode', RIGHTS, async (t) => {
  const { events, filter } = await watching(t)
  const [program, other] = [buildTarget(t, 'usdt'), buildTarget(t, 'usdt')]
  filter({ files: [program] })
  await Target.start(t, other)
  const { pid } = await Target.start(t, program)
  await waitFor('the event', () => events.length > 0)
  assert.deepEqual(events, [`map ${pid}`])
})

test('tells of a process that maps a file, known by its name', RIGHTS, async (t) => {
  const { events, filter } = await watching(t)
  const [usdt, func] = [buildTarget(t, 'usdt'), buildTarget(t, 'func')]
  filter({ names: ['func', 'sdt', '', '/'] })
  await Target.start(t, usdt)
  const { pid } = await Target.start(t, func)
  await waitFor('the event', () => events.length > 0)
  assert.deepEqual(events, [`map ${pid}`])
})

test('tells of each mapping of a library, also where the records wrap around the ring', RIGHTS, async (t) => {
  const { events, filter } = await watching(t, { pages: 1 })
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const library = buildTarget(t, 'lib', 'shared')
  filter({ files: [library] })
  const expected: string[] = []
  // A page takes some thirty records of this length.
  for (let time = 0; time < 200; time++) {
    expected.push(`map ${target.pid}`)
    await target.ask(`dlopen ${library}`)
    await waitFor('the event', () => events.length >= expected.length)
    await target.ask('dlclose')
  }
  assert.deepEqual(events, expected)
})

test('tells of the children of a process, and of no threads', RIGHTS, async (t) => {
  const { events, filter } = await watching(t)
  const program = buildTarget(t, 'usdt')
  const [first, second] = [await Target.start(t, program), await Target.start(t, program)]
  filter({ pids: [second.pid] })
  await first.ask('fork 1')
  await second.ask('threads 3 1')
  const child = await second.askNumber('fork-hold')
  await waitFor('the event', () => events.length > 0)
  await second.ask('fork-release 1')
  assert.deepEqual(events, [`fork ${child}`])
})

test('tells of a grandchild whose parent ends at once', RIGHTS, async (t) => {
  const { events, filter } = await watching(t)
  const parent = await shell(t)
  filter({ pids: [parent.pid] })
  await parent.ask('( (:) & )')
  await waitFor('both events', () => events.length >= 2)
  assert.deepEqual(
    events.map((event) => event.replace(/\d+/, 'N')),
    ['fork N', 'fork N'],
  )
  assert.notEqual(events[0], events[1])
})

test('tells of children that were born just before their parent was named, and once', RIGHTS, async (t) => {
  const { reader, events, filter } = await watching(t)
  const program = buildTarget(t, 'usdt')
  filter({ files: [program] })
  const parent = await Target.start(t, program)
  const child = await parent.askNumber('fork-hold')
  const started = await Target.start(t, program)
  // What was read by now includes the fork, unless it was read on another CPU.
  await waitFor('both events', () => events.length >= 2)
  assert.deepEqual(events.splice(0), [`map ${parent.pid}`, `map ${started.pid}`])
  filter({ pids: [parent.pid] })
  await waitFor('the event', () => events.length > 0)
  filter({ pids: [] })
  filter({ pids: [parent.pid] })
  await reader.drain()
  assert.deepEqual(events, [`fork ${child}`])
})

test('a filter is replaced as a whole', RIGHTS, async (t) => {
  const { events, filter } = await watching(t)
  const [first, second] = [buildTarget(t, 'usdt'), buildTarget(t, 'usdt')]
  filter({ files: [first], names: ['usdt'] })
  filter({ files: [second] })
  await Target.start(t, first)
  const { pid } = await Target.start(t, second)
  await waitFor('the event', () => events.length > 0)
  assert.deepEqual(events, [`map ${pid}`])
})

test(
  'what does not fit into the ring is told to be lost',
  EMULATED ? { skip: EMULATED } : needs({ programs: ['chrt', 'taskset'] }),
  async (t) => {
    const { reader, events } = await watching(t, { pages: 1 })
    const shells = await Promise.all(Array.from({ length: 4 }, () => shell(t)))
    // Whoever wants it to fall behind must not leave it a CPU: on the one where all are, it gets what nobody else wants.
    const cpu = /^Cpus_allowed_list:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'latin1'))?.[1] ?? '0'
    for (const id of [reader.tid, ...shells.map(({ pid }) => pid)]) execFileSync('taskset', ['-pc', cpu, String(id)], { stdio: 'ignore' })
    execFileSync('chrt', ['--idle', '--pid', '0', String(reader.tid)])
    await waitFor('the loss', async () => {
      await Promise.all(shells.map((one) => one.ask('i=0; while [ $i -lt 200 ]; do (:); i=$((i+1)); done')))
      return events.length > 0
    })
    assert.deepEqual([...new Set(events)], ['lost'])
  },
)

test('what nobody takes is bounded, and the rest is told to be lost', RIGHTS, async (t) => {
  const { reader, events, filter } = await watching(t, { pages: 1024, taking: false })
  const parent = await shell(t)
  filter({ pids: [parent.pid] })
  await parent.ask('i=0; while [ $i -lt 5000 ]; do (:); i=$((i+1)); done')
  await waitFor('the bound to be reached', () => {
    take(reader, events)
    return events.includes('lost')
  })
  const lost = events.indexOf('lost')
  assert.equal(lost, 4096)
  assert.ok(events.slice(0, lost).every((event) => event.startsWith('fork ')))
  await parent.ask('(:)')
  await waitFor('it to go on', () => {
    events.length = 0
    take(reader, events)
    return events.length > 0
  })
  assert.match(events[0] ?? '', /^fork/)
})

test('an ended watch is silent, and its fd is closed', RIGHTS, async (t) => {
  const { reader, watches, events, filter } = await watching(t)
  const program = buildTarget(t, 'usdt')
  filter({ files: [program] })
  assert.equal(perfEvents(), watches.length)
  for (const watch of watches) reader.unwatch(watch)
  assert.equal(perfEvents(), 0)
  await Target.start(t, program)
  await reader.drain()
  assert.deepEqual(events, [])
})

test('refuses wrong arguments', RIGHTS, async (t) => {
  const { reader } = await watching(t)
  assert.throws(() => native.sidebandOpen(-1), { name: 'TypeError' })
  assert.throws(() => native.sidebandOpen(1 << 20), { syscall: 'perf_event_open', code: 'EINVAL' })
  const fd = native.sidebandOpen(0)
  for (const pages of [0, 3, 1 << 20]) assert.throws(() => reader.watch(fd, 'sideband', pages), { name: 'TypeError' })
  native.closeFd(fd)
  const file = native.openFile('/proc/self/exe')
  assert.throws(() => reader.watch(file, 'sideband', 1 << 10), { syscall: 'mmap' })
  native.closeFd(file)
  const filter = { inodes: new BigUint64Array(), names: [], pids: new Int32Array() }
  for (const wrong of [{ inodes: [1n] }, { names: 'usdt' }, { names: [1] }, { pids: [1] }]) {
    assert.throws(() => reader.setSidebandFilter({ ...filter, ...wrong } as unknown as SidebandFilter), { name: 'TypeError' })
  }
})
