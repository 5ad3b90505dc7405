/**
 * `uprobe count`: exact counts, a row a probe.
 */
import assert from 'node:assert/strict'
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { assertSafeForTerminal, Cli, failed, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { tempDirectory } from '../support/temp.js'

const GCC = needs({ programs: ['gcc'] })

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  test(
    `counts exactly until ${signal}, prints a JSON object with exactly the fields of the contract a probe, and leaves nothing`,
    GCC,
    async (t) => {
      const target = await Target.start(t, buildTarget(t, 'usdt'))
      const cli = Cli.start(t, ['count', 'usdt:t:*', '-p', String(target.pid), '--json'])
      assert.equal(await cli.attached(), 'attached 7 sites of 5 probes')
      assert.equal(await target.ask('counters'), '1 1 3 1')
      assert.equal(await target.askNumber('threads 4 2500'), 10_000)
      assert.equal(await target.askNumber('shared 11'), 33)
      cli.kill(signal)
      const row = (name: string, hits: number): object => ({ probe: `usdt:t:${name}`, path: target.program, hits })
      const rows = jsonOf(succeeded(await cli.ended)) as Array<{ probe: string }>
      assert.deepEqual(
        rows.sort((a, b) => (a.probe < b.probe ? -1 : 1)),
        [row('gated', 10_000), row('plain', 0), row('shared', 33), row('twin', 0), row('ungated', 0)],
      )
      assert.equal(await target.ask('counters'), '0 0 0 0')
      for (const { fileOffset } of notesOf(target.program)) assert.equal(isArmed(target.pid, target.program, fileOffset), false)
    },
  )
}

test('--counter msb counts as exactly, and leaves as little', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const cli = Cli.start(t, ['count', 'usdt:t:gated', '-p', String(target.pid), '--counter', 'msb', '--json'])
  await cli.attached()
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  assert.equal(await target.askNumber('threads 4 2500'), 10_000)
  cli.kill('SIGTERM')
  assert.deepEqual(jsonOf(succeeded(await cli.ended)), [{ probe: 'usdt:t:gated', path: target.program, hits: 10_000 }])
  assert.equal(await target.ask('counters'), '0 0 0 0')
})

test('--filter counts only hits for which it holds, and says how many it rejected', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const args = ['count', 'usdt:t:plain', '-p', String(target.pid), '--filter', 'arg0 % 3 == 1']
  const [text, json] = [Cli.start(t, args), Cli.start(t, [...args, '--json'])]
  for (const cli of [text, json]) await cli.attached()
  await target.ask('plain 10')
  for (const cli of [text, json]) cli.kill('SIGTERM')
  assert.deepEqual(linesOf(succeeded(await text.ended)), [`usdt:t:plain  ${target.program}  3 (7 filtered)`])
  assert.deepEqual(jsonOf(succeeded(await json.ended)), [{ probe: 'usdt:t:plain', path: target.program, hits: 3, filtered: 7 }])
})

test('several processes, several SPECs and a probe that two files have: a row for each probe in each file', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const library = buildTarget(t, 'lib', 'shared')
  const [first, second] = [await Target.start(t, program), await Target.start(t, program)]
  for (const target of [first, second]) await target.ask(`dlopen ${library}`)
  const cli = Cli.start(t, ['count', 'usdt:t:twin', 'usdt:t:plain', '-p', String(first.pid), '-p', String(second.pid)])
  await cli.attached()
  for (const target of [first, second]) {
    await target.ask('twin')
    await target.ask('lib 3')
    await target.ask('plain 10')
  }
  cli.kill('SIGINT')
  const width = Math.max(program.length, library.length)
  assert.deepEqual(linesOf(succeeded(await cli.ended)), [
    `usdt:t:twin   ${program.padEnd(width)}  2`,
    `usdt:t:twin   ${library.padEnd(width)}  6`,
    `usdt:t:plain  ${program.padEnd(width)}  20`,
  ])
})

test('-d ends it, and so does the end of the process', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const args = ['count', 'usdt:t:plain', '-p', String(target.pid), '--json']
  assert.deepEqual(jsonOf(succeeded(await uprobe(t, ...args, '-d', '0.1'))), [{ probe: 'usdt:t:plain', path: target.program, hits: 0 }])
  const cli = Cli.start(t, args)
  await cli.attached()
  await target.ask('plain 12345')
  await target.end()
  assert.deepEqual(jsonOf(succeeded(await cli.ended)), [{ probe: 'usdt:t:plain', path: target.program, hits: 12_345 }])
})

test('one SPEC that cannot be attached ends it with 1, and takes back the others', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  failed(await uprobe(t, 'count', 'usdt:t:gated', 'usdt:t:nothing', '-p', String(target.pid)), 1, 'ERR_UPROBE_NOT_FOUND')
  assert.equal(await target.ask('counters'), '0 0 0 0')
})

test('the path of a hostile program reaches neither the terminal raw nor breaks a line', GCC, async (t) => {
  const program = join(tempDirectory(t), '\x1b[31mred\n\u202e')
  copyFileSync(buildTarget(t, 'usdt'), program)
  const target = await Target.start(t, program)
  const args = ['count', 'usdt:t:plain', '-p', String(target.pid), '-d', '0.1']
  const [json, text] = await Promise.all([uprobe(t, ...args, '--json'), uprobe(t, ...args)])
  for (const end of [json, text]) {
    assertSafeForTerminal(succeeded(end))
    assert.equal(linesOf(end.stdout).length, 1)
  }
  assert.deepEqual(jsonOf(json.stdout), [{ probe: 'usdt:t:plain', path: program, hits: 0 }])
})
