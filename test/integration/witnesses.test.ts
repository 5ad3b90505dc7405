/**
 * bpftrace and perf at the same time on the same probe see the same hits, and none disturbs another.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { BpftraceCount } from '../support/bpftrace.js'
import { buildTarget } from '../support/build.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { functionOffset, gatedNote } from '../support/notes.js'
import { PerfCount } from '../support/perf.js'
import { PYTHON, startPython } from '../support/python.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'

const BPFTRACE = needs({ programs: ['gcc', 'bpftrace'] })

for (const first of ['bpftrace', 'uprobe'] as const) {
  test(`a gated USDT probe, ${first} first: equal counts, and a counter of 1 until both are gone`, BPFTRACE, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
    const counter = (): number => counterValue(target.pid, target.program, refCtrOffset)
    const attach = () => newTracer(t).attach('usdt:t:gated', { pid: target.pid })
    const start = () => BpftraceCount.start(t, `usdt:${target.program}:t:gated`, target.pid, () => counter() === 1)

    const early = first === 'uprobe' ? await attach() : undefined
    const witness = await start()
    const probe = early ?? (await attach())
    assert.equal(counter(), 1)
    assert.equal(await target.askNumber('threads 4 2500'), 10_000)
    if (first === 'uprobe') {
      await detachComplete(probe, 10_000)
      assert.equal(counter(), 1)
      assert.equal(await target.askNumber('gated 7'), 7)
      assert.equal(await witness.stop(), 10_007)
    } else {
      assert.equal(await witness.stop(), 10_000)
      assert.equal(counter(), 1)
      assert.equal(await target.askNumber('gated 7'), 7)
      await detachComplete(probe, 10_007)
    }
    assert.equal(counter(), 0)
    assert.equal(isArmed(target.pid, target.program, fileOffset), false)
  })
}

test('a function and its return', BPFTRACE, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const offset = functionOffset(target.program, 'f_add')
  const witness = await BpftraceCount.start(t, `uretprobe:${target.program}:f_add`, null, () => isArmed(target.pid, target.program, offset))
  const tracer = newTracer(t)
  const entry = await tracer.attach('uprobe:f_add', { pid: target.pid })
  const exit = await tracer.attach('uretprobe:f_add', { pid: target.pid })
  await target.ask('add 10000')
  await detachComplete(entry, 10_000)
  await detachComplete(exit, 10_000)
  assert.equal(await witness.stop(), 10_000)
  assert.equal(isArmed(target.pid, target.program, offset), false)
})

test(
  'perf and bpftrace beside the package on one function: three equal counts',
  needs({ programs: ['gcc', 'bpftrace', 'perf', 'unshare'] }),
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'func'))
    const offset = functionOffset(target.program, 'f_add')
    const perf = await PerfCount.start(t, target.program, 'f_add', target.pid)
    const bpftrace = await BpftraceCount.start(t, `uprobe:${target.program}:f_add`, target.pid, () =>
      isArmed(target.pid, target.program, offset),
    )
    const probe = await newTracer(t).attach('uprobe:f_add', { pid: target.pid })
    await target.ask('add 10000')
    await detachComplete(probe, 10_000)
    assert.equal(await perf.stop(), 10_000)
    assert.equal(await bpftrace.stop(), 10_000)
    assert.equal(isArmed(target.pid, target.program, offset), false)
  },
)

test('gc__start of CPython', needs({ programs: ['bpftrace'], files: [PYTHON] }), async (t) => {
  const python = await startPython(t)
  const { refCtrOffset } = gatedNote(python.program, 'python:gc__start')
  const counter = (): number => counterValue(python.pid, python.program, refCtrOffset)
  const witness = await BpftraceCount.start(t, `usdt:${python.program}:python:gc__start`, python.pid, () => counter() === 1)
  const probe = await newTracer(t).attach('usdt:python:gc__start', { pid: python.pid })
  assert.equal(counter(), 1)
  await python.ask('gc 25')
  await detachComplete(probe, 25)
  assert.equal(await witness.stop(), 25)
  assert.equal(counter(), 0)
})
