/**
 * `--budget-cpu` and `--budget-hits` of `uprobe trace`, `uprobe count` and `uprobe hist`.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { displaySeen } from '../../lib/cli/summary.js'
import { buildTarget } from '../support/build.js'
import { Cli, failed, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const OVER = 'The probe costs more than its budget, and is taken out for parts of the time.'

/** What it printed, if the warning is all that it complained of. */
async function endOf(cli: Cli): Promise<string> {
  const end = await cli.ended
  const stderr = end.stderr.replaceAll(/^.*warning.*\n/gm, (line) => (line.includes(OVER) ? '' : line))
  return succeeded({ ...end, stderr })
}

async function overBudget(cli: Cli, target: Target): Promise<void> {
  await waitFor('the warning', async () => {
    await target.ask('calls 1 3000')
    return cli.stderr.includes(OVER)
  })
}

test('trace says that a probe is over its budget, and what part of the time was seen', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  for (const flags of [[], ['--json']]) {
    const cli = Cli.start(t, ['trace', 'uprobe:f_hot', '-p', String(target.pid), '--budget-hits', '1000', ...flags])
    await cli.attached()
    await overBudget(cli, target)
    cli.kill('SIGTERM')
    const end = await endOf(cli)
    if (flags.length === 0) {
      assert.match(linesOf(end).at(-1) ?? '', /^uprobe:f_hot: (\d+) hits, \1 delivered, 0 lost, (less than )?\d+\.\d % of the time seen$/)
      continue
    }
    const { summary } = jsonOf(end).at(-1) as { summary: Array<{ seenFraction?: number; hits: number; delivered: number }> }
    const [entry] = summary
    assert.ok(entry?.seenFraction !== undefined && entry.seenFraction > 0 && entry.seenFraction < 1)
    assert.equal(entry.delivered, entry.hits)
  }
})

test('count does, too, and that all was seen where a budget is kept, and nothing without one', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const over = Cli.start(t, ['count', 'uprobe:f_hot', '-p', String(target.pid), '--budget-cpu', '0.1'])
  await over.attached()
  await overBudget(over, target)
  over.kill('SIGTERM')
  assert.match(linesOf(await endOf(over)).join('\n'), /^uprobe:f_hot {2}\S+ {2}\d+, (less than )?\d+\.\d % of the time seen$/)
  for (const [flags, seen] of [
    [['--budget-cpu', '1000'], { seenFraction: 1 }],
    [[], {}],
  ] as const) {
    const kept = Cli.start(t, ['count', 'uprobe:f_hot', '-p', String(target.pid), ...flags, '--json'])
    await kept.attached()
    await target.ask('calls 1 10')
    kept.kill('SIGTERM')
    assert.deepEqual(jsonOf(succeeded(await kept.ended)), [{ probe: 'uprobe:f_hot', path: target.program, hits: 10, ...seen }])
  }
})

for (const args of [
  ['hist', 'uprobe:f_hot'],
  ['count', 'uprobe:f_hot', '--by', 'arg0 % 2'],
  ['hist', 'uprobe:f_hot', '--latency'],
  ['hist', 'uprobe:f_hot', '--to', 'uretprobe:f_hot'],
]) {
  const latency = args.length === 3 || args.includes('--to')
  test(`${args.join(' ')} says so, too, and nothing without a budget`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'hot'))
    const ofTarget = [...args, '-p', String(target.pid)]
    for (const flags of [[], ['--json']]) {
      const cli = Cli.start(t, [...ofTarget, '--budget-hits', '1000', ...flags])
      await cli.attached()
      await overBudget(cli, target)
      cli.kill('SIGTERM')
      const end = await endOf(cli)
      if (flags.length === 0) {
        const counts = latency
          ? String.raw`\d+ hits, \d+ aggregated, 0 lost(, (\d+) unfinished \(\3 cut off\))?(, \d+ begun unseen)?`
          : String.raw`(\d+) hits, \2 aggregated, 0 lost`
        const pattern = new RegExp(String.raw`^uprobe:f_hot( -> uretprobe:f_hot)?: ${counts}, (less than )?\d+\.\d % of the time seen$`)
        assert.match(linesOf(end)[0] ?? '', pattern)
        continue
      }
      const { summary } = jsonOf(end).at(-1) as { summary: Array<{ seenMs?: number; seenFraction?: number }> }
      const { seenMs = 0, seenFraction = 0 } = summary[0] ?? {}
      assert.ok(seenMs > 0 && seenFraction > 0 && seenFraction < 1)
    }
    for (const [flags, seen] of [
      [['--budget-cpu', '1000'], { seenFraction: 1 }],
      [[], {}],
    ] as const) {
      const kept = Cli.start(t, [...ofTarget, ...flags, '--json'])
      await kept.attached()
      await target.ask('calls 1 10')
      kept.kill('SIGTERM')
      const { summary } = jsonOf(succeeded(await kept.ended)).at(-1) as { summary: Array<{ seenMs?: number }> }
      const { seenMs, ...counts } = summary[0] ?? {}
      assert.equal(seenMs !== undefined, flags.length > 0)
      const none = { filtered: 0, lost: 0, unfinished: 0, unmatched: 0, ...(flags.length > 0 && { cutOff: 0, begunUnseen: 0 }) }
      const spec = args.includes('--to') ? 'uprobe:f_hot -> uretprobe:f_hot' : 'uprobe:f_hot'
      assert.deepEqual(counts, { spec, hits: 10, aggregated: 10, ...none, ...seen })
    }
  })
}

test('trace says that all was seen where a budget is kept', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'hot'))
  const cli = Cli.start(t, ['trace', 'uprobe:f_hot', '-p', String(target.pid), '--budget-cpu', '1000'])
  await cli.attached()
  await target.ask('calls 1 10')
  cli.kill('SIGTERM')
  const end = linesOf(succeeded(await cli.ended))
  assert.equal(end.at(-1), 'uprobe:f_hot: 10 hits, 10 delivered, 0 lost, 100 % of the time seen')
})

test('a part of the time is not rounded to all of it, nor to nothing', () => {
  for (const [fraction, shown] of [
    [undefined, ''],
    [1, ', 100 % of the time seen'],
    [0.9997, ', more than 99.9 % of the time seen'],
    [0.999, ', 99.9 % of the time seen'],
    [0.125, ', 12.5 % of the time seen'],
    [0.0004, ', less than 0.1 % of the time seen'],
    [0, ', 0 % of the time seen'],
  ] as const) {
    assert.equal(displaySeen(fraction), shown)
  }
})

test('what is no budget is wrong usage', async (t) => {
  for (const args of [
    ['trace', '--budget-cpu', '0'],
    ['trace', '--budget-hits', 'many'],
    ['hist', '--budget-hits', '0.5'],
    ['hist', '--budget-cpu', '0', '--latency'],
  ]) {
    assert.match(failed(await uprobe(t, ...args, 'uprobe:f_hot'), 2, 'ERR_UPROBE_BAD_OPTION'), /--budget-(cpu|hits)/)
  }
})
