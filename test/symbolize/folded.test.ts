/**
 * Folded stacks, whatever the names of their frames are: one line, with as many frames as there are.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { foldStack, type StackFrame } from '../../lib/index.js'

function frame(known: Partial<StackFrame>): StackFrame {
  return { address: 0x7f00_1234n, symbol: null, offset: null, module: null, fileOffset: null, buildId: null, ...known }
}

test('goes from the outermost frame to the innermost', () => {
  assert.equal(foldStack('node', [frame({ symbol: 'inner' }), frame({ symbol: 'outer' })]), 'node;outer;inner')
})

test('says file and offset, or the address, where there is no name', () => {
  const frames = [frame({}), frame({ module: '/lib/libc.so.6', fileOffset: 0x1234n }), frame({ module: '[uprobes]' })]
  assert.equal(foldStack('a', frames), 'a;[uprobes];libc.so.6+0x1234;0x7f001234')
})

test('keeps blanks, and no name can add a frame, a line or an escape sequence', () => {
  const line = foldStack('my; thread\n7', [frame({ symbol: 'JS:*f /a b.js:1:2' }), frame({ symbol: 'x;y\r\x1b[2J\u202e' })])
  assert.equal(line, 'my: thread\\x0a7;x:y\\x0d\\x1b[2J\\u{202e};JS:*f /a b.js:1:2')
})
