/**
 * A program whose file is on a file system that does not answer any more: whoever reads it waits without an end, and so would the process that wants its names.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { readMaps } from '../../lib/target/maps.js'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { tempDirectory } from '../support/temp.js'

const NEEDS = needs({ programs: ['gcc', 'python3', 'umount'], files: ['/dev/fuse'] })

test('frames in a file whose file system does not answer have their place, and nobody waits for more', NEEDS, async (t) => {
  let mountPoint: string | null = null
  const servers: Target[] = []
  // Before the folder is removed.
  t.after(async () => {
    for (const server of servers) await server.stop()
    if (mountPoint !== null) spawnSync('umount', ['--lazy', mountPoint])
  })
  mountPoint = join(tempDirectory(t), 'mounted')
  mkdirSync(mountPoint)
  const fixture = join(__dirname, '..', '..', 'test', 'symbolize', 'fixtures', 'fuse-server.py')
  const server = await Target.start(t, 'python3', { args: [fixture, mountPoint, buildTarget(t, 'stacks', 'static')] })
  servers.push(server)
  const target = await Target.start(t, join(mountPoint, 'program'))
  const code = (await readMaps(`/proc/${target.pid}`)).find(({ executable }) => executable)
  assert.equal(code?.path, target.program)
  server.kill('SIGSTOP')
  const program = `require('tsx/cjs')
    const { symbolizer } = require(${JSON.stringify(join(__dirname, '..', '..', 'lib', 'symbolize', 'symbolizer'))})
    const timeNs = process.hrtime.bigint()
    symbolizer.symbolize({ pid: ${target.pid}, timeNs, addresses: [${code.start + 16n}n], site: null }).then(([{ symbol, module, fileOffset, buildId }]) => {
      console.log(JSON.stringify([symbol, module, String(fileOffset), buildId]))
    })`
  const { stdout, stderr, status } = spawnSync(process.execPath, ['-e', program], {
    cwd: join(__dirname, '..', '..'),
    encoding: 'utf8',
    timeout: 20_000,
    killSignal: 'SIGKILL',
  })
  assert.equal(status, 0, stderr)
  assert.deepEqual(JSON.parse(stdout), [null, target.program, String(code.fileOffset + 16n), null])
})
