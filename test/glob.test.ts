/**
 * Name patterns.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { compileGlob, hasWildcard } from '../lib/glob.js'

test('a pattern stands for these names and not for those', () => {
  const cases: ReadonlyArray<readonly [pattern: string, matching: readonly string[], others: readonly string[]]> = [
    ['uv_run', ['uv_run'], ['uv_runs', 'auv_run', 'uv_ru', '', 'UV_RUN']],
    ['', [''], ['a']],
    ['*', ['', 'a', 'a:b', '*'], []],
    ['?', ['a', '?', '*'], ['', 'ab']],
    ['uv_*', ['uv_', 'uv_run'], ['uv', 'auv_']],
    ['*_run', ['_run', 'uv_run', '_run_run'], ['_runs']],
    ['query__*__start', ['query__execute__start', 'query____start'], ['query__start', 'query__execute__start_']],
    ['a*b*c', ['abc', 'axxbyyc', 'abcbc'], ['ac', 'ab', 'abcd']],
    ['a?c*', ['abc', 'abcd'], ['ac', 'bbc']],
    ['**', ['', 'x'], []],
    ['a**?b', ['axb', 'axxb'], ['ab']],
    ['*a?', ['aab', 'xay', 'aaa'], ['a', 'xa', 'xayz']],
    // What a regular expression would take for more stands for itself.
    ['a.c', ['a.c'], ['abc']],
    ['[ab](c)+$^|\\d', ['[ab](c)+$^|\\d'], ['a', 'ac']],
  ]
  for (const [pattern, matching, others] of cases) {
    const matches = compileGlob(pattern)
    for (const name of matching) assert.equal(matches(name), true, `${pattern} and ${name}`)
    for (const name of others) assert.equal(matches(name), false, `${pattern} and ${name}`)
  }
})

test('a pattern has a wildcard if it has one of * and ?', () => {
  assert.deepEqual(['a', 'a*', '?a', '', 'a.b', '[a]'].map(hasWildcard), [false, true, true, false, false, false])
})

test('agrees with the regular expression of the same meaning', () => {
  const text = fc.string({ unit: fc.constantFrom('a', 'b', '*', '?', '.'), maxLength: 8 })
  fc.assert(
    fc.property(text, text, (pattern, name) => {
      const source = pattern.replace(/[.]/g, '\\.').replace(/\*/g, '.*').replace(/\?/g, '.')
      assert.equal(compileGlob(pattern)(name), new RegExp(`^(?:${source})$`, 's').test(name))
    }),
    { numRuns: 5000 },
  )
})

test('takes time in proportion to pattern and name, where a regular expression would take for ever', () => {
  const matches = compileGlob(`${'a*'.repeat(30)}b`)
  const start = process.cpuUsage()
  assert.equal(matches('a'.repeat(20_000)), false)
  const { user } = process.cpuUsage(start)
  assert.ok(user < 1_000_000, `it took ${user / 1000} ms`)
})
