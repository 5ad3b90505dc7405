/**
 * What the benchmarks write: the generated parts of the document, the verdicts on goals, the statistics, and the picture.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { replacePart } from '../../bench/support/document.js'
import { judge } from '../../bench/support/report.js'
import { summaryOf } from '../../bench/support/results.js'
import { ratios, spreadPercent, summarise } from '../../bench/support/statistics.js'
import { drawBars, scaleOf } from '../../bench/support/svg.js'

test('a generated part takes the place of its last version, and what people wrote stays', () => {
  const before = '# P\n\n## A\n\nwords\n\n<!-- bench:a -->\n\nold\n\n<!-- /bench:a -->\n\nmore words\n'
  const after = replacePart(before, 'a', '## Another heading\n\nnew')
  assert.equal(after, '# P\n\n## A\n\nwords\n\n<!-- bench:a -->\n\nnew\n\n<!-- /bench:a -->\n\nmore words\n')
  assert.equal(replacePart(after, 'a', 'new'), after)
})

test('a part that the document does not have yet is appended under its own heading', () => {
  assert.equal(replacePart('# P\n', 'b', '## B\n\nbody\n'), '# P\n\n## B\n\n<!-- bench:b -->\n\nbody\n\n<!-- /bench:b -->\n')
})

test('a part that does not end is refused, since nobody knows what is generated', () => {
  assert.throws(() => replacePart('<!-- bench:a -->\n\nold', 'a', 'new'), /does not end/)
})

test('a goal is met by the median, within the spread by the better quartile, or not', () => {
  const measured = { median: 1.1, lowerQuartile: 1.0, upperQuartile: 1.2 }
  assert.equal(judge({ what: 'x', limit: 1.1 }, measured).verdict, 'yes')
  assert.equal(judge({ what: 'x', limit: 1.05 }, measured).verdict, 'within the spread')
  assert.equal(judge({ what: 'x', limit: 0.99 }, measured).verdict, 'no')
  assert.equal(judge({ what: 'x', limit: 1.15, better: 'more' }, measured).verdict, 'within the spread')
  assert.equal(judge({ what: 'x', limit: 1.25, better: 'more' }, measured).verdict, 'no')
})

test('quartiles are interpolated, and ratios are taken round by round', () => {
  assert.deepEqual(summarise([4, 1, 3, 2]), { median: 2.5, lowerQuartile: 1.75, upperQuartile: 3.25 })
  assert.deepEqual(ratios([2, 9], [1, 3]), [2, 3])
  assert.throws(() => ratios([1], [1, 2]), RangeError)
  assert.equal(spreadPercent({ median: 200, lowerQuartile: 190, upperQuartile: 210 }), 10)
})

test('the summary says which goals are met, what nobody gets below, what it would be on another machine, and where others are ahead', () => {
  const summary = { median: 0.9, lowerQuartile: 0.8, upperQuartile: 1 }
  const floor = { median: 0.8, lowerQuartile: 0.8, upperQuartile: 0.8 }
  const report = {
    markdown: '',
    goals: [
      judge({ what: 'a hit', limit: 0.85 }, summary),
      judge({ what: 'a string', limit: 1, floor }, summary),
      judge({ what: 'a list', limit: 0.5, unit: 'ms', yardstick: { there: 2, here: 3 } }, summary),
    ],
    behind: ['perf is faster.'],
  }
  const text = summaryOf([['a', { report, machine: 'M', date: '2026-01-01' }]])
  assert.match(text, /\| a hit +\| +at most 0\.85 \| +0\.90 \| +0\.80 to 1\.00 \| +\| +\| within the spread \|/)
  assert.match(text, /\| a string +\| +at most 1\.00 \| +0\.90 \| +0\.80 to 1\.00 \| +0\.80 \| +\| +yes \|/)
  assert.match(text, /\| a list +\| +at most 0\.50 ms \| +0\.90 ms \| +0\.80 to 1\.00 \| +\| +0\.60 ms \| +no \|/)
  assert.match(text, /Where others are ahead:\*\* perf is faster\./)
})

const bar = (label: string, median: number) => ({
  label,
  by: 'peer' as const,
  value: { median, lowerQuartile: median - 1, upperQuartile: median + 1 },
})

test('one slow tracer does not stretch the scale, and still has its value in the picture', () => {
  const groups = [{ title: 'a <b>', bars: [bar('x & y', 600), bar('z', 700), bar('slow', 9000)] }]
  const { end, ticks } = scaleOf(groups)
  assert.ok(end >= 700 && end < 1000)
  assert.equal(ticks.at(-1), end)
  const svg = drawBars({ title: 't', subtitle: 's', axis: 'ns' }, groups)
  assert.match(svg, /9,000/)
  assert.match(svg, /a &lt;b&gt;/)
  assert.match(svg, /x &amp; y/)
  assert.doesNotMatch(svg, /NaN|undefined/)
})
