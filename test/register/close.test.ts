/**
 * Closing registrations where the closing thread cannot serve. What the thread itself does is in test/native/closer.test.ts.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { it } from 'node:test'
import type { Native } from '../../lib/native.js'
import { closeRegistrations } from '../../lib/register/close.js'
import { needs } from '../support/needs.js'

const NEEDS = needs({ programs: ['prlimit'] })

const EAGAIN = 11
const EMFILE = 24
const EBADF = 9

function failure(syscall: string, errno: number): Error {
  return Object.assign(new Error(syscall), { syscall, errno })
}

/** Of which `closeFds` fails, and so does `closeFd` of the `bad` fds. */
function failing(closeFds: Native['closeFds'], bad: readonly number[] = []): { native: Native; closed: number[] } {
  const closed: number[] = []
  const closeFd = (fd: number): void => {
    if (bad.includes(fd)) throw failure('close', EBADF)
    closed.push(fd)
  }
  return { native: { closeFds, closeFd } as Partial<Native> as Native, closed }
}

// In a process of its own: with its limit reached it could not even start the program that raises the limit again.
it('closes on the event loop where the limit of descriptors is reached', NEEDS, () => {
  const lib = join(__dirname, '..', '..', 'lib')
  const program = `
    const { execFileSync } = require('node:child_process')
    const { fstatSync } = require('node:fs')
    const { loadNative } = require(${JSON.stringify(join(lib, 'native.ts'))})
    const { closeRegistrations } = require(${JSON.stringify(join(lib, 'register', 'close.ts'))})
    const native = loadNative()
    const fds = [native.openFile('/dev/null'), native.openFile('/dev/null')]
    execFileSync('prlimit', ['--nofile=3:', '--pid', String(process.pid)])
    const open = () => fds.filter((fd) => {
      try {
        return fstatSync(fd)
      } catch {
        return false
      }
    }).length
    native.closeFds(fds).catch(async ({ syscall, code }) => {
      const before = open()
      await closeRegistrations(native, fds)
      console.log(JSON.stringify({ refused: syscall + ' ' + code, before, after: open() }))
    })`
  const { stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', '-e', program], { encoding: 'utf8' })
  assert.equal(stderr, '')
  assert.deepEqual(JSON.parse(stdout), { refused: 'eventfd EMFILE', before: 2, after: 0 })
})

// The doorbell's failure is thrown, the thread's rejects the promise.
it('closes on the event loop where nobody could be told of the end', async () => {
  const { native, closed } = failing(() => {
    throw failure('eventfd', EMFILE)
  })
  await closeRegistrations(native, [3, 4, 5])
  assert.deepEqual(closed, [3, 4, 5])
})

it('closes on the event loop where no thread can be started', async () => {
  const { native, closed } = failing(() => Promise.reject(failure('pthread_create', EAGAIN)))
  await closeRegistrations(native, [3, 4, 5])
  assert.deepEqual(closed, [3, 4, 5])
})

it('closes the others there when one fails, and tells of it', async () => {
  const { native, closed } = failing(() => Promise.reject(failure('pthread_create', EAGAIN)), [3])
  await assert.rejects(closeRegistrations(native, [3, 4, 5]), { syscall: 'close', errno: EBADF })
  assert.deepEqual(closed, [4, 5])
})

it('closes nothing twice when the thread has closed them', async () => {
  const { native, closed } = failing(() => Promise.reject(failure('close', EBADF)))
  await assert.rejects(closeRegistrations(native, [3, 4, 5]), { syscall: 'close' })
  assert.deepEqual(closed, [])
})
