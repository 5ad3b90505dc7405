/**
 * The grammar of filters. What they decide at a hit is in values.test.ts.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { type FilterExpression, parseFilter } from '../../lib/capture/filter.js'
import { UprobeError } from '../../lib/errors.js'

/** An expression with all its parentheses. */
function written(expression: FilterExpression): string {
  switch (expression.kind) {
    case 'compare': {
      const { subject, relation, value } = expression
      return `${subject.is === 'arg' ? `arg${subject.index}` : subject.is} ${relation} ${value}`
    }
    case 'not':
      return `!(${written(expression.inner)})`
    default:
      return `(${written(expression.left)}) ${expression.kind === 'and' ? '&&' : '||'} (${written(expression.right)})`
  }
}

for (const [text, expected] of [
  ['arg0 == 5', 'arg0 == 5'],
  ['arg0==5', 'arg0 == 5'],
  ['  arg12 != -0x10  ', 'arg12 != -16'],
  ['pid >= 1', 'pid >= 1'],
  ['tid < 0xFF', 'tid < 255'],
  ['arg0 <= 18446744073709551615', 'arg0 <= 18446744073709551615'],
  ['arg0 > -9223372036854775808', 'arg0 > -9223372036854775808'],
  ['arg0 == 1 && arg1 == 2 || arg2 == 3', '((arg0 == 1) && (arg1 == 2)) || (arg2 == 3)'],
  ['arg0 == 1 || arg1 == 2 && arg2 == 3', '(arg0 == 1) || ((arg1 == 2) && (arg2 == 3))'],
  ['(arg0 == 1 || arg1 == 2) && arg2 == 3', '((arg0 == 1) || (arg1 == 2)) && (arg2 == 3)'],
  ['!(arg0 == 1) && arg1 == 2', '(!(arg0 == 1)) && (arg1 == 2)'],
  ['!!(arg0 == 1)', '!(!(arg0 == 1))'],
  ['! arg0 == 1 && arg1 == 2', '(!(arg0 == 1)) && (arg1 == 2)'],
] as const) {
  test(`parses ${text}`, () => assert.equal(written(parseFilter(text)), expected))
}

for (const [text, column] of [
  ['', 1],
  ['   ', 4],
  ['arg0', 5],
  ['arg0 = 5', 6],
  ['arg0 == ', 9],
  ['arg0 == x', 9],
  ['arg == 5', 1],
  ['foo == 5', 1],
  ['5 == arg0', 1],
  ['arg0 == 5 arg1 == 6', 11],
  ['arg0 == 5 &&', 13],
  ['arg0 == 5 & arg1 == 6', 11],
  ['(arg0 == 5', 11],
  ['arg0 == 5)', 10],
  ['arg0 == 1.5', 10],
  ['arg0 == 5x', 10],
  ['arg0 == 0xg', 10],
  ['arg0 == 18446744073709551616', 9],
  ['arg0 == -9223372036854775809', 9],
  ['arg0 == "text"', 9],
] as const) {
  test(`refuses ${JSON.stringify(text)} at column ${column}`, () => {
    assert.throws(
      () => parseFilter(text),
      (error) => {
        assert.ok(error instanceof UprobeError)
        assert.equal(error.code, 'ERR_UPROBE_BAD_OPTION')
        assert.match(error.message, new RegExp(`column ${column}\\b`))
        return true
      },
    )
  })
}

test('refuses filters that are too long or too deep', () => {
  assert.throws(() => parseFilter(`arg0 == 1${' || arg0 == 1'.repeat(1000)}`), { code: 'ERR_UPROBE_BAD_OPTION' })
  assert.throws(() => parseFilter(`${'('.repeat(1000)}arg0 == 1${')'.repeat(1000)}`), { code: 'ERR_UPROBE_BAD_OPTION' })
  assert.throws(() => parseFilter(`${'!'.repeat(1000)}arg0 == 1`), { code: 'ERR_UPROBE_BAD_OPTION' })
})

test('refuses or parses any text, and throws nothing else', () => {
  const word = fc.constantFrom(
    'arg0',
    'arg1',
    'pid',
    'tid',
    '==',
    '!=',
    '<',
    '>=',
    '&&',
    '||',
    '!',
    '(',
    ')',
    '-1',
    '0x1f',
    '7',
    ' ',
    '.',
    '\u0000',
    '€',
  )
  const text = fc.oneof(
    fc.string({ maxLength: 60 }),
    fc.array(word, { maxLength: 20 }).map((words) => words.join(' ')),
  )
  fc.assert(
    fc.property(text, (filter) => {
      try {
        const once = written(parseFilter(filter))
        assert.equal(written(parseFilter(once)), once)
      } catch (error) {
        assert.ok(error instanceof UprobeError && error.code === 'ERR_UPROBE_BAD_OPTION', String(error))
      }
    }),
    { numRuns: 3000 },
  )
})
