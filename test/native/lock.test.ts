/**
 * The addon's locks: to whom they belong, when they go, and what is refused.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { addonPath } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { tempDirectory } from '../support/temp.js'
import { native } from './kernel.js'

/** Opens a file as many times as wanted. */
function openings(t: TestContext, count: number): number[] {
  const path = join(tempDirectory(t), 'locks')
  writeFileSync(path, '')
  const fds = Array.from({ length: count }, () => openSync(path, 'r+'))
  t.after(() => {
    for (const fd of fds) closeSync(fd)
  })
  return fds
}

const BYTE = 2n ** 62n + 1n

test('a byte is held by one open file at a time, or shared by several, and another byte is another lock', (t) => {
  const [a = -1, b = -1, c = -1] = openings(t, 3)
  assert.equal(native.lockByte(a, BYTE, 'exclusive'), true)
  assert.equal(native.lockByte(a, BYTE, 'exclusive'), true)
  assert.deepEqual([native.lockByte(b, BYTE, 'exclusive'), native.lockByte(b, BYTE, 'shared')], [false, false])
  assert.deepEqual([native.lockByte(b, BYTE - 1n, 'exclusive'), native.lockByte(b, BYTE + 1n, 'exclusive')], [true, true])
  assert.equal(native.lockByte(a, BYTE, 'shared'), true)
  assert.deepEqual([native.lockByte(b, BYTE, 'shared'), native.lockByte(c, BYTE, 'exclusive')], [true, false])
  assert.equal(native.lockByte(a, BYTE, 'none'), true)
  assert.equal(native.lockByte(c, BYTE, 'exclusive'), false)
  assert.equal(native.lockByte(b, BYTE, 'none'), true)
  assert.equal(native.lockByte(c, BYTE, 'exclusive'), true)
})

test('a lock does not go when another descriptor of the file is closed, as POSIX record locks do', (t) => {
  const path = join(tempDirectory(t), 'locks')
  writeFileSync(path, '')
  const [holder, other] = [openSync(path, 'r+'), openSync(path, 'r+')]
  assert.deepEqual([native.lockByte(holder, BYTE, 'exclusive'), native.lockFile(holder, 'exclusive')], [true, true])
  closeSync(openSync(path, 'r+'))
  assert.deepEqual([native.lockByte(other, BYTE, 'exclusive'), native.lockFile(other, 'exclusive')], [false, false])
  closeSync(holder)
  assert.deepEqual([native.lockByte(other, BYTE, 'exclusive'), native.lockFile(other, 'exclusive')], [true, true])
  closeSync(other)
})

test('a file is locked exclusively or shared, and may change from one to the other', (t) => {
  const [a = -1, b = -1] = openings(t, 2)
  assert.deepEqual([native.lockFile(a, 'shared'), native.lockFile(b, 'shared')], [true, true])
  assert.equal(native.lockFile(a, 'exclusive'), false)
  assert.equal(native.lockFile(b, 'none'), true)
  assert.equal(native.lockFile(a, 'exclusive'), true)
  assert.equal(native.lockFile(b, 'shared'), false)
})

const HOLDER = `
  const native = require(process.env.ADDON ?? require('node:worker_threads').workerData.addon)
  const path = process.env.LOCKS ?? require('node:worker_threads').workerData.path
  const fd = require('node:fs').openSync(path, 'r+')
  const held = native.lockFile(fd, 'exclusive') && native.lockByte(fd, ${BYTE}n, 'exclusive')
`

test('the locks of a process go with it, however it ends, and not with a program that it starts', async (t) => {
  const path = join(tempDirectory(t), 'locks')
  writeFileSync(path, '')
  const fd = openSync(path, 'r+')
  t.after(() => closeSync(fd))
  // What it starts lives on: the descriptor must not have gone along.
  const program = `${HOLDER}; const { spawn } = require('node:child_process')
    const child = spawn('sleep', ['60'], { detached: true, stdio: 'ignore' })
    child.once('spawn', () => console.log(held, child.pid)); setInterval(() => {}, 1000)`
  const holder = spawn(process.execPath, ['-e', program], {
    env: { ...process.env, LOCKS: path, ADDON: addonPath() },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [line] = (await once(holder.stdout, 'data')) as [Buffer]
  const [held, started] = line.toString().trim().split(' ')
  t.after(() => process.kill(Number(started), 'SIGKILL'))
  assert.equal(held, 'true')
  assert.deepEqual([native.lockByte(fd, BYTE, 'shared'), native.lockFile(fd, 'shared')], [false, false])
  holder.kill('SIGKILL')
  await once(holder, 'exit')
  assert.doesNotThrow(() => process.kill(Number(started), 0))
  assert.deepEqual([native.lockByte(fd, BYTE, 'exclusive'), native.lockFile(fd, 'exclusive')], [true, true])
})

test('a Worker has locks of its own', async (t) => {
  const path = join(tempDirectory(t), 'locks')
  writeFileSync(path, '')
  const fd = openSync(path, 'r+')
  t.after(() => closeSync(fd))
  const worker = new Worker(
    `${HOLDER}; require('node:worker_threads').parentPort.on('message', () => { require('node:fs').closeSync(fd); process.exit() }).postMessage(held)`,
    {
      eval: true,
      workerData: { addon: addonPath(), path },
    },
  )
  assert.deepEqual(await once(worker, 'message'), [true])
  assert.deepEqual([native.lockByte(fd, BYTE, 'shared'), native.lockFile(fd, 'shared')], [false, false])
  worker.postMessage('end')
  await once(worker, 'exit')
  assert.deepEqual([native.lockByte(fd, BYTE, 'exclusive'), native.lockFile(fd, 'exclusive')], [true, true])
})

test('what is no lock is refused', (t) => {
  const [fd = -1] = openings(t, 1)
  const readOnly = openSync(__filename, 'r')
  t.after(() => closeSync(readOnly))
  assert.throws(() => native.lockByte(readOnly, 0n, 'exclusive'), { syscall: 'fcntl(F_OFD_SETLK)', code: 'EBADF' })
  assert.throws(() => native.lockByte(fd, -1n, 'exclusive'), { syscall: 'fcntl(F_OFD_SETLK)', code: 'EINVAL' })
  assert.throws(() => native.lockFile(0x7ffffff, 'shared'), { syscall: 'flock', code: 'EBADF' })
  // @ts-expect-error what the compiler refuses, the addon does too
  assert.throws(() => native.lockFile(fd, 'both'), TypeError)
  // @ts-expect-error a number is no offset
  assert.throws(() => native.lockByte(fd, 1, 'shared'), TypeError)
})

test('a directory is opened close-on-exec, and not through a symbolic link at any place of its path', (t) => {
  const root = tempDirectory(t)
  mkdirSync(join(root, 'real'))
  mkdirSync(join(root, 'real', 'inner'))
  symlinkSync('real', join(root, 'link'))
  writeFileSync(join(root, 'file'), '')
  const fd = native.openDirectory(join(root, 'real', 'inner'))
  const flags = Number.parseInt(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8').match(/^flags:\s+(\d+)/m)?.[1] ?? '0', 8)
  native.closeFd(fd)
  assert.ok(flags & 0o2000000)
  assert.throws(() => native.openDirectory(join(root, 'link')), { syscall: 'openat2', code: 'ELOOP' })
  assert.throws(() => native.openDirectory(join(root, 'link', 'inner')), { syscall: 'openat2', code: 'ELOOP' })
  assert.throws(() => native.openDirectory('/proc/self/cwd'), { syscall: 'openat2', code: 'ELOOP' })
  assert.throws(() => native.openDirectory(join(root, 'file')), { syscall: 'openat2', code: 'ENOTDIR' })
  assert.throws(() => native.openDirectory(join(root, 'absent')), { syscall: 'openat2', code: 'ENOENT' })
})

test('two processes of one memory are told from a process and its fork', needs({ programs: ['gcc'] }), async (t) => {
  const target = await Target.start(t, buildTarget(t, 'kin'))
  const [copy, same] = [await target.askNumber('fork'), await target.askNumber('share')]
  assert.equal(native.sameAddressSpace(target.pid, target.pid), true)
  assert.equal(native.sameAddressSpace(target.pid, same), true)
  assert.equal(native.sameAddressSpace(same, target.pid), true)
  assert.equal(native.sameAddressSpace(target.pid, copy), false)
  assert.equal(native.sameAddressSpace(target.pid, process.pid), false)
  assert.throws(() => native.sameAddressSpace(target.pid, 0x7fffffff), { syscall: 'kcmp', code: 'ESRCH' })
})
