/**
 * What a session writes to a terminal while its probes are being attached. Nothing is traced: the probes are events.
 */
import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import test from 'node:test'
import { Output } from '../../lib/cli/output.js'
import { type Attached, runSessionOf } from '../../lib/cli/session.js'

const ERASE = '\r\u001b[K'

test('a warning of a probe does not stand behind the bar of the one that is being attached', async (t) => {
  let written = ''
  const isTTY = Object.getOwnPropertyDescriptor(process.stderr, 'isTTY')
  Object.defineProperty(process.stderr, 'isTTY', { value: true, configurable: true })
  t.after(() => Object.defineProperty(process.stderr, 'isTTY', isTTY ?? { value: undefined, configurable: true }))
  t.mock.method(process.stderr, 'write', (text: string) => {
    written += text
    return true
  })
  const first = Object.assign(new EventEmitter(), { sites: [], warnings: [] }) as Attached & EventEmitter
  await runSessionOf(
    { durationMs: undefined, json: false, output: new Output(process.stdout) },
    async function* (tracer) {
      yield first
      tracer.emit('progress', { action: 'attach', spec: 'usdt:t:*', step: 'check', done: 5000, total: 10_000 })
      first.emit('error', new Error('the first is in trouble'))
      tracer.emit('progress', { action: 'attach', spec: 'usdt:t:*', step: 'check', done: 6000, total: 10_000 })
    },
    async () => undefined,
  )
  const shown = written.split('\n').map((line) => line.slice(line.lastIndexOf(ERASE) + (line.includes(ERASE) ? ERASE.length : 0)))
  assert.deepEqual(shown, ['uprobe: warning: the first is in trouble', 'attached 0 sites of 0 probes', ''])
})
