/**
 * Processes that map a file later, and children of known ones, as the kernel's side band tells of them.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, statSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { Ring } from '../../lib/delivery/ring.js'
import { childLogger } from '../../lib/log.js'
import { loadNative } from '../../lib/native.js'
import { Newcomers } from '../../lib/target/newcomers.js'
import { buildTarget } from '../support/build.js'
import { assertLeavesNothing, holdings } from '../support/leftovers.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { freshCopy, tempDirectory } from '../support/temp.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

function newRing(): Promise<Ring> {
  return Ring.open(loadNative(), { ringBytes: 64 << 10, flushIntervalMs: 20, pendingLimitBytes: 1 << 20 }, childLogger(false, 'test'))
}

interface Waiting {
  readonly newcomers: Newcomers
  /** What came, as in `map 17`, `fork 18` and `lost`. */
  readonly told: string[]
}

function waitAt(ring: Ring, ...paths: string[]): Waiting {
  const told: string[] = []
  const files = paths.map((path) => {
    const { dev, ino } = statSync(path, { bigint: true })
    return { identity: { device: dev, inode: ino }, path }
  })
  const newcomers = Newcomers.start(
    loadNative(),
    ring,
    files,
    (pid, how) => told.push(`${how} ${pid}`),
    () => told.push('lost'),
  )
  return { newcomers, told }
}

/** Waits for processes that map one of `paths`; ends with the test. */
async function waitFors(t: TestContext, ...paths: string[]): Promise<Waiting> {
  const ring = await newRing()
  t.after(() => ring.close())
  const waiting = waitAt(ring, ...paths)
  t.after(() => waiting.newcomers.close())
  return waiting
}

/** A shell that carries out what it is asked, line by line, and says `done`. */
function shell(t: TestContext): Promise<Target> {
  return Target.start(t, '/bin/sh', { args: ['-c', 'echo ready; while read -r line; do eval "$line"; echo done; done'] })
}

function perfEvents(): number {
  return holdings().descriptors['anon_inode:[perf_event]'] ?? 0
}

test('tells of a process that starts the program, and of one that becomes it', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const other = await Target.start(t, buildTarget(t, 'usdt'))
  const { told } = await waitFors(t, program)
  const first = await Target.start(t, program)
  await waitFor('the first', () => told.length >= 1)
  assert.equal(await other.ask(`exec ${program}`), 'ready')
  await waitFor('the second', () => told.length >= 2)
  assert.equal(await first.ask('exec'), 'ready')
  await waitFor('the first anew', () => told.length >= 3)
  assert.deepEqual(told, [`map ${first.pid}`, `map ${other.pid}`, `map ${first.pid}`])
})

test('tells of a process that loads the library, each time', GCC, async (t) => {
  const library = buildTarget(t, 'lib', 'shared')
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { told } = await waitFors(t, library)
  await target.ask(`dlopen ${library}`)
  await waitFor('it', () => told.length >= 1)
  await target.ask('dlclose')
  await target.ask(`dlopen ${library}`)
  await waitFor('it again', () => told.length >= 2)
  assert.deepEqual(told, [`map ${target.pid}`, `map ${target.pid}`])
})

test('does not tell of processes that map another file of that name, or read the file', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const { told } = await waitFors(t, program)
  await Target.start(t, freshCopy(t, program))
  assert.equal(spawnSync('cp', [program, join(tempDirectory(t), 'copy')]).status, 0)
  const wanted = await Target.start(t, program)
  await waitFor('the wanted one', () => told.length > 0)
  assert.deepEqual(told, [`map ${wanted.pid}`])
})

test('knows a file by any of its names', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const link = join(tempDirectory(t), 'link')
  symlinkSync(program, link)
  const { told } = await waitFors(t, link)
  const wanted = await Target.start(t, program)
  await waitFor('it', () => told.length > 0)
  assert.deepEqual(told, [`map ${wanted.pid}`])
})

test('tells of the children of known processes, and of no others', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [known, unknown] = [await Target.start(t, program), await Target.start(t, program)]
  const { newcomers, told } = await waitFors(t, program)
  newcomers.watchForksOf([known.pid])
  await unknown.ask('fork 1')
  const child = await known.askNumber('fork-hold')
  await waitFor('the child', () => told.length > 0)
  await known.ask('fork-release 1')
  newcomers.watchForksOf([])
  await known.ask('fork 1')
  const last = await Target.start(t, program)
  await waitFor('the last', () => told.length > 1)
  assert.deepEqual(told, [`fork ${child}`, `map ${last.pid}`])
})

test('takes processes that end at once for nothing', GCC, async (t) => {
  const ending = freshCopy(t, '/bin/true')
  const program = buildTarget(t, 'usdt')
  const { told } = await waitFors(t, ending, program)
  const parent = await shell(t)
  await parent.ask(`i=0; while [ $i -lt 100 ]; do ${ending}; i=$((i+1)); done`)
  const last = await Target.start(t, program)
  await waitFor('the last', () => told.includes(`map ${last.pid}`))
  assert.equal(told.at(-1), `map ${last.pid}`)
})

test('tells each of those that wait at one ring of its own file, until it is closed', GCC, async (t) => {
  const [usdt, func] = [buildTarget(t, 'usdt'), buildTarget(t, 'func')]
  const ring = await newRing()
  t.after(() => ring.close())
  const first = waitAt(ring, usdt)
  const events = perfEvents()
  const second = waitAt(ring, func)
  assert.equal(perfEvents(), events)
  const parent = await Target.start(t, usdt)
  const other = await Target.start(t, func)
  await waitFor('both', () => first.told.length > 0 && second.told.length > 0)
  first.newcomers.watchForksOf([parent.pid])
  const child = await parent.askNumber('fork-hold')
  await waitFor('the child', () => first.told.length > 1)
  first.newcomers.close()
  first.newcomers.close()
  await Target.start(t, usdt)
  const last = await Target.start(t, func)
  await waitFor('the last', () => second.told.length > 1)
  await parent.ask('fork-release 1')
  assert.deepEqual(first.told, [`map ${parent.pid}`, `fork ${child}`])
  assert.deepEqual(second.told, [`map ${other.pid}`, `map ${last.pid}`])
  second.newcomers.close()
  assert.equal(perfEvents(), 0)
})

test('says when there may have been more', GCC, async (t) => {
  const parent = await shell(t)
  const { newcomers, told } = await waitFors(t, '/bin/true')
  newcomers.watchForksOf([parent.pid])
  // Nobody takes what comes as long as the event loop stands still.
  const end = join(tempDirectory(t), 'end')
  parent.tell(`i=0; while [ $i -lt 5000 ]; do (:); i=$((i+1)); done; : >${end}`)
  await waitFor('the first', () => told.length > 0)
  const clock = new Int32Array(new SharedArrayBuffer(4))
  while (!existsSync(end)) Atomics.wait(clock, 0, 0, 10)
  await waitFor('the loss', () => told.includes('lost'))
  assert.equal(await parent.line(), 'done')
})

test('leaves nothing open', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  await assertLeavesNothing(async () => {
    const ring = await newRing()
    const { newcomers, told } = waitAt(ring, program)
    const target = await Target.start(t, program)
    newcomers.watchForksOf([target.pid])
    await target.ask('fork 1')
    await waitFor('both', () => told.length >= 2)
    newcomers.close()
    await ring.close()
    await target.stop()
  })
})
