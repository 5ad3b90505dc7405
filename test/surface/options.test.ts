/**
 * Options that would do nothing where they are given are mistakes of whoever gives them, and are refused.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { checkAggregateOptions } from '../../lib/aggregate/options.js'
import { type AttachOptions, checkAttachOptions } from '../../lib/options.js'

function refusal(message: RegExp): object {
  return { code: 'ERR_UPROBE_BAD_OPTION', message }
}

for (const [options, message] of [
  [{ countOnly: true, strings: [1] }, /^Option strings: a probe that only counts reads no arguments/],
  [{ countOnly: true, stack: true }, /^Option stack: a probe that only counts delivers no stacks/],
  [{ stackDepth: 12 }, /^Option stackDepth: .* stack: true/],
] as const) {
  test(`attach refuses ${JSON.stringify(options)}`, () => assert.throws(() => checkAttachOptions(options), refusal(message)))
}

test('attach takes what a program that switches an option off leaves of those that belong to it', () => {
  for (const options of [
    { countOnly: true, strings: [] },
    { stack: false, stackDepth: 12 },
    { countOnly: true, stringLimit: 8 },
  ] satisfies AttachOptions[]) {
    assert.doesNotThrow(() => checkAttachOptions(options))
  }
})

for (const [options, message] of [
  [{ count: false }, /^Option count: hits are counted in any case/],
  [{ count: 'yes' }, /^Option count: give true or false/],
  [{ sum: 'arg0', scale: 2 }, /^Option scale: it is of a histogram/],
] as const) {
  test(`aggregate refuses ${JSON.stringify(options)}`, () =>
    assert.throws(() => checkAggregateOptions('uprobe:f', options as object), refusal(message)))
}

test('aggregate takes a scale with a histogram, also with one that is made unasked', () => {
  assert.equal(checkAggregateOptions('uprobe:f', { histogram: 'arg0', scale: 2 }).question.scale, 2)
  assert.equal(checkAggregateOptions({ from: 'uprobe:f', to: 'uprobe:g' }, { scale: 2 }).question.scale, 2)
})

test('whoever gives a pid alone is told where it goes', () => {
  const hint = refusal(/^Option options: give an object, such as \{ pid: 77 \}\.$/)
  assert.throws(() => checkAttachOptions(77 as AttachOptions), hint)
  assert.throws(() => checkAggregateOptions('uprobe:f', 77 as unknown as object), hint)
  assert.throws(() => checkAttachOptions(null as unknown as AttachOptions), refusal(/such as \{ pid: 4242 \}\.$/))
})

test('what cannot be measured beside a latency is told in terms of what was given', () => {
  const options = { histogram: 'latency', sum: 'arg0' }
  assert.throws(() => checkAggregateOptions('uprobe:f', options), refusal(/^Option sum: beside the latency of a function nothing else/))
  assert.throws(() => checkAggregateOptions({ from: 'uprobe:f', to: 'uprobe:g' }, options), refusal(/^Option sum: between two probes only/))
})
