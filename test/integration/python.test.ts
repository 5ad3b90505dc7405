/**
 * CPython 3.11, from Debian's package: not position-independent, so that addresses and offsets differ, and every probe gated by its semaphore.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { PYTHON, startPython } from '../support/python.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'

const CPYTHON = needs({ programs: ['readelf'], files: [PYTHON] })

test('gc__start and gc__done: N collections are N hits, with their generation', CPYTHON, async (t) => {
  const python = await startPython(t)
  const { refCtrOffset } = gatedNote(python.program, 'python:gc__start')
  const counter = (): number => counterValue(python.pid, python.program, refCtrOffset)
  const tracer = newTracer(t)
  assert.equal(counter(), 0)
  const start = await tracer.attach('usdt:python:gc__start', { pid: python.pid })
  const done = await tracer.attach('usdt:python:gc__done', { pid: python.pid })
  const hits = collect(start)
  assert.equal(counter(), 1)
  for (const [count, generation] of [
    [3, 0],
    [2, 1],
    [4, 2],
  ]) {
    await python.ask(`gc ${count} ${generation}`)
  }
  await detachComplete(start, 9)
  await detachComplete(done, 9)
  assert.deepEqual(
    hits.map((hit) => hit.args[0]),
    [0, 0, 0, 1, 1, 2, 2, 2, 2],
  )
  assert.equal(counter(), 0)
})

test('audit: N events are N hits with their names in order', CPYTHON, async (t) => {
  const python = await startPython(t)
  const { refCtrOffset } = gatedNote(python.program, 'python:audit')
  const probe = await newTracer(t).attach('usdt:python:audit', { pid: python.pid, strings: [0] })
  const hits = collect(probe)
  assert.equal(counterValue(python.pid, python.program, refCtrOffset), 1)
  await python.ask('audit 100')
  await detachComplete(probe, 100)
  assert.deepEqual(
    hits.map((hit) => hit.args[0]),
    Array.from({ length: 100 }, (_, i) => `uprobe.test.${i}`),
  )
  assert.equal(counterValue(python.pid, python.program, refCtrOffset), 0)
})

test('without an attach the counter is 0 and the probe is never reached', CPYTHON, async (t) => {
  const python = await startPython(t)
  const { fileOffset, refCtrOffset } = gatedNote(python.program, 'python:gc__start')
  assert.equal(counterValue(python.pid, python.program, refCtrOffset), 0)
  // A probe on the same instruction that does not raise the semaphore.
  const unaware = await newTracer(t).attach(`uprobe:${python.program}:0x${fileOffset.toString(16)}`, { pid: python.pid })
  assert.equal(isArmed(python.pid, python.program, fileOffset), true)
  await python.ask('gc 10')
  await detachComplete(unaware, 0)
  assert.equal(counterValue(python.pid, python.program, refCtrOffset), 0)
})
