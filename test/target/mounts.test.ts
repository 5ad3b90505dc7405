/**
 * Which files may never answer, told without asking for them.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'
import { parseMaps } from '../../lib/target/maps.js'
import { Mounts } from '../../lib/target/mounts.js'
import { needs } from '../support/needs.js'

const OWN = `21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
22 21 0:41 / /srv/with\\040blank rw,relatime shared:7 master:3 - nfs4 server:/export rw,vers=4.2
23 21 0:300 / /opt ro - fuse.sshfs host: rw
24 21 254:17 / /mnt rw - fuseblk /dev/vdb1 rw
25 21 0:42 / /usr/lib/debug rw - autofs systemd-1 rw
26 25 0:43 / /usr/lib/debug rw - tmpfs tmpfs rw
27 21 0:44 / /usr/lib/debug/.build-id/aa rw - cifs //server/share rw
`
const OURS = `21 1 0:50 / / rw - overlay overlay rw
22 21 0:51 / /below rw - fuse.layers layers rw
23 21 0:52 / /usr rw - virtiofs usr rw
`

const MOUNTS = Mounts.parse(OWN, OURS)

for (const [what, device, mayHang] of [
  ['a disk', 'fe:01', false],
  ['NFS', '00:29', true],
  ['FUSE, with a number of more than two digits', '00:12c', true],
  ['FUSE on a disk', 'fe:11', true],
  ['a layer that is mounted only where we are', '00:33', true],
  ['a file system of memory', '00:2b', false],
  ['what is mounted nowhere, as memory that was made executable', '00:01', false],
] as const) {
  test(`a file of ${what} ${mayHang ? 'may hang' : 'is read'}`, () => {
    assert.equal(MOUNTS.mayHangFile({ fileKey: `${device} 4711` }), mayHang)
  })
}

for (const [root, path, mayHang] of [
  ['own', '/usr/lib/debug/.build-id/bb/cc.debug', false],
  ['own', '/usr/lib/debug/.build-id/aa/cc.debug', true],
  ['own', '/usr/lib/debug/.build-id/aaa/cc.debug', false],
  ['own', '/srv/with blank/file', true],
  ['own', '/opt', true],
  ['own', '/tmp', false],
  ['ours', '/usr/lib/debug/.build-id/bb/cc.debug', true],
  ['ours', '/tmp', false],
] as const) {
  test(`${path} is held by what is mounted nearest and last (${root})`, () => {
    assert.equal(MOUNTS.mayHangPath(root, path), mayHang)
  })
}

test('a process that is gone has no mounts', () => {
  const mounts = Mounts.of('/proc/0')
  assert.equal(mounts.mayHangPath('own', '/'), false)
})

test('the kernel prints one device number in maps and in mountinfo', needs(), () => {
  const text = readFileSync('/proc/self/mountinfo', 'utf8')
  // Said to be remote, all of them.
  const mounts = Mounts.parse(text.replaceAll(/ - \S+ /g, ' - nfs '), '')
  const mappings = parseMaps(readFileSync('/proc/self/maps', 'utf8')).filter(({ executable }) => executable)
  assert.ok(mappings.length > 0)
  assert.ok(mappings.some((mapping) => mounts.mayHangFile(mapping)))
})
