import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { test } from 'node:test'
import { needs } from '../support/needs.js'
import { tempDirectory } from '../support/temp.js'
import { cleanEnvironment, npm, ROOT } from './pack.js'

/** Traces itself, and says what it saw. */
const PROGRAM = `
const { Tracer, list, doctor } = require(${JSON.stringify(ROOT)})
async function main() {
  const tracer = new Tracer()
  const probe = await tracer.attach('uprobe:chdir', { pid: process.pid, strings: [0] })
  process.chdir('/')
  for await (const hit of probe) { console.log(hit.args[0]); break }
  await tracer.close()
  const { hits, delivered, lost } = probe.stats()
  console.log(hits, delivered, lost, (await list(process.pid)).length > 0, (await doctor()).length > 0)
}
main()
`

for (const version of ['20', '22', '24', '26']) {
  test(`one build runs on Node ${version}: import, attach, a hit, list, doctor, demo`, needs(), (t) => {
    const directory = tempDirectory(t)
    // A package that holds nothing but Node's binary.
    npm(directory, 'install', '--no-save', '--no-audit', '--no-fund', `node-linux-${process.arch}@${version}`)
    const node = join(directory, `node_modules/node-linux-${process.arch}/bin/node`)
    const run = (...args: string[]): string => execFileSync(node, args, { cwd: directory, env: cleanEnvironment(), encoding: 'utf8' })
    assert.match(run('--version'), new RegExp(`^v${version}\\.`))
    assert.equal(run('-e', PROGRAM), '/\n1 1 0 true true\n')
    assert.match(run(join(ROOT, 'dist/cli/main.js'), 'demo'), /\n20 hits, 20 delivered, 0 lost\n$/)
  })
}
