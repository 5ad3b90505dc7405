/**
 * `uprobe counters`, `repair` and `release`: what they print, in JSON and in columns. What they find and do is tested in test/counter.
 */
import assert from 'node:assert/strict'
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { assertSafeForTerminal, Cli, failed, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { tempDirectory } from '../support/temp.js'

const GCC = needs({ programs: ['gcc'] })

interface Counter {
  readonly path: string
  readonly name: string
  readonly address: string
}

/** The counters of a target by their names, each without its address, which is checked here, and without the pid and path that all have in common. */
async function countersOf(t: Parameters<typeof uprobe>[0], target: Target): Promise<Record<string, unknown>> {
  const rows = jsonOf(succeeded(await uprobe(t, 'counters', String(target.pid), '--json'))) as Counter[]
  const own = rows.filter(({ path }) => path === target.program)
  return Object.fromEntries(
    own.map(({ name, address, ...rest }) => {
      assert.match(address, /^0x[1-9a-f][0-9a-f]*$/)
      return [name, rest]
    }),
  )
}

test(
  'counters --json prints an object for each probe with exactly the fields of the contract, in each state that a test can make',
  GCC,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const write = (name: string, value: number): void =>
      writeCounter(target.pid, target.program, notesOf(target.program, `t:${name}`)[0]?.refCtrOffset ?? 0n, value)
    const idle = {
      ...{
        pid: target.pid,
        path: target.program,
        provider: 't',
        value: 0,
        kernelCount: 0,
        claimed: false,
        armedSites: 0,
        owners: [],
        state: 'idle',
      },
    }
    assert.deepEqual(await countersOf(t, target), { gated: idle, ungated: idle, shared: idle, twin: idle })

    const cli = Cli.start(t, ['count', 'usdt:t:shared', '-p', String(target.pid)])
    const claiming = Cli.start(t, ['count', 'usdt:t:gated', '-p', String(target.pid), '--counter', 'msb'])
    await Promise.all([cli.attached(), claiming.attached()])
    write('ungated', 0x8000)
    write('twin', 0xffff)
    const owners = (pid: number, kind: string): object[] => [{ pid, comm: 'node', kind }]
    const { gated, ...others } = await countersOf(t, target)
    assert.deepEqual(others, {
      shared: { ...idle, value: 3, kernelCount: 3, armedSites: 3, owners: owners(cli.pid, 'bpf-link'), state: 'counted' },
      ungated: { ...idle, value: 0x8000, claimed: true, state: 'foreign-claim' },
      twin: { ...idle, value: 0xffff, kernelCount: null, state: 'underflow' },
    })
    const { owners: holders, ...rest } = gated as { owners: Array<{ pid: number; kind: string }> }
    assert.deepEqual({ ...rest, owners: [] }, { ...idle, value: 0x8000, claimed: true, armedSites: 1, state: 'claimed' })
    assert.ok(holders.some(({ pid, kind }) => pid === claiming.pid && kind === 'lease'))
  },
)

test('counters prints columns for people, and what to do about what is wrong', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { refCtrOffset } = gatedNote(target.program, 't:gated')
  writeCounter(target.pid, target.program, refCtrOffset, 0x8000)
  const lines = linesOf(succeeded(await uprobe(t, 'counters', String(target.pid)))).map((line) =>
    line.replace(/0x[0-9a-f]{6,}/, 'ADDRESS').replace(/ {2,}/g, '  '),
  )
  const own = lines.filter((line) => line.startsWith(`usdt:${target.program}:`))
  const row = (name: string, value: string, state: string): string =>
    `usdt:${target.program}:t:${name}  ADDRESS  value ${value}  0 armed  ${state}`
  assert.deepEqual(own.sort(), [
    row('gated', '0x8000', 'foreign-claim'),
    row('shared', '0x0', 'idle'),
    row('twin', '0x0', 'idle'),
    row('ungated', '0x0', 'idle'),
  ])
  assert.match(lines.at(-1) ?? '', new RegExp(`^1 counter foreign-claim: .*uprobe repair ${target.pid} --apply$`))
})

test('repair: a dry run without --apply, exactly the fields of the contract and a note, exit code 0 in any case', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const args = ['repair', String(target.pid), '--json']
  assert.equal(succeeded(await uprobe(t, ...args)), '')
  writeCounter(target.pid, target.program, gatedNote(target.program, 't:gated').refCtrOffset, 2)
  const entries = async (...flags: string[]): Promise<unknown[]> =>
    (jsonOf(succeeded(await uprobe(t, ...args, ...flags))) as Array<Record<string, unknown>>).map(({ address, note, ...rest }) => {
      assert.match(String(address), /^0x[1-9a-f][0-9a-f]*$/)
      assert.ok(typeof note === 'string' && note !== '')
      return rest
    })
  const entry = { pid: target.pid, path: target.program, provider: 't', name: 'gated', problem: 'leaked-count', before: 2, after: 0 }
  assert.deepEqual(await entries(), [{ ...entry, applied: false }])
  assert.equal(await target.ask('counters'), '2 0 0 0')
  assert.match(
    succeeded(await uprobe(t, 'repair', String(target.pid))),
    /usdt:.*:t:gated {2}leaked-count {2}0x2 → 0x0 {2}not applied {2}\S/,
  )
  const applied = await uprobe(t, ...args, '--apply')
  assert.deepEqual(
    (jsonOf(applied.stdout) as Array<typeof entry & { address: string; note: string }>).map(({ address, note, ...rest }) => rest),
    [{ ...entry, applied: true }],
  )
  // A record of what was changed, and by whom.
  const [record, ...more] = jsonOf(applied.stderr) as Array<Record<string, unknown>>
  assert.deepEqual(more, [])
  const { audit, target: changed, path, problem, before, after, uid } = record ?? assert.fail()
  assert.deepEqual(
    { audit, target: changed, path, problem, before, after, uid },
    { audit: 'repair', target: target.pid, path: target.program, problem: 'leaked-count', before: 2, after: 0, uid: 0 },
  )
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.deepEqual(await entries(), [])
})

test('release of what nobody claims is success without a word', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  assert.equal(succeeded(await uprobe(t, 'release', String(target.pid))), '')
  assert.equal(succeeded(await uprobe(t, 'release', String(target.pid), '--json')), '')
})

test('a lease directory that others may write to is not believed', GCC, async (t) => {
  const directory = tempDirectory(t)
  for (const command of ['counters', 'repair', 'release']) {
    failed(await uprobe(t, command, String(process.pid), '--lease-dir', directory), 1, 'ERR_UPROBE_LEASE')
  }
})

test('the path of a hostile program reaches neither the terminal raw nor breaks a line', GCC, async (t) => {
  const program = join(tempDirectory(t), '\x1b[31mred\n\u202e')
  copyFileSync(buildTarget(t, 'usdt'), program)
  const target = await Target.start(t, program)
  writeCounter(target.pid, program, gatedNote(program, 't:gated').refCtrOffset, 1)
  for (const command of ['counters', 'repair']) {
    const text = succeeded(await uprobe(t, command, String(target.pid)))
    assertSafeForTerminal(text)
    assert.ok(text.includes(String.raw`\x1b[31mred\x0a\u{202e}:t:gated`), text)
    const json = succeeded(await uprobe(t, command, String(target.pid), '--json'))
    assertSafeForTerminal(json)
    assert.ok((jsonOf(json) as Counter[]).some(({ path }) => path === program))
  }
})
