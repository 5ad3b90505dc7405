/**
 * Leases that agents in several places share, and directories that cannot be written.
 *
 * Not for guests: it starts Node with sources, in namespaces of its own.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { Worker } from 'node:worker_threads'
import { LeaseDirectory } from '../../lib/counter/lease-directory.js'
import { type LeaseClaim, LeaseOwner } from '../../lib/counter/lease-owner.js'
import { loadNative } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { leaseFiles } from '../support/leases.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'

const GCC = needs({ programs: ['gcc'] })

function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'uprobe-lease-'))
  t.after(() => rmSync(path, { recursive: true, force: true }))
  return path
}

function open(path: string, absent: 'create' | 'ignore' = 'create'): LeaseDirectory | null {
  return LeaseDirectory.open(loadNative(), path, absent)
}

function opened(t: TestContext, path: string): LeaseDirectory {
  const directory = open(path)
  assert.ok(directory)
  t.after(() => directory.close())
  return directory
}

const CLAIM: LeaseClaim = {
  target: { pid: 77, startTime: 123n, space: { pidNamespace: '4026531836', pid: 77, fingerprint: '0123456789abcdef0123456789abcdef' } },
  file: { device: 2049n, inode: 5n, path: '/bin/a\n"b' },
  counters: [
    { provider: 'p', name: 'n', refCtrOffset: 0x4122n, vaddr: 0x4122n, address: 0x7fff_ffff_0000n },
    { provider: 'p', name: 'bss', refCtrOffset: null, vaddr: 0x9000n, address: 0x9000n },
  ],
}

/** Runs a function of this file in a mount namespace of its own, so that what it mounts goes with it. */
function inMountNamespace(setup: string, program: string): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(
    'unshare',
    ['-m', '--propagation', 'private', 'sh', '-c', `${setup} && exec "$@"`, 'sh', process.execPath, '--import', 'tsx', '-e', program],
    {
      encoding: 'utf8',
      cwd: join(__dirname, '..', '..'),
    },
  )
  return { status, output: stdout + stderr }
}

for (const [what, setup] of [
  ['full', (path: string) => `mount -t tmpfs -o size=4k,nr_inodes=2,mode=700 none ${path}`],
  ['read-only', (path: string) => `mount -t tmpfs -o ro,mode=700 none ${path}`],
] as const) {
  test(`a ${what} directory fails the attach before anything is written to the target`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const path = folder(t)
    chmodSync(path, 0o700)
    const program = `
      const { Tracer } = require('./lib/index.ts')
      void (async () => {
        const tracer = new Tracer({ leaseDir: ${JSON.stringify(path)} })
        try { await tracer.attach('usdt:t:gated', { pid: ${target.pid}, counter: 'msb' }); console.log('attached') }
        catch (error) { console.log(error.code) }
        await tracer.close()
        console.log('files', require('node:fs').readdirSync(${JSON.stringify(path)}).filter((name) => name !== 'locks').length)
      })()`
    const { output } = inMountNamespace(setup(path), program)
    assert.match(output, /ERR_UPROBE_LEASE\nfiles 0\n/)
    assert.equal(await target.ask('counters'), '0 0 0 0')
    assert.equal(isArmed(target.pid, target.program, gatedNote(target.program, 't:gated').fileOffset), false)
  })
}

test('an agent in another pid namespace that shares the directory keeps the counter, and its death is noticed', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = join(folder(t), 'leases')
  const probe = await newTracer(t, { leaseDir }).attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  // The other one cannot see the target; that it lives, and that there is a lease, it can.
  const program = `
    const { LeaseDirectory } = require('./lib/counter/lease-directory.ts')
    const { recoverOrphans } = require('./lib/counter/recover.ts')
    const { loadNative } = require('./lib/native.ts')
    void (async () => {
      const directory = LeaseDirectory.open(loadNative(), ${JSON.stringify(leaseDir)}, 'ignore')
      console.log(JSON.stringify(directory.list().map(({ ownerAlive }) => ownerAlive)))
      const log = { warn: () => undefined }
      console.log(JSON.stringify((await recoverOrphans(loadNative(), directory, log)).map(({ outcome }) => outcome)))
    })()`
  const elsewhere = (): string =>
    spawnSync('unshare', ['--pid', '--fork', '--mount-proc', process.execPath, '--import', 'tsx', '-e', program], {
      encoding: 'utf8',
      cwd: join(__dirname, '..', '..'),
    }).stdout
  assert.equal(elsewhere(), '[true]\n[]\n')
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  await detachComplete(probe, 0)
  const directory = opened(t, leaseDir)
  const owner = LeaseOwner.create(directory, loadNative())
  owner.write(CLAIM)
  owner.close()
  assert.equal(elsewhere(), '[false]\n["unreachable"]\n')
  assert.deepEqual(readdirSync(leaseDir).filter((name) => name.startsWith('lease')).length, 1)
})

test('a Worker that claims the same counter keeps it when the main thread gives it back, and its end clears it', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = join(folder(t), 'leases')
  const probe = await newTracer(t, { leaseDir }).attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  const program = `
    require('tsx/cjs')
    const { parentPort } = require('node:worker_threads')
    const { Tracer } = require(${JSON.stringify(join(__dirname, '..', '..', 'lib', 'index.ts'))})
    const tracer = new Tracer({ leaseDir: ${JSON.stringify(leaseDir)} })
    tracer.attach('usdt:t:gated', { pid: ${target.pid}, counter: 'msb' }).then(() => parentPort.postMessage('attached'))
    parentPort.once('message', () => tracer.close().then(() => process.exit()))`
  const worker = new Worker(program, { eval: true })
  assert.deepEqual(await once(worker, 'message'), ['attached'])
  await detachComplete(probe, 0)
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  worker.postMessage('close')
  await once(worker, 'exit')
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.equal(leaseFiles(leaseDir).filter((name) => name.startsWith('lease')).length, 0)
})
