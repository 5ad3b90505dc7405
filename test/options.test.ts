/**
 * Options that are no options, as they are refused at the border.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { type AggregateOptions, checkAggregateOptions } from '../lib/aggregate/options.js'
import { type AttachOptions, checkAttachOptions, checkTracerOptions } from '../lib/options.js'

const NAMES = [
  ...(['pid', 'path', 'counter', 'strings', 'stringLimit', 'stack', 'stackDepth', 'countOnly', 'filter'] as const),
  ...(['queueLimit', 'queueLimitBytes', 'maxSites', 'registration', 'unsafe', 'budget', 'signal'] as const),
]

test('null is refused for every option, and undefined is as if it were left out', () => {
  const defaults = checkAttachOptions({})
  for (const name of NAMES) {
    const message = `Option ${name}: it is null; leave it out, or give undefined, where nothing is meant.`
    const options = { [name]: null } as unknown as AttachOptions
    assert.throws(() => checkAttachOptions(options), { code: 'ERR_UPROBE_BAD_OPTION', message })
    assert.deepEqual(checkAttachOptions({ [name]: undefined }), defaults)
  }
  assert.throws(() => checkTracerOptions({ leaseDir: null } as never), { code: 'ERR_UPROBE_BAD_OPTION' })
  assert.throws(() => checkAggregateOptions('usdt:a:b', { by: null } as never), { code: 'ERR_UPROBE_BAD_OPTION' })
})

test('match among the options of an aggregation is told where it belongs', () => {
  const options = { match: 'arg0' } as AggregateOptions
  assert.throws(() => checkAggregateOptions({ from: 'usdt:a:b', to: 'usdt:a:c' }, options), {
    code: 'ERR_UPROBE_BAD_OPTION',
    message: 'Option match: it stands beside the two probes: { from, to, match }.',
  })
})
