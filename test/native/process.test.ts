import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, readlinkSync, readSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { tempDirectory } from '../support/temp.js'
import { native } from './kernel.js'

/** The whole text behind an fd, which is closed. */
function textOf(fd: number): string {
  const buffer = Buffer.alloc(100)
  const bytes = readSync(fd, buffer)
  native.closeFd(fd)
  return buffer.toString('utf8', 0, bytes)
}

test('resolves the links of a container below its root', (t) => {
  const root = tempDirectory(t)
  mkdirSync(join(root, 'etc'))
  writeFileSync(join(root, 'etc', 'name'), 'inside')
  symlinkSync('/etc/name', join(root, 'absolute'))
  symlinkSync('../../../../../../etc/name', join(root, 'etc', 'relative'))
  assert.equal(textOf(native.openInRoot(root, '/absolute')), 'inside')
  assert.equal(textOf(native.openInRoot(root, 'absolute')), 'inside')
  assert.equal(textOf(native.openInRoot(root, '/etc/relative')), 'inside')
  assert.equal(textOf(native.openInRoot(root, '/../../../../etc/name')), 'inside')
})

test('refuses links that lead anywhere, and roots that are none', (t) => {
  const root = tempDirectory(t)
  symlinkSync('/proc/self/exe', join(root, 'magic'))
  assert.throws(() => native.openInRoot(root, 'magic'), { syscall: 'openat2', code: 'ENOENT' })
  assert.throws(() => native.openInRoot('/', '/proc/self/exe'), { syscall: 'openat2', code: 'ELOOP' })
  assert.throws(() => native.openInRoot(join(root, 'missing'), '/x'), { syscall: 'open', code: 'ENOENT' })
  assert.throws(() => native.openInRoot('/proc/self/exe', '/x'), { syscall: 'open', code: 'ENOTDIR' })
})

test('opens a FIFO without waiting for its writer', (t) => {
  const fifo = join(tempDirectory(t), 'fifo')
  execFileSync('mkfifo', [fifo])
  native.closeFd(native.openFile(fifo))
  assert.throws(() => native.openFile(`${fifo}/x`), { syscall: 'open', code: 'ENOTDIR', errno: 20 })
})

test('reads what is in the page cache, or nothing where a file system cannot tell', (t) => {
  const path = join(tempDirectory(t), 'text')
  writeFileSync(path, 'cached')
  const fd = native.openFile(path)
  t.after(() => native.closeFd(fd))
  const bytes = Buffer.alloc(10)
  const got = native.readCached(fd, bytes, 2n)
  assert.equal(bytes.toString('latin1', 0, got), got === 0 ? '' : 'ched')
  assert.equal(native.readCached(fd, bytes, 6n), 0, 'behind its end')
  const state = native.openFile('/proc/self/stat')
  t.after(() => native.closeFd(state))
  assert.equal(native.readCached(state, bytes, 0n), 0, 'what is no file of a disk')
  assert.equal(native.readCached(0x7fffffff, bytes, 0n), 0, 'no descriptor')
  assert.throws(() => native.readCached(fd, new Uint16Array(2) as unknown as Uint8Array, 0n), /bytes must be a Uint8Array/)
  assert.throws(() => native.readCached(fd, bytes, -1n), /position must be not negative/)
})

test('every fd is close-on-exec', () => {
  for (const fd of [native.openFile('/'), native.openInRoot('/', '/'), native.pidfdOpen(process.pid)]) {
    const flags = Number.parseInt(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8').match(/^flags:\s+(\d+)/m)?.[1] ?? '0', 8)
    assert.ok(flags & 0o2000000, readlinkSync(`/proc/self/fd/${fd}`))
    native.closeFd(fd)
    assert.throws(() => native.closeFd(fd), { syscall: 'close', code: 'EBADF' })
  }
})

test('refuses a process that does not exist', () => {
  assert.throws(() => native.pidfdOpen(0x7fffffff), { syscall: 'pidfd_open', code: 'ESRCH' })
  assert.throws(() => native.pidfdOpen(0), { name: 'TypeError' })
})

test('counts the possible CPUs as the kernel lists them', () => {
  const list = readFileSync('/sys/devices/system/cpu/possible', 'utf8').trim()
  let count = 0
  for (const range of list.split(',')) {
    const [first = '', last = first] = range.split('-')
    count += Number(last) - Number(first) + 1
  }
  assert.equal(native.possibleCpus(), count)
})

test('asks for the generation of the uprobe system call', () => {
  const ENXIO = 6
  const ENOSYS = 38
  const EPROTO = 71
  const known = process.arch === 'x64' ? [ENXIO, EPROTO, ENOSYS] : [0]
  assert.ok(known.includes(native.uprobeSyscallErrno()), String(native.uprobeSyscallErrno()))
})

test('reads a file of /proc to its end, which comes in pieces', async () => {
  const path = '/proc/self/maps'
  const text = await native.readText(path)
  assert.ok(text.length > 8192)
  // The last mapping stays where it is.
  assert.equal(text.trimEnd().split('\n').at(-1), readFileSync(path, 'utf8').trimEnd().split('\n').at(-1))
  assert.match(text, /^([0-9a-f]+-[0-9a-f]+ .*\n)+$/)
})

test('reads text as Node does, larger than a piece, with what is no UTF-8 in it', async (t) => {
  const path = join(tempDirectory(t), 'text')
  writeFileSync(path, Buffer.concat([Buffer.from('é'.repeat(100_000)), Buffer.from([0xff, 0x61, 0, 0x62])]))
  assert.equal(await native.readText(path), readFileSync(path, 'utf8'))
  writeFileSync(path, '')
  assert.equal(await native.readText(path), '')
})

test('says what cannot be read', async (t) => {
  const directory = tempDirectory(t)
  await assert.rejects(native.readText(join(directory, 'missing')), { syscall: 'open', code: 'ENOENT', errno: 2 })
  await assert.rejects(native.readText(directory), { syscall: 'read', code: 'EISDIR', errno: 21 })
  assert.throws(() => native.readText('a\0b'), { name: 'TypeError', message: /^path must be a string without NUL$/ })
})
