/**
 * `uprobe hist` and `uprobe count --by`: distributions and groups, as JSON and as they are drawn.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { assertSafeForTerminal, Cli, failed, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'

const GCC = needs({ programs: ['gcc'] })

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  test(`a histogram by groups until ${signal}, as JSON: an object a group, and the counts`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'func'))
    const args = ['hist', 'uprobe:f_add', '--arg', '0', '--by', 'arg0 % 2', '--by', 'comm', '--scale', '-1', '--filter', 'arg0 != 9']
    const cli = Cli.start(t, [...args, '-p', String(target.pid), '--json'])
    assert.equal(await cli.attached(), 'attached 1 site of 1 probe')
    await target.ask('add 11')
    cli.kill(signal)
    const none = { offset: 0, bucketCounts: [] }
    const row = (parity: number, numbers: object, zeroCount: number, positive: object): object => ({
      spec: 'uprobe:f_add',
      key: { 'arg0 % 2': parity, comm: 'func' },
      ...numbers,
      histogram: { scale: -1, zeroCount, positive, negative: none },
    })
    assert.deepEqual(jsonOf(succeeded(await cli.ended)), [
      row(0, { count: 6, sum: 30, min: 0, max: 10 }, 1, { offset: 0, bucketCounts: [2, 3] }),
      row(1, { count: 4, sum: 16, min: 1, max: 7 }, 0, { offset: -1, bucketCounts: [1, 1, 2] }),
      { summary: [{ spec: 'uprobe:f_add', hits: 11, filtered: 1, aggregated: 10, lost: 0, unfinished: 0, unmatched: 0 }] },
    ])
  })
}

test('a histogram of signed numbers, drawn', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const cli = Cli.start(t, ['hist', 'usdt:t:gated', '-p', String(target.pid)])
  await cli.attached()
  await target.ask('gated 9')
  cli.kill('SIGTERM')
  const bar = (part: number): string => `|${'@'.repeat(Math.ceil(40 * part)).padEnd(40)}|`
  assert.deepEqual(linesOf(succeeded(await cli.ended)), [
    'usdt:t:gated: 9 hits, 9 aggregated, 0 lost',
    'count 9, average -4, least -8, most 0',
    `-8 .. -5  4 ${bar(1)}`,
    `-4 .. -3  2 ${bar(0.5)}`,
    `-2 .. -2  1 ${bar(0.25)}`,
    `-1 .. -1  1 ${bar(0.25)}`,
    ` 0 .. 0   1 ${bar(0.25)}`,
    '',
  ])
})

test('no average is drawn where the sum may have wrapped', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const cli = Cli.start(t, ['hist', 'uprobe:f_add', '--arg', '~arg0', '-p', String(target.pid)])
  await cli.attached()
  await target.ask('add 2')
  cli.kill('SIGTERM')
  assert.equal(
    linesOf(succeeded(await cli.ended))[1],
    'count 2, average unknown (the sum may have wrapped modulo 2^64), least 18446744073709551614, most 18446744073709551615',
  )
})

test('the time that calls take, and that from one probe to another', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'latency'))
  const calls = Cli.start(t, ['hist', 'uprobe:f_down', '--latency', '-p', String(target.pid)])
  assert.equal(await calls.attached(), 'attached 2 sites of 2 probes')
  const pairs = Cli.start(t, ['hist', 'usdt:t:begin', '--to', 'usdt:t:end', '--match', 'arg0', '-p', String(target.pid), '--json'])
  await pairs.attached()
  for (const command of ['begin 1', 'begin 2', 'down 3', 'end 1', 'end 1']) await target.ask(command)
  calls.kill('SIGTERM')
  pairs.kill('SIGTERM')
  const [counts, numbers, ...rows] = linesOf(succeeded(await calls.ended))
  assert.equal(counts, 'uprobe:f_down: 4 hits, 4 aggregated, 0 lost')
  assert.match(numbers ?? '', /^count 4, average [\d.]+(ns|µs|ms), least [\d.]+(ns|µs|ms), most [\d.]+(ns|µs|ms)$/)
  assert.ok(rows.filter((row) => row !== '').every((row) => /^ *[\d.]+(ns|µs|ms) \.\. [\d.]+(ns|µs|ms) +\d \|@* *\|$/.test(row)))
  const [group, summary] = jsonOf(succeeded(await pairs.ended)) as Array<{ spec: string; count: number; key: object }>
  assert.deepEqual([group?.spec, group?.count, group?.key], ['usdt:t:begin -> usdt:t:end', 1, {}])
  assert.deepEqual(summary, {
    summary: [{ spec: 'usdt:t:begin -> usdt:t:end', hits: 2, filtered: 0, aggregated: 1, lost: 0, unfinished: 1, unmatched: 1 }],
  })
})

test('count --by counts groups, the largest first, and escapes what the target says', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'filtered'))
  const args = ['count', 'usdt:t:values', '--by', 'str(arg10)', '--by', 'arg7', '-p', String(target.pid)]
  const text = Cli.start(t, args)
  const json = Cli.start(t, [...args, '--json'])
  await Promise.all([text.attached(), json.attached()])
  for (const [string, number] of [
    ['\x1b[2J', 0],
    ['a', 0xff],
    ['a', 0xff],
  ] as const) {
    await target.ask(`text ${Buffer.from(string).toString('hex')}`)
    await target.ask(`fire 0 0 0 0 0 0 0 ${number.toString(16)}`)
  }
  text.kill('SIGTERM')
  json.kill('SIGTERM')
  const shown = succeeded(await text.ended)
  assertSafeForTerminal(shown)
  assert.deepEqual(linesOf(shown), [
    'usdt:t:values: 3 hits, 3 aggregated, 0 lost',
    '  str(arg10) "a", arg7 -1       2',
    '  str(arg10) "\\x1b[2J", arg7 0  1',
  ])
  const rows = succeeded(await json.ended)
  assertSafeForTerminal(rows)
  assert.deepEqual(jsonOf(rows), [
    { spec: 'usdt:t:values', key: { 'str(arg10)': 'a', arg7: -1 }, hits: 2 },
    { spec: 'usdt:t:values', key: { 'str(arg10)': '\x1b[2J', arg7: 0 }, hits: 1 },
    { summary: [{ spec: 'usdt:t:values', hits: 3, filtered: 0, aggregated: 3, lost: 0, unfinished: 0, unmatched: 0 }] },
  ])
})

test('what cannot be asked is wrong usage', needs({}), async (t) => {
  for (const args of [
    ['hist', 'uprobe:f', '--arg', '0', '--latency', '-p', '1'],
    ['hist', 'uprobe:f', '--match', 'arg0', '-p', '1'],
    ['hist', 'uprobe:f', '--scale', '6', '-p', '1'],
    ['hist', 'uprobe:f', '--arg', '0', '--to', 'uprobe:g', '-p', '1'],
  ]) {
    failed(await uprobe(t, ...args), 2, 'ERR_UPROBE_BAD_OPTION')
  }
})
