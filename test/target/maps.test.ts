import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import { describe, it } from 'node:test'
import { codeAddress, counterAddress, mappingIdentity, mappingsOf, mapsFile, parseMaps, readMaps } from '../../lib/target/maps.js'
import { parseStat } from '../../lib/target/process.js'

const MAPS = `55d0c0e00000-55d0c0e21000 r--p 00000000 fd:00 1234                       /srv/a b
55d0c0e21000-55d0c0e41000 r-xp 00021000 fd:00 1234                       /srv/a b
55d0c0e41000-55d0c0e42000 rw-p 00041000 fd:00 1234                       /srv/a b
55d0c0e42000-55d0c0e43000 rw-s 00042000 fd:00 1234                       /srv/a b
55d0c0e43000-55d0c0e44000 r-xp 00000000 fd:00 99                         /srv/old\\012name (deleted)
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`

describe('parseMaps', () => {
  const mappings = parseMaps(MAPS)

  it('keeps the mappings of files, and no others', () => assert.equal(mappings.length, 5))

  it('reads addresses, permissions and offsets', () => {
    assert.deepEqual(mappings[1], {
      start: 0x55d0c0e21000n,
      end: 0x55d0c0e41000n,
      fileOffset: 0x21000n,
      readable: true,
      writable: false,
      executable: true,
      shared: false,
      fileKey: 'fd:00 1234',
      path: '/srv/a b',
      deleted: false,
    })
  })

  it('takes the suffix of a deleted file and the escape of a newline out of the path', () => {
    assert.equal(mappings[4]?.path, '/srv/old\nname')
    assert.equal(mappings[4]?.deleted, true)
  })

  it('finds code only in executable mappings', () => {
    const own = mappings.slice(0, 4)
    assert.equal(codeAddress(own, 0x21010n), 0x55d0c0e21010n)
    assert.equal(codeAddress(own, 0x40fffn), 0x55d0c0e40fffn)
    assert.equal(codeAddress(own, 0x41000n), null)
    assert.equal(codeAddress(own, 0x10n), null)
  })

  it('finds a counter only in private writable mappings', () => {
    const own = mappings.slice(0, 4)
    assert.equal(counterAddress(own, 0x41008n), 0x55d0c0e41008n)
    assert.equal(counterAddress(own, 0x42008n), null, 'a shared mapping')
    assert.equal(counterAddress(own, 0x10n), null, 'a read-only mapping')
  })
})

describe('the identity of a mapping', () => {
  it('is that of the mapped file as stat gives it', {
    skip: process.getuid?.() === 0 ? false : 'reading map_files needs root',
  }, async () => {
    const own = `/proc/${process.pid}`
    const mappings = await readMaps(own)
    const node = statSync(process.execPath, { bigint: true })
    const code = mappings.find((m) => m.executable && m.path === process.execPath)
    assert.ok(code)
    assert.deepEqual(mappingIdentity(own, code), { device: node.dev, inode: node.ino })
    const all = mappingsOf(own, mappings, { device: node.dev, inode: node.ino })
    assert.deepEqual(new Set(all.map((m) => m.path)), new Set([process.execPath]))
  })

  it('is asked of another mapping of the file where one changed after it was read, and is not denied where all did', {
    skip: process.getuid?.() === 0 ? false : 'reading map_files needs root',
  }, async () => {
    const own = `/proc/${process.pid}`
    const { dev, ino } = statSync(process.execPath, { bigint: true })
    const identity = { device: dev, inode: ino }
    const other = { device: dev, inode: ino + 1n }
    const ofNode = (await readMaps(own)).filter(({ path }) => path === process.execPath)
    const changed = (m: (typeof ofNode)[number]) => ({ ...m, end: m.end + 0x1000n })
    const oneChanged = ofNode.map((m, index) => (index === 0 ? changed(m) : m))
    assert.deepEqual(mappingsOf(own, oneChanged, identity), oneChanged)
    assert.deepEqual([mapsFile(own, oneChanged, identity), mapsFile(own, oneChanged, other)], [true, false])
    const allChanged = ofNode.map(changed)
    assert.deepEqual(mappingsOf(own, allChanged, identity), [])
    assert.deepEqual([mapsFile(own, allChanged, identity), mapsFile(own, allChanged, other)], [null, null])
    assert.equal(mapsFile(own, [], identity), false)
  })
})

describe('parseStat', () => {
  it('is not misled by a command name with parentheses, spaces and digits', () => {
    const fields = Array.from({ length: 49 }, (_, index) => String(index + 4))
    assert.deepEqual(parseStat(`42 (a) Z 7 (b) R ${fields.join(' ')}\n`), {
      state: 'R',
      parent: 4,
      exiting: false,
      kernel: false,
      startTime: 22n,
      startCode: 26n,
    })
  })

  it('sees by its flags that a thread exits before it is a zombie', () => {
    const fields = Array.from({ length: 49 }, (_, index) => (index === 5 ? String(0x40_0004) : String(index + 4)))
    assert.equal(parseStat(`42 (a) R ${fields.join(' ')}\n`).exiting, true)
  })

  it('tells a thread of the kernel by its flags', () => {
    const text = (flags: number): string =>
      `42 (a) S ${Array.from({ length: 49 }, (_, at) => String(at === 5 ? flags : at + 4)).join(' ')}\n`
    assert.deepEqual([parseStat(text(0x20_8040)).kernel, parseStat(text(0x40_0000)).kernel], [true, false])
  })
})
