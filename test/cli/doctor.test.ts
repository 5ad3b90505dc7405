/**
 * `uprobe doctor`: the verdict, in both forms, with and without rights.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Cli, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { needs } from '../support/needs.js'

const LINUX = needs()

/** In the order in which they are to be mended. */
const CHECKS = [
  ...['system', 'node', 'addon', 'kernel', 'uprobe-pmu', 'ref-ctr-offset', 'capabilities', 'process-access', 'perf-event-paranoid'],
  ...['lockdown', 'memlock', 'bpf', 'perf-uprobe', 'uprobe-multi', 'nop5', 'pid-namespace'],
]

interface Check {
  readonly check: string
  readonly ok: boolean
  readonly detail: string
  readonly remedy: string | null
}

function checksOf(stdout: string): Check[] {
  const checks = jsonOf(stdout) as Check[]
  assert.deepEqual(
    checks.map(({ check }) => check),
    CHECKS,
  )
  for (const check of checks) {
    assert.deepEqual(Object.keys(check), ['check', 'ok', 'detail', 'remedy'])
    assert.equal(typeof check.ok, 'boolean')
    assert.ok(typeof check.detail === 'string' && check.detail !== '', check.check)
    assert.ok(
      typeof check.remedy === 'string' ? check.remedy !== '' : check.remedy === null && check.ok,
      `${check.check}: a failure has a remedy`,
    )
  }
  return checks
}

test('where attaching works: an object a check, all ok, exit code 0', LINUX, async (t) => {
  for (const check of checksOf(succeeded(await uprobe(t, 'doctor', '--json'))))
    assert.equal(check.ok, true, `${check.check}: ${check.detail}`)
})

test(
  'without the rights: exit code 1, the checks that fail, what helps, and nothing on standard error',
  needs({ programs: ['setpriv'] }),
  async (t) => {
    const prefix = ['setpriv', '--bounding-set=-all', '--inh-caps=-all']
    const json = await Cli.start(t, ['doctor', '--json'], { prefix }).ended
    assert.deepEqual([json.code, json.stderr], [1, ''])
    const failing = checksOf(json.stdout).filter(({ ok }) => !ok)
    for (const name of ['capabilities', 'perf-uprobe'])
      assert.ok(
        failing.some(({ check }) => check === name),
        name,
      )
    assert.match(failing.find(({ check }) => check === 'capabilities')?.remedy ?? '', /CAP_SYS_ADMIN/)

    const text = await Cli.start(t, ['doctor'], { prefix }).ended
    assert.deepEqual([text.code, text.stderr], [1, ''])
    const lines = linesOf(text.stdout)
    assert.deepEqual(
      lines.filter((line) => line.startsWith('FAIL')).map((line) => line.split(/ +/)[1]),
      failing.map(({ check }) => check),
    )
    for (const { remedy } of failing)
      assert.ok(
        lines.some((line) => line.trim() === `-> ${remedy}`),
        remedy ?? '',
      )
    assert.equal(lines.at(-1), 'Attaching will not work here.')
  },
)

test('for people: a line a check, its remedy below it, and the verdict', LINUX, async (t) => {
  const lines = linesOf(succeeded(await uprobe(t, 'doctor')))
  const checks = lines.filter((line) => /^(ok {2}|note) {2}/.test(line))
  assert.deepEqual(
    checks.map((line) => line.slice(6).split(' ')[0]),
    CHECKS,
  )
  assert.equal(lines.at(-1), 'Attaching will work here.')
  for (const line of lines.slice(0, -1)) assert.match(line, /^((ok {2}|note) {2}[\w-]+ +\S| {2,}-> \S)/)
})
