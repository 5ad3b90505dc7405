/**
 * What is done about leases when not everything can be had: no descriptor, no right to look, a directory that somebody meddles with, agents that come and go in between. Whatever it
 * is, a living owner is never taken for dead, and no lease goes before its claim was seen to.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import fs, { mkdirSync, readdirSync, rmdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { pino } from 'pino'
import { LeaseDirectory } from '../../lib/counter/lease-directory.js'
import { LeaseOwner } from '../../lib/counter/lease-owner.js'
import { recoverOrphans } from '../../lib/counter/recover.js'
import { childLogger, type Logger } from '../../lib/log.js'
import { loadNative, type Native } from '../../lib/native.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { refused } from '../support/tracing.js'
import { CLAIMED, outcomes, scene } from './orphans.js'

const ROOT = needs()
const GCC = needs({ programs: ['gcc'] })

const CLAIM = {
  target: { pid: 77, startTime: 123n, space: { pidNamespace: '4026531836', pid: 77, fingerprint: '0'.repeat(32) } },
  file: { device: 1n, inode: 2n, path: '/bin/a' },
  counters: [],
}

function opened(t: TestContext): LeaseDirectory {
  const directory = LeaseDirectory.open(loadNative(), leaseDirectory(), 'create')
  t.after(() => directory.close())
  return directory
}

/** A logger that keeps what it is told. */
function listening(): { log: Logger; lines: () => Array<{ msg: string }> } {
  const lines: string[] = []
  return { log: pino({}, { write: (line: string) => lines.push(line) }), lines: () => lines.map((line) => JSON.parse(line)) }
}

/** Runs a program that has `directory`, `log`, `recover`, `LeaseOwner` and `native`, through a command if need be. */
function elsewhere(path: string, program: string, command: readonly string[] = []): string {
  const lib = join(__dirname, '..', '..', 'lib')
  const text = `
    const { LeaseDirectory } = require(${JSON.stringify(join(lib, 'counter', 'lease-directory'))})
    const { LeaseOwner } = require(${JSON.stringify(join(lib, 'counter', 'lease-owner'))})
    const { recoverOrphans } = require(${JSON.stringify(join(lib, 'counter', 'recover'))})
    const { loadNative } = require(${JSON.stringify(join(lib, 'native'))})
    const native = loadNative()
    const log = { warn: () => undefined }
    void (async () => {
      const directory = LeaseDirectory.open(native, ${JSON.stringify(path)}, 'create')
      const recover = async () => (await recoverOrphans(native, directory, log)).map(({ outcome }) => outcome)
      ${program}
    })()`
  const [name = '', ...args] = [...command, process.execPath, ...(__filename.endsWith('.ts') ? ['--import', 'tsx'] : []), '-e', text]
  const { stdout, stderr } = spawnSync(name, args, { encoding: 'utf8', cwd: join(__dirname, '..', '..') })
  return stdout + stderr
}

test('a process without a descriptor left takes nobody for dead, and nothing for corrupt', needs({ programs: ['prlimit'] }), (t) => {
  const directory = opened(t)
  const owner = LeaseOwner.create(directory, loadNative())
  owner.write(CLAIM)
  const answer = elsewhere(
    directory.path,
    `const { openSync, closeSync } = require('node:fs')
     const asked = []
     for (const ask of [() => directory.list(), () => directory.owners(), () => LeaseOwner.create(directory, native, log), () => recover()]) {
       const taken = []
       // All, and then all but one, with which names can be read and files not be opened.
       for (;;) try { taken.push(openSync('/dev/null')) } catch { break }
       for (let free = 0; free < 2; free++) {
         try { await ask(); asked.push('answered') } catch (error) { asked.push(error.code) }
         const fd = taken.pop(); closeSync(fd)
       }
       for (const fd of taken) closeSync(fd)
     }
     console.log(asked.join(' '))`,
    ['prlimit', '--nofile=64'],
  )
  assert.match(answer, /^(ERR_UPROBE_LIMIT|answered)( (ERR_UPROBE_LIMIT|answered)){7}\n$/)
  assert.match(answer, /^ERR_UPROBE_LIMIT \S+ ERR_UPROBE_LIMIT \S+ ERR_UPROBE_LIMIT \S+ ERR_UPROBE_LIMIT/)
  assert.deepEqual(
    directory.list().map(({ ownerAlive, lease }) => [ownerAlive, lease === null]),
    [[true, false]],
  )
  owner.close()
})

test('a claim whose lease nobody would read back is not recorded, and not made', ROOT, (t) => {
  const directory = opened(t)
  const owner = LeaseOwner.create(directory, loadNative())
  const counter = { provider: 't', name: 'site', refCtrOffset: 0x4010n, vaddr: 0x5010n, address: 0x7f00_0000_5010n }
  const claimOf = (counters: number) => ({ ...CLAIM, counters: Array.from({ length: counters }, () => counter) })
  assert.throws(() => owner.write(claimOf(60_000)), { code: 'ERR_UPROBE_TOO_MANY_SITES', message: /^60000 counters / })
  assert.deepEqual(directory.list(), [])
  owner.write(claimOf(20_000))
  assert.equal(directory.list()[0]?.lease?.counters.length, 20_000)
  owner.close()
})

for (const code of ['EMFILE', 'ENFILE', 'ENOMEM'] as const) {
  test(`${code} while an owner is asked for is no answer: it is neither dead nor alive`, ROOT, (t) => {
    const directory = opened(t)
    const owner = LeaseOwner.create(directory, loadNative())
    owner.write(CLAIM)
    const { openSync } = fs
    // Another thread of the process may take the last descriptor at any moment.
    t.mock.method(fs, 'openSync', (...args: Parameters<typeof openSync>) => {
      if (!String(args[0]).includes('/owner-')) return openSync(...args)
      throw Object.assign(new Error(code), { code, errno: -constants.errno[code], syscall: 'open' })
    })
    assert.throws(() => directory.list(), { code: 'ERR_UPROBE_LIMIT' })
    assert.throws(() => directory.owners(), { code: 'ERR_UPROBE_LIMIT' })
    t.mock.restoreAll()
    assert.equal(directory.list()[0]?.ownerAlive, true)
    owner.close()
  })
}

test('an owner that comes while leases are listed is alive', ROOT, () => {
  const native = loadNative()
  let before: (() => void) | null = null
  // The moment at which somebody is asked whether it lives.
  const watched = new Proxy(native, {
    get: (object, name: keyof Native) => {
      if (name === 'lockFile') before?.()
      return object[name]
    },
  })
  const path = leaseDirectory()
  const [directory, other] = [LeaseDirectory.open(watched, path, 'create'), LeaseDirectory.open(native, path, 'create')]
  const [first, late] = [LeaseOwner.create(other, native), [] as LeaseOwner[]]
  first.write(CLAIM)
  before = () => {
    before = null
    const owner = LeaseOwner.create(other, native)
    owner.write(CLAIM)
    late.push(owner)
  }
  for (let look = 0; look < 2; look++) {
    assert.deepEqual(
      directory.list().filter(({ ownerAlive }) => !ownerAlive),
      [],
    )
  }
  assert.equal(late.length, 1)
  for (const owner of [first, ...late]) owner.close()
  for (const one of [directory, other]) one.close()
})

test('what stands in the place of a lease and cannot be removed does not keep the others from being seen to', GCC, async (t) => {
  const { directory, claim, value, write, orphan } = await scene(t)
  mkdirSync(directory.pathOf('lease-1-1-00000000-0.json'))
  symlinkSync('/etc/passwd', directory.pathOf('lease-1-1-00000000-1.json'))
  mkdirSync(directory.pathOf('owner-1-1-00000000.json'))
  writeFileSync(directory.pathOf('lease-1-1-00000000-2.json'), '')
  write(CLAIMED)
  orphan(claim)
  const { log, lines } = listening()
  const recovered = await recoverOrphans(loadNative(), directory, log)
  assert.deepEqual(outcomes(recovered), [
    ['corrupt', []],
    ['corrupt', []],
    ['corrupt', []],
    ['cleared', [[CLAIMED, 0]]],
  ])
  assert.equal(value(), 0)
  assert.deepEqual(leaseFiles(directory.path), ['lease.json', 'locks', 'owner.json'])
  assert.ok(lines().some(({ msg }) => msg === 'a file of a dead agent cannot be removed'))
})

test('a locks file that is none is refused, and one that is gone is made again', ROOT, async (t) => {
  const directory = opened(t)
  const locks = join(directory.path, 'locks')
  LeaseOwner.create(directory, loadNative()).close()
  for (const make of [
    () => mkdirSync(locks),
    () => symlinkSync('/dev/null', locks),
    () => assert.equal(spawnSync('mkfifo', [locks]).status, 0),
  ]) {
    rmSync(locks, { recursive: true })
    make()
    await refused((async () => LeaseOwner.create(directory, loadNative()))(), 'ERR_UPROBE_LEASE')
    writeFileSync(join(directory.path, 'lease-1-1-00000000-2.json'), '')
    await refused(recoverOrphans(loadNative(), directory, childLogger(false, 'test')), 'ERR_UPROBE_LEASE')
  }
  rmSync(locks, { recursive: true })
  assert.deepEqual(outcomes(await recoverOrphans(loadNative(), directory, childLogger(false, 'test'))), [['corrupt', []]])
  assert.deepEqual(leaseFiles(directory.path), ['locks'])
})

test('a process that may not be looked at keeps its lease until somebody may', needs({ programs: ['gcc', 'setpriv'] }), async (t) => {
  const { directory, claim, value, write, orphan, recover } = await scene(t)
  write(CLAIMED)
  orphan(claim)
  // Without capabilities root may still enter the directory, which is its own, but not look into a process that has more than itself.
  const answer = elsewhere(directory.path, 'console.log((await recover()).join(" "))', [
    ...['setpriv', '--inh-caps=-all', '--ambient-caps=-all', '--bounding-set=-all'],
  ])
  assert.equal(answer, 'unreachable\n')
  assert.deepEqual([value(), leaseFiles(directory.path).filter((name) => name === 'lease.json').length], [CLAIMED, 1])
  assert.deepEqual(outcomes(await recover()), [['cleared', [[CLAIMED, 0]]]])
})

test('a directory that cannot be written any more does not keep a claim from being given back', ROOT, (t) => {
  const directory = opened(t)
  const { log, lines } = listening()
  const owner = LeaseOwner.create(directory, loadNative(), log)
  const lease = owner.write(CLAIM)
  for (const name of readdirSync(directory.path)) rmSync(join(directory.path, name))
  rmdirSync(directory.path)
  owner.release(lease)
  assert.equal(lines().length, 1)
  owner.remove(lease)
  owner.close()
  assert.throws(() => LeaseOwner.create(directory, loadNative()), { code: 'ERR_UPROBE_LEASE' })
})

test('what an agent that died while it wrote has left goes after a minute, and not before', ROOT, async (t) => {
  const directory = opened(t)
  LeaseOwner.create(directory, loadNative()).close()
  const recover = async () => outcomes(await recoverOrphans(loadNative(), directory, childLogger(false, 'test')))
  writeFileSync(directory.pathOf('new-owner-1-1-00000000.json'), '')
  writeFileSync(directory.pathOf('new-lease-1-1-00000000-0.json'), '')
  assert.deepEqual([await recover(), leaseFiles(directory.path)], [[], ['locks', 'new.json', 'new.json']])
  t.mock.method(Date, 'now', () => performance.timeOrigin + performance.now() + 61_000)
  assert.deepEqual([await recover(), leaseFiles(directory.path)], [[], ['locks']])
})

test('another agent that recovers and does not come to an end is waited for, but not for ever', ROOT, async (t) => {
  const directory = opened(t)
  const owner = LeaseOwner.create(directory, loadNative())
  owner.write(CLAIM)
  owner.close()
  const fd = directory.openLocks()
  assert.equal(loadNative().lockByte(fd, 0n, 'exclusive'), true)
  await refused(recoverOrphans(loadNative(), directory, childLogger(false, 'test')), 'ERR_UPROBE_LEASE')
  loadNative().closeFd(fd)
  assert.deepEqual(outcomes(await recoverOrphans(loadNative(), directory, childLogger(false, 'test'))), [['nothing-left', []]])
})
