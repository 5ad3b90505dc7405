/**
 * `uprobe repair`, `release` and `counters` where not everything can be looked at: silence would say that nothing is wrong, and that nobody claims anything.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import test from 'node:test'
import { hiddenLeases } from '../../lib/counter/lease-directory.js'
import { release, repair, type UprobeError } from '../../lib/index.js'
import { Cli, failed, jsonOf, uprobe } from '../support/cli.js'
import { madeLeaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { tempDirectory } from '../support/temp.js'

const SETPRIV = needs({ programs: ['setpriv'] })
const WITHOUT_RIGHTS = ['setpriv', '--bounding-set=-all', '--inh-caps=-all']

/** A number that the kernel gives to no process: the greatest, which only 2^22 processes would need. */
const NOBODY = '4194303'

test('repair of every process fails when some may not be looked at, and says how many and what is missing', SETPRIV, async (t) => {
  const args = ['repair', '--lease-dir', madeLeaseDirectory()]
  const line = failed(await Cli.start(t, args, { prefix: WITHOUT_RIGHTS }).ended, 1, 'ERR_UPROBE_TARGET_DENIED')
  assert.match(line, /^uprobe: \d+ process(es)? could not be looked at\. .*This process lacks CAP_SYS_PTRACE, CAP_SYS_ADMIN/)
  const { code, stdout, stderr } = await Cli.start(t, [...args, '--json'], { prefix: WITHOUT_RIGHTS }).ended
  assert.deepEqual([code, jsonOf(stdout)], [1, []])
  const [{ error }] = jsonOf(stderr) as [{ error: { code: string; message: string } }]
  assert.equal(error.code, 'ERR_UPROBE_TARGET_DENIED')
  assert.match(error.message, /^\d+ process(es)? could not be looked at\./)
})

test('repair with all rights succeeds, also where a process is out of reach, which is a warning', async (t) => {
  const denied: UprobeError[] = []
  const leaseDir = madeLeaseDirectory()
  await repair({ leaseDir, onUnseen: (error) => denied.push(error) })
  for (const { code, pid } of denied) assert.deepEqual([code, typeof pid], ['ERR_UPROBE_TARGET_DENIED', 'number'])
  const { code, stderr } = await uprobe(t, 'repair', '--lease-dir', leaseDir)
  assert.equal(code, 0)
  // Whether there is such a process is up to the machine, and may change from one look to the next.
  assert.match(stderr, /^(uprobe: warning: \d+ process(es)? could not be looked at\. .*\n)?$/)
})

test('a lease directory that is named and is not there is an error', async (t) => {
  const missing = join(tempDirectory(t), 'missing')
  for (const command of ['counters', 'repair', 'release']) {
    const line = failed(await uprobe(t, command, String(process.pid), '--lease-dir', missing), 1, 'ERR_UPROBE_LEASE')
    assert.ok(line.includes(`${missing} is not there`), line)
  }
})

for (const command of ['counters', 'repair', 'release']) {
  test(`${command} of a process that does not exist fails`, async (t) => {
    failed(await uprobe(t, command, NOBODY), 1, 'ERR_UPROBE_TARGET_GONE')
  })
}

test('another user than root is told that the leases of root cannot be read, unless a directory is named', async (t) => {
  const ofRoot = tempDirectory(t)
  assert.equal(hiddenLeases(undefined, ofRoot), null, 'root reads them')
  t.mock.method(process as { geteuid(): number }, 'geteuid', () => 65_534)
  const hidden = hiddenLeases(undefined, ofRoot)
  assert.equal(hidden?.code, 'ERR_UPROBE_LEASE')
  assert.match(hidden.message, /whether they hold claims is not known/)
  assert.equal(hiddenLeases('/a/directory', ofRoot), null)
  assert.equal(hiddenLeases(undefined, join(ofRoot, 'missing')), null, 'root has no agents')
})

test('what release and repair say of a lease directory does not advise what only attaching knows', async (t) => {
  const open = tempDirectory(t)
  for (const look of [() => release({ leaseDir: open }), () => repair({ leaseDir: open })]) {
    await assert.rejects(look, (error: UprobeError) => {
      assert.equal(error.code, 'ERR_UPROBE_LEASE')
      assert.match(error.message, /with leaseDir\.$/)
      assert.doesNotMatch(error.message, /counter: 'kernel'/)
      return true
    })
  }
})
