/**
 * The values of options and arguments: what is taken, what it becomes, and what is refused.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { InvalidArgumentError } from 'commander'
import { collectArgumentNumbers, collectPids, parseDurationMs, parseFileOrPid, parseHits, parsePid } from '../../lib/cli/options.js'

const refused = { constructor: InvalidArgumentError, message: /^It must be a / }

/** Whole numbers that are none as people write them. */
const NO_NUMBERS = ['', ' ', '-1', '+1', '1.5', '1e3', '0x10', '1 ', '1_000', '٣', 'x', 'Infinity', 'NaN']

test('a process id is a whole number from 1 to the largest that the kernel may give', () => {
  assert.deepEqual(['1', '007', '4194304'].map(parsePid), [1, 7, 4_194_304])
  for (const text of [...NO_NUMBERS, '0', '4194305', '9'.repeat(30)]) assert.throws(() => parsePid(text), refused, text)
})

test('-p and --str collect in the order of the command line', () => {
  assert.deepEqual(
    ['3', '1', '3'].reduce<number[] | undefined>((before, text) => collectPids(text, before), undefined),
    [3, 1, 3],
  )
  assert.deepEqual(
    ['31', '0'].reduce<number[] | undefined>((before, text) => collectArgumentNumbers(text, before), undefined),
    [31, 0],
  )
  for (const text of [...NO_NUMBERS, '32']) assert.throws(() => collectArgumentNumbers(text), refused, text)
})

test('-n takes a whole number from 1', () => {
  assert.deepEqual(['1', '9007199254740991'].map(parseHits), [1, Number.MAX_SAFE_INTEGER])
  for (const text of [...NO_NUMBERS, '0', '9007199254740992']) assert.throws(() => parseHits(text), refused, text)
})

test('-d takes seconds, also parts of one, up to the longest delay of a timer, and never becomes no time at all', () => {
  assert.deepEqual(['1', '0.25', '.5', '2147483', '0.0001'].map(parseDurationMs), [1000, 250, 500, 2_147_483_000, 1])
  for (const text of ['', '0', '0.0', '-1', '.', '.0', '-.5', '1.', '1e3', '2147483.5', '2147484', 'x', 'Infinity'])
    assert.throws(() => parseDurationMs(text), refused, text)
})

test('digits are a process id, everything else is a file', () => {
  assert.deepEqual(['42', './42', '42x', '', '-1'].map(parseFileOrPid), [42, './42', '42x', '', '-1'])
  assert.throws(() => parseFileOrPid('0'), refused)
})
