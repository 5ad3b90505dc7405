/**
 * Programs of many shapes, which are compiled a shape at a step.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { type CaptureProgram, compileCapture, compileSteps, splitShapes, splitSteps } from '../../lib/capture/compile.js'
import { bindOperands, parseOperands } from '../../lib/capture/operands.js'
import { stepsInSlices } from '../../lib/elf/time-slice.js'
import { countTurns } from '../support/wait.js'

const SHAPES = Array.from({ length: 60 }, (_, index) => ({
  operands: bindOperands(parseOperands(`8@%rdi -4@${8 * index}(%rbp)`, 'x64'), 0n, new Map()),
  strings: [0],
  stringLimit: 64,
}))
const BASE = { arch: 'x64', probeId: 1, statsFd: 3, ringFd: 4, ringBytes: 1 << 20, excludeTid: null, sleepable: false } as const
const PROGRAM: CaptureProgram = { ...BASE, attach: 'multi', slot: 0, shapes: SHAPES }

test('a program of many shapes is the same in slices of time as at once, and the event loop has its turns', async (t) => {
  const atOnce = compileCapture(PROGRAM)
  const groups = splitShapes(SHAPES, BASE)
  // Each look at the clock finds a millisecond gone, of the three that a slice has.
  let nowNs = process.hrtime.bigint()
  t.mock.method(process.hrtime, 'bigint', () => (nowNs += 1_000_000n))
  const counted = countTurns()
  t.after(() => counted.stop())
  assert.deepEqual(await stepsInSlices(compileSteps(PROGRAM)), atOnce)
  assert.ok(counted.turns >= SHAPES.length / 5, `${counted.turns} turns`)
  assert.deepEqual(await stepsInSlices(splitSteps(SHAPES, BASE)), groups)
})
