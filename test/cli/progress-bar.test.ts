/**
 * The line that says how far an attach is, on a terminal that keeps what is written to it.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { ProgressBar } from '../../lib/cli/progress-bar.js'
import type { Progress } from '../../lib/index.js'

/** A terminal, and the line that is to be seen on it. */
function terminal(
  columns?: number,
  isTTY = true,
): { isTTY: boolean; columns?: number; text: string; write(text: string): void; readonly line: string } {
  return {
    isTTY,
    ...(columns !== undefined && { columns }),
    text: '',
    write(text) {
      this.text += text
    },
    get line() {
      return this.text.slice(this.text.lastIndexOf('\r\u001b[K') + 4)
    },
  }
}

function at(done: number, total = 10_000, step: Progress['step'] = 'check', action: Progress['action'] = 'attach'): Progress {
  return { action, spec: 'usdt:t:*', step, done, total }
}

test('is drawn over and over, and erased at the end of each step', () => {
  const on = terminal()
  const bar = new ProgressBar(on)
  bar.show(at(0))
  assert.equal(on.line, 'checking   [------------------------] 0/10000')
  bar.show(at(5000))
  assert.equal(on.line, 'checking   [############------------] 5000/10000')
  bar.show(at(10_000))
  assert.equal(on.line, '')
  bar.show(at(1, 4, 'claim', 'detach'))
  assert.equal(on.line, 'releasing  [######------------------] 1/4')
  bar.erase()
  assert.equal(on.line, '')
  const { length } = on.text
  bar.erase()
  assert.equal(on.text.length, length)
})

test('is never wider than the terminal, also where that does not say how wide it is', () => {
  const narrow = terminal(20)
  new ProgressBar(narrow).show(at(1))
  assert.equal(narrow.line, 'checking   [-------')
  const unknown = terminal(0)
  new ProgressBar(unknown).show(at(1))
  assert.equal(unknown.line.length, 'checking   [------------------------] 1/10000'.length)
})

test('is not drawn where nobody looks', () => {
  const pipe = terminal(80, false)
  const bar = new ProgressBar(pipe)
  bar.show(at(1))
  bar.erase()
  assert.equal(pipe.text, '')
})
