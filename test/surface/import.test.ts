import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { describe, it } from 'node:test'

const LIBRARY = join(__dirname, '../../lib/index.ts')

/** Runs a program in a process of its own, and returns what it prints as JSON. */
function run(program: string): unknown {
  const text = `const uprobe = require(${JSON.stringify(LIBRARY)}); (async () => { ${program} })()`
  return JSON.parse(execFileSync(process.execPath, ['--import', 'tsx', '-e', text], { encoding: 'utf8', cwd: join(__dirname, '../..') }))
}

/** Makes Node say that it runs elsewhere, before the library looks. */
function pretend(platform: string, arch: string): string {
  return `Object.defineProperty(process, 'platform', { value: '${platform}' }); Object.defineProperty(process, 'arch', { value: '${arch}' });`
}

describe('importing the package', () => {
  it('loads no native code, and neither does making and closing a tracer', () => {
    const mapped = "require('node:fs').readFileSync('/proc/self/maps', 'utf8').includes('uprobe.node')"
    assert.deepEqual(run(`const before = ${mapped}; await new uprobe.Tracer().close(); console.log(JSON.stringify([before, ${mapped}]))`), [
      false,
      false,
    ])
  })

  it('loads pino only with a logger, which takes a tracer twenty times as long as all else', () => {
    const pino = "Object.keys(require.cache).some((path) => path.includes('/node_modules/pino/'))"
    const program = `const tracer = new uprobe.Tracer(); await tracer.attach('usdt:a:b', { pid: 0x7fffffff }).catch(() => {}); await tracer.close(); console.log(JSON.stringify(${pino}))`
    assert.equal(run(program), false)
  })

  it('exports what the documentation names, and nothing else', () => {
    assert.deepEqual(run('console.log(JSON.stringify(Object.keys(uprobe).sort()))'), [
      'ERROR_CODES',
      'Tracer',
      'UprobeError',
      'bucketBounds',
      'counters',
      'doctor',
      'foldStack',
      'list',
      'release',
      'repair',
    ])
  })
})

describe('on a system that is not supported', () => {
  for (const [platform, arch] of [
    ['darwin', 'arm64'],
    ['win32', 'x64'],
    ['linux', 'riscv64'],
  ] as const) {
    it(`imports on ${platform} ${arch}, and attach says what is missing`, () => {
      const program = `${pretend(platform, arch)} const tracer = new uprobe.Tracer(); const error = await tracer.attach('usdt:a:b', { pid: 1 }).catch((e) => e); await tracer.close(); console.log(JSON.stringify([error.code, error.message]))`
      const [code, message] = run(program) as [string, string]
      assert.equal(code, 'ERR_UPROBE_UNSUPPORTED')
      assert.match(message, new RegExp(`${platform} on ${arch}`))
    })

    it(`has a doctor on ${platform} ${arch} who says so instead of throwing`, () => {
      const checks = run(`${pretend(platform, arch)} console.log(JSON.stringify(await uprobe.doctor()))`) as Array<{
        check: string
        ok: boolean
        remedy: string | null
      }>
      const system = checks.find(({ check }) => check === 'system')
      assert.equal(system?.ok, false)
      assert.ok(system?.remedy)
    })
  }
})

describe('a closed tracer', () => {
  it('refuses to attach with ERR_UPROBE_CLOSED', () => {
    assert.equal(
      run(
        "const t = new uprobe.Tracer(); await t.close(); await t.close(); console.log(JSON.stringify((await t.attach('usdt:a:b', { pid: 1 }).catch((e) => e)).code))",
      ),
      'ERR_UPROBE_CLOSED',
    )
  })
})
