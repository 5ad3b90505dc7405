import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { before, describe, it } from 'node:test'
import { needs } from '../support/needs.js'
import { tempDirectory } from '../support/temp.js'
import { cleanEnvironment, install, pack } from './pack.js'

describe('the package, installed into an empty project', needs({ programs: ['aarch64-linux-gnu-g++'] }), () => {
  let tarball: string
  let project: string
  /** A PATH with node and nothing else: neither make nor g++. */
  let bare: NodeJS.ProcessEnv

  before(() => {
    // The folders are shared by the tests of the suite, so they go when the process ends.
    const cleanup = { after: (step: () => unknown) => process.once('exit', () => void step()) }
    tarball = pack(cleanup)
    project = install(cleanup, tarball)
    const bin = tempDirectory(cleanup)
    for (const name of ['node', 'npx']) symlinkSync(join(dirname(process.execPath), name), join(bin, name))
    mkdirSync(join(bin, 'empty'))
    bare = cleanEnvironment(bin)
  })

  const uprobe = (...args: string[]): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(process.execPath, [join(project, 'node_modules/.bin/uprobe'), ...args], { cwd: project, env: bare, encoding: 'utf8' })

  it('holds what runs and what is read, and nothing that builds', () => {
    const files = execFileSync('tar', ['-tzf', tarball], { encoding: 'utf8' })
      .split('\n')
      .map((name) => name.replace(/^package\//, ''))
      .filter(Boolean)
    for (const needed of [
      'dist/index.js',
      'dist/index.mjs',
      'dist/index.d.ts',
      'dist/index.d.mts',
      'dist/cli/main.js',
      'LICENSE',
      'README.md',
      'docs/errors.md',
      'examples/first-hits.mjs',
    ]) {
      assert.ok(files.includes(needed), `${needed} is missing`)
    }
    for (const prebuild of ['linux-x64', 'linux-arm64'])
      assert.equal(files.filter((name) => name.startsWith(`prebuilds/${prebuild}/`)).length, 1)
    // npm runs node-gyp for every package that has a binding.gyp, whatever its package.json says.
    for (const name of files) assert.doesNotMatch(name, /binding\.gyp|^native\/|^test\/|^build\/|^scripts\/|\.cc$/)
  })

  it('has no script that runs when it is installed', () => {
    const { scripts = {} } = JSON.parse(readFileSync(join(project, 'node_modules/uprobe/package.json'), 'utf8')) as {
      scripts?: Record<string, string>
    }
    for (const name of ['install', 'preinstall', 'postinstall', 'prepare']) assert.equal(scripts[name], undefined)
  })

  it('holds no path of the machine that packed it', () => {
    const unpacked = join(project, 'node_modules/uprobe')
    const { stdout } = spawnSync('grep', ['-rlaF', process.cwd(), unpacked], { encoding: 'utf8' })
    assert.equal(stdout, '')
  })

  it('lists probes without make and g++', () => {
    const addon = execFileSync(process.execPath, ['-p', "require('node-gyp-build').path('node_modules/uprobe')"], {
      cwd: project,
      env: bare,
      encoding: 'utf8',
    }).trim()
    const { status, stdout, stderr } = uprobe('list', addon, '--json')
    assert.equal(status, 0, stderr)
    const names = stdout
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { name: string }).name)
    assert.deepEqual(names, ['demo', 'step', 'selftest'])
  })

  it('runs the demo without make and g++', () => {
    const { status, stdout, stderr } = uprobe('demo')
    assert.equal(status, 0, stderr)
    assert.match(stdout, /^counter before: 0\ncounter during: 1\n/)
    assert.match(stdout, /\ncounter after: 0\n20 hits, 20 delivered, 0 lost\n$/)
  })

  it('runs its examples, and they say how they are called', () => {
    for (const example of ['first-hits.mjs', 'flame-graph.mjs']) {
      const { status, stdout, stderr } = spawnSync(process.execPath, [join(project, 'node_modules/uprobe/examples', example)], {
        cwd: project,
        env: bare,
        encoding: 'utf8',
      })
      assert.deepEqual([status, stdout], [2, ''])
      assert.match(stderr, new RegExp(`^usage: node ${example} PID .*\n$`))
    }
  })

  it('gives import and require the same classes', () => {
    const program =
      "import * as esm from 'uprobe'; import { createRequire } from 'node:module'; const cjs = createRequire(import.meta.url)('uprobe'); console.log(esm.Tracer === cjs.Tracer, Object.keys(cjs).every((name) => name in esm), typeof esm.list)"
    const stdout = execFileSync(process.execPath, ['--input-type=module', '-e', program], { cwd: project, env: bare, encoding: 'utf8' })
    assert.equal(stdout, 'true true function\n')
  })
})
