/**
 * The grammar of filters, and what is refused with which words at which place. What filters decide at a hit is in filter-kernel.test.ts.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { type Filter, filterError } from '../../lib/capture/filter.js'
import { bindFilter, comparedAsSigned } from '../../lib/capture/filter-bind.js'
import { parseFilter } from '../../lib/capture/filter-parse.js'
import { bindOperands, parseOperands } from '../../lib/capture/operands.js'
import { UprobeError } from '../../lib/errors.js'
import { condition, withoutPlaces, written } from './filters.js'

for (const [text, expected] of [
  ['arg0 == 5', 'arg0 == 5'],
  ['arg0==5', 'arg0 == 5'],
  ['  arg12 != -0x10  ', 'arg12 != -16'],
  ['pid >= 1', 'pid >= 1'],
  ['tid < 0xFF', 'tid < 255'],
  ['cpu == 0b11 || cpu == 0o17', '(cpu == 3) || (cpu == 15)'],
  ['arg0 == 1_000n', 'arg0 == 1000'],
  ['arg0 === 1 && arg1 !== 2', '(arg0 == 1) && (arg1 != 2)'],
  ['arg0 <= 18446744073709551615', 'arg0 <= 18446744073709551615'],
  ['arg0 <= 9007199254740993', 'arg0 <= 9007199254740993'],
  ['arg0 > -9223372036854775808', 'arg0 > -9223372036854775808'],
  ['5 == arg0', '5 == arg0'],
  ['arg0', 'arg0 != 0'],
  ['!arg0', '!(arg0 != 0)'],
  ['arg0 & 4', '(arg0 & 4) != 0'],
  ['arg0 == 1 && arg1 == 2 || arg2 == 3', '((arg0 == 1) && (arg1 == 2)) || (arg2 == 3)'],
  ['arg0 == 1 || arg1 == 2 && arg2 == 3', '(arg0 == 1) || ((arg1 == 2) && (arg2 == 3))'],
  ['(arg0 == 1 || arg1 == 2) && arg2 == 3', '((arg0 == 1) || (arg1 == 2)) && (arg2 == 3)'],
  ['!(arg0 == 1) && arg1 == 2', '(!(arg0 == 1)) && (arg1 == 2)'],
  ['!!(arg0 == 1)', '!(!(arg0 == 1))'],
  ['arg0 + arg1 * 2 > 1 << 3 - 1', '(arg0 + (arg1 * 2)) > (1 << (3 - 1))'],
  ['arg0 - arg1 - 1 == -arg2 % ~3', '((arg0 - arg1) - 1) == (-(arg2) % ~(3))'],
  ['(arg0 | arg1 ^ arg2 & 7) == 0', '(arg0 | (arg1 ^ (arg2 & 7))) == 0'],
  ['str(arg1) == "select"', 'str(arg1) == "select"'],
  ["'select' != str(arg1)", 'str(arg1) != "select"'],
  ['comm.startsWith("post")', 'comm.startsWith("post")'],
  ['!str(arg0).startsWith("é\\x41")', '!(str(arg0).startsWith("éA"))'],
  ['strncmp(str(arg1), "select", 3) == 0', 'str(arg1).startsWith("sel")'],
  ['0 != strncmp("select", comm, 3)', 'strncmp(comm, "sel", 3) != 0'],
  ['strncmp(comm, "sel", 4) == 0', 'comm == "sel"'],
  ['!strncmp(comm, "sel", 3)', '!(strncmp(comm, "sel", 3) != 0)'],
] as const) {
  test(`parses ${text}`, () => assert.equal(written(parseFilter(text).condition), expected))
}

for (const [text, column, message] of [
  ['', 1, /something is missing/],
  ['   ', 4, /something is missing/],
  ['arg0 = 5', 6, /= is not part of a filter; == compares/],
  ['arg0 + 1 =  5', 10, /= is not part of a filter; == compares/],
  ['str(arg0)="x"', 10, /= is not part of a filter; == compares/],
  ['(arg0 = 5)', 7, /= is not part of a filter; == compares/],
  ['5 += 1', 3, /\+= is not part of a filter/],
  ['arg0 == ', 9, /something is missing/],
  ['arg0 == x', 9, /x is not known; there are arg0/],
  ['arg == 5', 1, /arg is not known/],
  ['arg00 == 5', 1, /arg00 is not known/],
  ['arg0 == 5 arg1 == 6', 11, /should end here/],
  ['arg0 == 5 &&', 13, /something is missing/],
  ['arg0 == 5 & arg1 == 6', 1, /a condition is used as a number.*parentheses/],
  ['arg0 & 4 == 4', 8, /a condition is used as a number/],
  ['1 < arg0 < 3', 1, /a condition is used as a number/],
  ['(arg0 == 5', 11, /something is missing/],
  ['arg0 == 5)', 10, /should end here/],
  ['arg0 == 5;', 10, /should end here/],
  ['arg0 == 1.5', 9, /not a whole number/],
  ['arg0 == 1e3', 9, /not a whole number/],
  ['arg0 == 5x', 10, /identifier directly after number/],
  ['arg0 == 010', 9, /invalid number/],
  ['arg0 == 0xg', 11, /expected number in radix 16/],
  ['arg0 == 18446744073709551616', 9, /does not fit 64 bits/],
  ['arg0 == -9223372036854775809', 10, /does not fit 64 bits/],
  ['arg0 > "x"', 8, /a string is compared with a number/],
  ['"x" == arg0', 1, /a string is compared with a number/],
  ['arg2 == "alice"', 9, /a string is compared with a number; to read the string it points to, write str\(arg2\)$/m],
  ['"alice" != arg2', 1, /write str\(arg2\)$/m],
  ['arg2 > "alice"', 8, /a string is compared with a number$/m],
  ['arg2 + 1 == "alice"', 13, /a string is compared with a number$/m],
  ['comm == (arg0 > 1)', 1, /a string is compared with a condition/],
  ['comm == comm', 9, /a string is compared with a text in quotes/],
  ['"a" == "b"', 8, /a string is compared with a text in quotes/],
  ['comm < "x"', 8, /not by </],
  ['comm', 1, /a string alone is no condition/],
  ['foo && bar && baz', 1, /foo is not known/],
  ['arg0 == 1 && "x"', 14, /a string alone is no condition/],
  ['comm + 1 > 3', 1, /a string is used as a number/],
  ['comm == "sixteen or more bytes"', 9, /comm has at most 15 bytes, and this 21/],
  [`str(arg0) == "${'x'.repeat(129)}"`, 14, /a text of 129 bytes; at most 128/],
  ['comm == "a\\0"', 9, /NUL/],
  ['comm == "\\ud800"', 9, /surrogate/],
  ['comm == "open', 9, /unterminated string/],
  ['comm.startsWith("")', 17, /every string starts with nothing/],
  ['comm.startsWith(arg0)', 17, /takes one text in quotes/],
  ['comm.startsWith()', 6, /takes one text in quotes/],
  ['comm.endsWith("x")', 6, /only startsWith/],
  ['arg0.startsWith("x")', 1, /only comm and str/],
  ['comm.startsWith', 1, /not part of a filter/],
  ['str(5) == "x"', 5, /takes one argument of the probe/],
  ['str(pid) == "x"', 5, /takes one argument of the probe/],
  ['str() == "x"', 1, /takes one argument of the probe/],
  ['foo(arg0) == 1', 1, /no function of a filter/],
  ['strncmp(comm, "x", 1) == 1', 26, /is compared with 0/],
  ['strncmp(comm, "x", 1) > 0', 25, /is compared with 0/],
  ['strncmp(comm, "x", 1) + 1', 1, /is compared with 0/],
  ['strncmp(comm, "x", 0) == 0', 20, /from 1/],
  ['strncmp(comm, "x") == 0', 1, /strncmp takes/],
  ['strncmp(arg0, "x", 1) == 0', 9, /strncmp takes/],
  ['strncmp(comm, comm, 1) == 0', 15, /strncmp takes/],
  ['strncmp(comm, "é", 1) == 0', 20, /cuts a character/],
  ['arg0 / 0 > 1', 8, /divides by 0/],
  ['arg0 % 0x0 > 1', 8, /divides by 0/],
  ['arg0 ** 2 > 1', 6, /\*\* is not part/],
  ['arg0 >>> 2 > 1', 1, />>> is not part/],
  ['arg0 in comm', 6, /in is not part/],
  ['+arg0 > 1', 1, /not part of a filter/],
  ['arg0 > 1 ? 2 : 3', 10, /\? is not part/],
  ['arg0 ?? 1', 6, /\?\? is not part/],
  ['arg0 > 1, 5', 11, /join conditions/],
  ['`x` == comm', 1, /not part/],
  ['comm == /x/', 9, /not part/],
  ['true', 1, /true is not part/],
  ['arg0 > 1 // comment', 10, /comment/],
  ['arg0 > 1 /* comment */', 10, /comment/],
  ['retval > 1', 1, /return probe/],
  ['arg0 > \u001b', 8, /unexpected character '\\x1b'/],
] as const) {
  test(`refuses ${JSON.stringify(text)} at column ${column}`, () => refusedAt(() => parseFilter(text), column, message))
}

test('has retval for a return probe', () => {
  const [own, other] = [parseFilter('retval > 1', 'uretprobe'), parseFilter('arg0 > 1', 'uretprobe')]
  assert.deepEqual(withoutPlaces(own.condition), withoutPlaces(other.condition))
})

/** Asserts the place and the words of a refusal. */
function refusedAt(parse: () => unknown, column: number, message: RegExp): void {
  assert.throws(parse, (error) => {
    assert.ok(error instanceof UprobeError, String(error))
    assert.equal(error.code, 'ERR_UPROBE_BAD_OPTION')
    assert.ok(error.message.startsWith(`Option filter: column ${column}: `), error.message)
    assert.match(error.message.split('\n')[0] ?? '', message)
    return true
  })
}

const operands = bindOperands(parseOperands('-4@%eax 8f@%rax 8@%xmm0 8@%rdi', 'x64'), 0n, new Map())

for (const [text, column, message] of [
  ['arg0 > 1 && arg4 == 2', 13, /usdt:t:p has 4 arguments/],
  ['1 + arg1 > 1', 5, /arg1 of usdt:t:p is a floating-point number \(8f@%rax\)/],
  ['arg2 > 1', 1, /arg2 of usdt:t:p cannot be read: .* \(8@%xmm0\)/],
  ['str(arg0) == "x"', 1, /arg0 of usdt:t:p is no pointer to a string: it is 4 bytes wide/],
  ['arg0 || str(arg1) == "x"', 9, /arg1 of usdt:t:p is no pointer to a string: it is a floating-point number/],
  [`arg0 == ${'(pid + '.repeat(18)}pid${')'.repeat(18)}`, 17, /more than 16 intermediate results/],
] as const) {
  test(`refuses ${text} for the operands of a probe, at column ${column}`, () => {
    const filter = parseFilter(text)
    refusedAt(() => bindFilter(filter, operands, 'usdt:t:p'), column, message)
  })
}

test('of no arguments none is counted', () => {
  refusedAt(() => bindFilter(parseFilter('arg0 > 1'), [], 'usdt:t:p'), 1, /usdt:t:p has no arguments$/)
})

test('binds what suits the operands', () => {
  for (const text of ['arg0 > 1', 'str(arg3) == "x"', `arg0 == ${'(pid + '.repeat(15)}pid${')'.repeat(15)}`]) {
    bindFilter(parseFilter(text), operands)
  }
})

for (const [text, places] of [
  ['arg3 == -1', [0]],
  ['pid != 1 && (-2 < arg3 || !(tid >= -1))', [13, 28]],
  ['arg3 < 0 || 0 > arg3 || arg3 >= 0 || 0 <= arg3', [0, 12, 24, 37]],
  ['arg3 > 0 || 0 < arg3 || arg3 <= 0 || arg3 != 0 || 5 == -1 || arg0 < 0', []],
  // Signed: by its note, by arithmetic, by its sign.
  ['arg0 == -1 || arg3 - 0 == -1 || -1 == -arg3 || -1 < -2', []],
  ['(arg3 << 32) - 0 >> 32 == -1 || arg3 > 1', []],
] as const) {
  test(`finds unsigned numbers that are compared as signed ones in ${text}`, () => {
    assert.deepEqual(comparedAsSigned(bindFilter(parseFilter(text), operands)), places)
  })
}

test('points at the place with a caret, behind what is escaped and within what is shown', () => {
  assert.equal(filterError('arg0 > "x"', 7, 'wrong').message, 'Option filter: column 8: wrong\n  arg0 > "x"\n         ^')
  assert.equal(filterError('\u001b[1m > x', 7, 'wrong').message, 'Option filter: column 8: wrong\n  \\x1b[1m > x\n            ^')
  const long = filterError(`${'a'.repeat(100)}!${'b'.repeat(100)}`, 100, 'wrong').message
  assert.equal(long, `Option filter: column 101: wrong\n  …${'a'.repeat(60)}!${'b'.repeat(59)}…\n  ${' '.repeat(61)}^`)
})

test('refuses filters that are too long or too deep, and takes long chains', () => {
  const code = { code: 'ERR_UPROBE_BAD_OPTION' }
  assert.throws(() => parseFilter(`arg0 == 1${' || arg0 == 1'.repeat(1000)}`), code)
  for (const [open, close] of [
    ['(', ')'],
    ['!', ''],
    ['~', ''],
    ['!(', ')'],
    ['- ', ''],
    ['pid+(', ')'],
    ['str(', ')'],
    ['strncmp(', ')'],
    ['await ', ''],
  ] as const) {
    const count = Math.floor(4080 / (open.length + close.length))
    assert.throws(() => parseFilter(`${open.repeat(count)}arg0 == 1${close.repeat(count)}`), code, open)
  }
  assert.throws(() => parseFilter(`arg0${' + 1'.repeat(100)} == 1`), code)
  assert.throws(() => parseFilter(`comm${'.startsWith("x")'.repeat(200)}`), code)
  parseFilter(`arg0 == 1${' || arg0 == 1'.repeat(300)}`)
})

test('what is written of any tree is parsed into it', () => {
  fc.assert(
    fc.property(condition(), (tree) => {
      assert.deepEqual(withoutPlaces(parseFilter(written(tree)).condition), withoutPlaces(tree))
    }),
    { numRuns: 2000 },
  )
})

test('refuses or parses any text, and throws nothing else', () => {
  const words = [
    'arg0',
    'arg1',
    'pid',
    'str(',
    'comm',
    '.startsWith(',
    '"x"',
    "'",
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
    '-',
    '+',
    '/',
    '%',
    '0x1f',
    '7',
    ' ',
    '.',
    ',',
    '\u0000',
    '€',
    '`',
    '=>',
    '{',
    '[',
    '\\u',
    '?.',
    '\ud800',
    '<!--',
  ]
  const text = fc.oneof(
    fc.string({ maxLength: 60, unit: 'binary' }),
    fc.array(fc.constantFrom(...words), { maxLength: 20 }).map((parts) => parts.join(' ')),
    fc.array(fc.constantFrom(...words), { maxLength: 20 }).map((parts) => parts.join('')),
  )
  fc.assert(
    fc.property(text, (given) => {
      let filter: Filter
      try {
        filter = parseFilter(given)
      } catch (error) {
        assert.ok(error instanceof UprobeError && error.code === 'ERR_UPROBE_BAD_OPTION', String(error))
        return
      }
      const once = written(filter.condition)
      assert.equal(written(parseFilter(once).condition), once)
    }),
    { numRuns: 3000 },
  )
})
