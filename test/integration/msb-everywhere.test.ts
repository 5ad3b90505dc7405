/**
 * Claims of a probe for every process: in those that are there, in their children, and in processes that come later.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { counterValue } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })
const CLAIMED = 0x8000

test('a probe for every process claims in those that are there, in children and in processes that come later', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const first = await Target.start(t, program)
  const { refCtrOffset } = gatedNote(program, 't:gated')
  const leaseDir = leaseDirectory()
  const probe = await newTracer(t, { leaseDir }).attach(`usdt:${program}:t:gated`, { counter: 'msb' })
  const arrivals: Array<[number | undefined, boolean]> = []
  probe.on('state', ({ reason, pid, mayHaveMissed }) => {
    if (reason === 'arrival') arrivals.push([pid, mayHaveMissed])
  })
  assert.equal(await first.askNumber('gated 2'), 2)
  const second = await Target.start(t, program)
  await waitFor('the second process to be claimed', () => arrivals.length === 1)
  assert.equal(await second.askNumber('gated 3'), 3)
  const child = await first.askNumber('fork-hold')
  await waitFor('the child to be claimed', () => arrivals.length === 2)
  assert.deepEqual(arrivals, [
    [second.pid, true],
    [child, false],
  ])
  await probe.pause()
  for (const pid of [first.pid, second.pid, child]) assert.equal(counterValue(pid, program, refCtrOffset), 0)
  const third = await Target.start(t, program)
  await waitFor('the third process to be seen', () => arrivals.length === 3)
  assert.equal(await third.askNumber('gated 1'), 0)
  await probe.resume()
  for (const pid of [first.pid, second.pid, third.pid, child]) assert.equal(counterValue(pid, program, refCtrOffset), CLAIMED)
  assert.equal(await third.askNumber('gated 1'), 1)
  await second.end()
  await detachComplete(probe, 6)
  for (const pid of [first.pid, third.pid, child]) assert.equal(counterValue(pid, program, refCtrOffset), 0)
  process.kill(child, 'SIGKILL')
  assert.deepEqual(leaseFiles(leaseDir), ['locks', 'owner.json', 'owner.sock'])
})
