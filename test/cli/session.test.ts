/**
 * What a session writes to a terminal while its probes are being attached and detached. Nothing is traced but by the last: the probes are events.
 */
import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import test, { type TestContext } from 'node:test'
import { CommonTime } from '../../lib/cli/common-time.js'
import { Output } from '../../lib/cli/output.js'
import { type Attached, runSessionOf } from '../../lib/cli/session.js'
import type { Probe, Progress } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { Cli } from '../support/cli.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'

const ERASE = '\r\u001b[K'

/** Makes standard error a terminal, and standard output another or a file. Returns what is written to the first. */
function onTerminal(t: TestContext, outputToo: boolean): { text: string } {
  const terminal = { text: '' }
  for (const [stream, value] of [
    [process.stderr, true],
    [process.stdout, outputToo],
  ] as const) {
    const isTTY = Object.getOwnPropertyDescriptor(stream, 'isTTY')
    Object.defineProperty(stream, 'isTTY', { value, configurable: true })
    t.after(() => Object.defineProperty(stream, 'isTTY', isTTY ?? { value: undefined, configurable: true }))
  }
  t.mock.method(process.stderr, 'write', (text: string) => {
    terminal.text += text
    return true
  })
  return terminal
}

const DETACHING: Progress = { action: 'detach', spec: 'usdt:t:*', step: 'unregister', done: 5000, total: 10_000 }

for (const [what, printsHits, outputToo, shown] of [
  ['is drawn where only a result is printed', false, true, true],
  ['is drawn where hits are printed elsewhere', true, false, true],
  ['is not drawn among the hits', true, true, false],
] as const) {
  test(`the bar of a detach ${what}`, async (t) => {
    const terminal = onTerminal(t, outputToo)
    await runSessionOf(
      { durationMs: undefined, json: false, output: new Output(process.stdout), printsHits },
      async function* (tracer) {
        tracer.emit('progress', DETACHING)
        yield* []
      },
      async () => undefined,
    )
    assert.equal(terminal.text.includes('detaching  [############------------] 5000/10000'), shown)
  })
}

test(
  'count draws the bar of its detach on the terminal that it prints its result to',
  needs({ programs: ['gcc', 'script'] }),
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    // `script` gives it a terminal for all that it writes, and passes that on.
    const prefix = ['sh', '-c', 'exec script -qec "$*" /dev/null', 'sh']
    const { stdout } = await Cli.start(t, ['count', 'usdt:t:plain', '-p', String(target.pid), '-d', '1'], { prefix }).ended
    const detaching = stdout.slice(stdout.indexOf('attached 1 site of 1 probe'))
    assert.match(detaching, /detaching +\[-+\] 0\/1/)
  },
)

test('a warning of a probe does not stand behind the bar of the one that is being attached', async (t) => {
  const terminal = onTerminal(t, true)
  const first = Object.assign(new EventEmitter(), { sites: [], warnings: [], detach: async () => undefined }) as Attached & EventEmitter
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
  const shown = terminal.text.split('\n').map((line) => line.slice(line.lastIndexOf(ERASE) + (line.includes(ERASE) ? ERASE.length : 0)))
  assert.deepEqual(shown, ['uprobe: warning: the first is in trouble', 'attached 0 sites of 0 probes', ''])
})

test(
  'several probes are counted over one time: what the first saw before the last was attached is not among it',
  needs({ programs: ['gcc'] }),
  async (t) => {
    onTerminal(t, false)
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const time = new CommonTime()
    await runSessionOf<Probe>(
      { durationMs: undefined, json: false, output: new Output(process.stdout) },
      async function* (tracer) {
        for (const name of ['plain', 'shared']) {
          yield await tracer.attach(`usdt:t:${name}`, { pid: target.pid, countOnly: true, filter: 'arg0 != 3' })
          await target.ask('plain 5')
        }
      },
      async (probes, stop) => {
        const passed = time.pass(probes, stop)
        await target.ask('plain 7')
        await target.ask('shared 2')
        stop.request('enough')
        await passed
      },
    )
    const counts = time.counts().map(({ probe, hits, filtered }) => [probe, hits, filtered])
    assert.deepEqual(counts, [
      ['usdt:t:plain', 7, 1],
      ['usdt:t:shared', 6, 0],
    ])
  },
)
