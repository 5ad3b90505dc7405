/**
 * Leases on disk: which directory is trusted, what is read from it, and what happens when it cannot be written.
 *
 * In guests on 5.10 only: it is about files and locks, and takes long.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import test, { type TestContext } from 'node:test'
import fc from 'fast-check'
import { formatCounters, formatLease, type LeaseRecord, parseLease, parseLeaseInSlices } from '../../lib/counter/lease.js'
import { LeaseDirectory } from '../../lib/counter/lease-directory.js'
import { type LeaseClaim, LeaseOwner } from '../../lib/counter/lease-owner.js'
import { Tracer } from '../../lib/index.js'
import { loadNative } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { leaseFiles } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { refused } from '../support/tracing.js'
import { countTurns } from '../support/wait.js'

const ROOT = needs()
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

function makeWithMode(path: string, mode: number): void {
  mkdirSync(path)
  chmodSync(path, mode)
}

function makeForeign(path: string): void {
  mkdirSync(path, 0o700)
  chownSync(path, 65534, 65534)
}

test('a directory is made for us alone, and one that is not there can be ignored', ROOT, (t) => {
  const path = join(folder(t), 'leases')
  assert.equal(open(path, 'ignore'), null)
  opened(t, path)
  assert.equal(statSync(path).mode & 0o7777, 0o700)
  const found = open(path, 'ignore')
  assert.ok(found)
  found.close()
})

for (const [what, prepare] of [
  ['is a symbolic link', (path: string) => symlinkSync(mkdtempSync(join(tmpdir(), 'uprobe-lease-')), path)],
  ['is open to the group', (path: string) => makeWithMode(path, 0o750)],
  ['is open to others', (path: string) => makeWithMode(path, 0o701)],
  ['belongs to somebody else', makeForeign],
  ['is a file', (path: string) => writeFileSync(path, '')],
  ['lies behind a symbolic link', null],
  ['has no directory to be in', null],
] as const) {
  test(`a directory that ${what} is refused, for claiming and for looking`, ROOT, async (t) => {
    let path = join(folder(t), 'leases')
    if (what === 'lies behind a symbolic link') {
      const real = folder(t)
      mkdirSync(join(real, 'leases'), 0o700)
      symlinkSync(real, path)
      path = join(path, 'leases')
    } else if (what === 'has no directory to be in') {
      path = join(path, 'absent', 'leases')
    } else {
      prepare?.(path)
    }
    const { message } = await refused((async () => open(path, 'create'))(), 'ERR_UPROBE_LEASE')
    assert.equal(message.includes(`cannot be made, since ${dirname(path)} is not there (ENOENT)`), what === 'has no directory to be in')
    if (what !== 'has no directory to be in') await refused((async () => open(path, 'ignore'))(), 'ERR_UPROBE_LEASE')
  })
}

test('a lease is there when it was written, names its owner, and is read back as it was', ROOT, (t) => {
  const directory = opened(t, join(folder(t), 'leases'))
  const owner = LeaseOwner.create(directory, loadNative())
  const lease = owner.write(CLAIM)
  const [found, ...others] = directory.list()
  assert.deepEqual(others, [])
  assert.ok(found?.lease)
  const { owner: holder, bootId, sinceNs, sinceTicks, version, ...claim } = found.lease
  assert.deepEqual(claim, CLAIM)
  assert.equal(version, 1)
  assert.deepEqual(
    [holder.pid, holder.package],
    [process.pid, JSON.parse(readFileSync(join(__dirname, '..', '..', 'package.json'), 'utf8')).version],
  )
  assert.equal(bootId, readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim())
  assert.equal(sinceTicks, sinceNs / 10_000_000n)
  assert.deepEqual([found.ownerAlive, found.released], [true, false])
  owner.release(lease)
  owner.release(lease)
  assert.deepEqual(
    directory.list().map(({ released }) => released),
    [true],
  )
  owner.remove(lease)
  owner.remove(lease)
  assert.deepEqual(directory.list(), [])
  owner.close()
  owner.close()
  assert.deepEqual(leaseFiles(directory.path), ['locks'])
})

test('an owner that is closed with leases left is a dead owner', ROOT, (t) => {
  const directory = opened(t, join(folder(t), 'leases'))
  const owner = LeaseOwner.create(directory, loadNative())
  owner.write(CLAIM)
  const other = LeaseOwner.create(directory, loadNative())
  other.write(CLAIM)
  owner.close()
  assert.deepEqual(
    directory
      .list()
      .map(({ ownerId, ownerAlive }) => [ownerId === owner.id, ownerAlive])
      .sort(),
    [
      [false, true],
      [true, false],
    ],
  )
  other.close()
})

test('hostile and broken files are read as corrupt, never followed and never waited for', ROOT, (t) => {
  const directory = opened(t, join(folder(t), 'leases'))
  const at = (n: number): string => directory.pathOf(`lease-1-2-0123abcd-${n}.json`)
  writeFileSync(at(0), '')
  writeFileSync(at(1), '{"version":1')
  writeFileSync(at(2), '[]')
  writeFileSync(at(3), `${'['.repeat(100_000)}`)
  writeFileSync(at(4), '')
  truncateSync(at(4), 2 ** 32)
  symlinkSync('/etc/passwd', at(5))
  mkdirSync(at(6))
  assert.equal(spawnSync('mkfifo', [join(directory.path, 'lease-1-2-0123abcd-7.json')]).status, 0)
  writeFileSync(directory.pathOf('lease-not-a-lease'), '')
  assert.deepEqual(
    directory.list().map(({ lease }) => lease),
    Array.from({ length: 8 }, () => null),
  )
})

test('a lease with any one thing cut or changed is refused, or means the same, also read in slices', async () => {
  const record: LeaseRecord = {
    version: 1,
    owner: { pid: 5, startTime: 6n, comm: 'agent', package: '0.1.0', pidNamespace: '4026531836' },
    bootId: 'boot',
    sinceNs: 1n,
    sinceTicks: 0n,
    ...CLAIM,
  }
  const text = formatLease(record)
  assert.deepEqual(parseLease(text), record)
  assert.deepEqual(await parseLeaseInSlices(text), record)
  const inParts = record.counters.map((counter) => formatCounters([counter])).join(',')
  assert.equal(formatLease(record, inParts), text)
  fc.assert(
    fc.property(fc.nat({ max: text.length - 3 }), (length) => {
      assert.equal(parseLease(text.slice(0, length)), null)
    }),
  )
  for (const [from, to] of [
    ['"version":1', '"version":2'],
    ['"pid":77,"start', '"pid":0,"start'],
    ['"pid":77,"start', '"pid":"77","start'],
    ['0123456789abcdef', '0123456789abcdeg'],
    ['"0x4122"', '"16674"'],
    ['"0x4122"', '"0x41222222222222222"'],
    ['"inode":"5"', '"inode":5'],
    ['"counters":[', '"counters":[1,'],
    ['"provider":"p"', '"provider":["p"]'],
  ] as const) {
    assert.ok(text.includes(from))
    assert.equal(parseLease(text.replace(from, to)), null, to)
    assert.equal(await parseLeaseInSlices(text.replace(from, to)), null, to)
  }
})

/** A record with so many counters, of which `nameOf` gives the names. */
function largeRecord(counters: number, nameOf: (index: number) => string): LeaseRecord {
  const [first] = CLAIM.counters
  assert.ok(first)
  return {
    version: 1,
    owner: { pid: 5, startTime: 6n, comm: 'agent', package: '0.1.0', pidNamespace: '4026531836' },
    bootId: 'boot',
    sinceNs: 1n,
    sinceTicks: 0n,
    ...CLAIM,
    counters: Array.from({ length: counters }, (_, index) => ({ ...first, name: nameOf(index), address: BigInt(2 * index) })),
  }
}

test('what a large lease says behind its counters counts as well', async () => {
  const record = largeRecord(2000, (index) => `site${index}`)
  const text = formatLease(record)
  const behind = `${text.replace('"version":1,', '').slice(0, -3)}],"version":1,"more":[]}\n`
  assert.deepEqual(parseLease(behind), record)
  assert.deepEqual(await parseLeaseInSlices(behind), record)
})

test('a lease of thousands of counters is parsed in pieces, with turns of the event loop in between', async (t) => {
  const record = largeRecord(5000, (index) => `site${index}`)
  const text = formatLease(record)
  const { parse } = JSON
  const loop = countTurns()
  t.after(() => loop.stop())
  let longest = 0
  let length = 0
  let now = process.hrtime.bigint()
  t.mock.method(JSON, 'parse', (piece: string) => {
    longest = Math.max(longest, piece.length)
    length += piece.length
    // Each takes a millisecond, however fast the machine is.
    now += 1_000_000n
    return parse(piece)
  })
  t.mock.method(process.hrtime, 'bigint', () => now)
  const read = await parseLeaseInSlices(text)
  t.mock.restoreAll()
  assert.ok(longest < 17 * 1024, `${longest} characters at a time`)
  assert.ok(length < text.length + 1024, `${length} characters of ${text.length}`)
  assert.ok(loop.turns >= Math.floor(text.length / (5 * 16 * 1024)), `${loop.turns} turns`)
  assert.deepEqual(read, record)
})

/** What a piece of the text of a lease could be taken for. */
const MISLEADING = ['},{"provider":', '},{"provider":"p"', ',"counters":[', ']}\n', '"', '\\', '\\"},{\\"provider\\":', '\u{1f600}']

test('a large lease is in pieces what it is as one, whatever its names are and wherever it is cut or changed', async () => {
  const anyName = fc.array(fc.oneof(fc.constantFrom(...MISLEADING), fc.string({ maxLength: 8 })), { maxLength: 4 })
  const anyNames = fc.array(
    anyName.map((parts) => parts.join('')),
    { minLength: 1, maxLength: 7 },
  )
  await fc.assert(
    fc.asyncProperty(anyNames, fc.nat(), fc.constantFrom(...MISLEADING, ',', '1', ''), async (names, at, change) => {
      const record = largeRecord(600, (index) => names[index % names.length] ?? '')
      const text = formatLease(record)
      assert.deepEqual(await parseLeaseInSlices(text), record)
      const place = at % text.length
      for (const other of [
        text.slice(0, place),
        text.slice(0, place) + change + text.slice(place),
        text.slice(0, place) + text.slice(place + 1),
      ]) {
        assert.deepEqual(await parseLeaseInSlices(other), parseLease(other))
      }
    }),
    { numRuns: 40 },
  )
})

test('a large lease is read however it is laid out', async () => {
  const record = largeRecord(600, (index) => `site${index}`)
  const text = formatLease(record)
  const { counters, ...others } = JSON.parse(text) as { counters: unknown[] } & Record<string, unknown>
  const owner = { ...(others.owner as object), counters: [1], more: 2 }
  for (const [what, other] of [
    ['in lines', JSON.stringify({ ...others, counters }, null, 1)],
    ['counters first', `${JSON.stringify({ counters, ...others })}\n`],
    ['counters also elsewhere, first', `${JSON.stringify({ ...others, owner, counters })}\n`],
    ['counters also elsewhere, then', `${JSON.stringify({ ...others, counters, owner })}\n`],
    ['counters twice', text.replace('"bootId"', '"a":1,"counters":[2],"bootId"')],
    ['no end of a line', text.trimEnd()],
    ['another order in a counter', text.replaceAll(/"provider":"p","name":("[^"]+")/g, '"name":$1,"provider":"p"')],
  ] as const) {
    assert.notEqual(other, text)
    assert.deepEqual(await parseLeaseInSlices(other), record, what)
    assert.deepEqual(parseLease(other), record, what)
  }
  for (const [what, other] of [
    ['cut off', text.slice(0, -4)],
    ['another end', `${text.slice(0, -3)}abc`],
    ['no beginning', text.slice(text.indexOf(',"counters"'))],
    ['a comma too many', `${text.slice(0, -3)},${text.slice(-3)}`],
    ['another version', text.replace('"version":1', '"version":2')],
    ['an odd address', text.replace('"address":"0x2"', '"address":"0x3"')],
    ['an odd address at the end', text.replace(/"(0x[0-9a-f]+)"\}\]\}\n$/, '"$11"}]}\n')],
  ] as const) {
    assert.notEqual(other, text)
    assert.equal(await parseLeaseInSlices(other), null, what)
    assert.equal(parseLease(other), null, what)
  }
})

test('tracers of one process each have an owner of their own', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = join(folder(t), 'leases')
  const tracers = [new Tracer({ leaseDir }), new Tracer({ leaseDir })]
  for (const tracer of tracers) await tracer.attach('usdt:t:gated', { pid: target.pid, counter: 'msb' })
  assert.deepEqual(leaseFiles(leaseDir), ['lease.json', 'lease.json', 'locks', 'owner.json', 'owner.json', 'owner.sock', 'owner.sock'])
  await tracers[0]?.close()
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  await tracers[1]?.close()
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.deepEqual(leaseFiles(leaseDir), ['locks'])
})
