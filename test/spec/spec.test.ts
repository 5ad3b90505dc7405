import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { UprobeError } from '../../lib/errors.js'
import { parseSpec } from '../../lib/spec/spec.js'

function refusal(text: string): UprobeError {
  try {
    parseSpec(text)
  } catch (error) {
    assert.ok(error instanceof UprobeError)
    assert.equal(error.code, 'ERR_UPROBE_BAD_SPEC')
    return error
  }
  return assert.fail(`${text} was accepted`)
}

describe('a probe specification', () => {
  const accepted: Array<[string, ReturnType<typeof parseSpec>]> = [
    [
      'usdt:postgresql:query__start',
      {
        kind: 'usdt',
        path: null,
        place: { by: 'note', provider: 'postgresql', name: 'query__start' },
        wildcard: false,
        text: 'usdt:postgresql:query__start',
      },
    ],
    [
      'usdt:/a:b/c:p:n*',
      { kind: 'usdt', path: '/a:b/c', place: { by: 'note', provider: 'p', name: 'n*' }, wildcard: true, text: 'usdt:/a:b/c:p:n*' },
    ],
    [
      'uprobe:malloc',
      { kind: 'uprobe', path: null, place: { by: 'symbol', symbol: 'malloc', offset: 0n }, wildcard: false, text: 'uprobe:malloc' },
    ],
    [
      'uprobe:/lib/libc.so.6:malloc+0x1f',
      {
        kind: 'uprobe',
        path: '/lib/libc.so.6',
        place: { by: 'symbol', symbol: 'malloc', offset: 0x1fn },
        wildcard: false,
        text: 'uprobe:/lib/libc.so.6:malloc+0x1f',
      },
    ],
    [
      'uprobe:/bin/x:malloc+16',
      {
        kind: 'uprobe',
        path: '/bin/x',
        place: { by: 'symbol', symbol: 'malloc', offset: 16n },
        wildcard: false,
        text: 'uprobe:/bin/x:malloc+16',
      },
    ],
    [
      'uprobe:/bin/x:0xABC',
      { kind: 'uprobe', path: '/bin/x', place: { by: 'offset', fileOffset: 0xabcn }, wildcard: false, text: 'uprobe:/bin/x:0xABC' },
    ],
    [
      'uretprobe:/bin/x:memcpy@@GLIBC_2.14',
      {
        kind: 'uretprobe',
        path: '/bin/x',
        place: { by: 'symbol', symbol: 'memcpy@@GLIBC_2.14', offset: 0n },
        wildcard: false,
        text: 'uretprobe:/bin/x:memcpy@@GLIBC_2.14',
      },
    ],
    [
      'uprobe:/bin/x:uv_?*',
      { kind: 'uprobe', path: '/bin/x', place: { by: 'symbol', symbol: 'uv_?*', offset: 0n }, wildcard: true, text: 'uprobe:/bin/x:uv_?*' },
    ],
  ]
  for (const [text, expected] of accepted) it(`is read from its right end: ${text}`, () => assert.deepEqual(parseSpec(text), expected))

  const refused: Array<[string, string, RegExp]> = [
    ['the kind is missing', 'malloc', /does not begin with/],
    ['the kind is unknown', 'kprobe:do_sys_open', /does not begin with/],
    ['there is only a provider', 'usdt:postgresql', /by its provider and its name/],
    ['the provider is empty', 'usdt::name', /empty/],
    ['the name is empty', 'usdt:provider:', /empty/],
    ['the path is empty', 'usdt::provider:name', /PATH is empty/],
    ['the symbol is empty', 'uprobe:/bin/x:', /symbol is empty/],
    ['the symbol before an offset is empty', 'uprobe:/bin/x:+4', /before \+ is empty/],
    ['a file offset has no file', 'uprobe:0x1234', /needs the PATH/],
    ['a return probe is put on an offset', 'uretprobe:/bin/x:0x1234', /on a function/],
    ['a return probe is put inside a function', 'uretprobe:/bin/x:f+4', /start of a function/],
    ['a pattern is combined with an offset', 'uprobe:/bin/x:f*+4', /pattern/],
    ['the offset is no number', 'uprobe:/bin/x:f+0xzz', /not an offset/],
    ['the offset does not fit', 'uprobe:/bin/x:0xffffffffffffffff', /63 bits/],
    ['it holds a NUL', 'usdt:a:b\0', /NUL/],
    ['it is absurdly long', `usdt:a:${'b'.repeat(10_000)}`, /longer than/],
  ]
  for (const [when, text, message] of refused) it(`is refused when ${when}`, () => assert.match(refusal(text).message, message))

  it('never yields anything but a result or ERR_UPROBE_BAD_SPEC', () => {
    fc.assert(
      fc.property(fc.constantFrom('usdt:', 'uprobe:', 'uretprobe:', ''), fc.string({ unit: 'binary' }), (kind, rest) => {
        try {
          assert.equal(parseSpec(kind + rest).text, kind + rest)
        } catch (error) {
          assert.ok(error instanceof UprobeError && error.code === 'ERR_UPROBE_BAD_SPEC')
        }
      }),
      { numRuns: 2000 },
    )
  })
})
