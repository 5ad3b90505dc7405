/**
 * Which counters of a file a probe has to do with.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { CounterMode } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { newTracer } from '../support/tracing.js'

const MODES: readonly CounterMode[] = ['kernel', 'msb']

for (const counter of MODES) {
  test(
    `a probe by its offset has nothing to do with the only counter of the file (${counter})`,
    needs({ programs: ['gcc'] }),
    async (t) => {
      const target = await Target.start(t, buildTarget(t, 'kin'))
      const { program, pid } = target
      assert.equal(notesOf(program).length, 1)
      const { fileOffset, refCtrOffset } = gatedNote(program, 'k:gated')
      const tracer = newTracer(t, { leaseDir: leaseDirectory() })
      const probe = await tracer.attach(`uprobe:${program}:0x${fileOffset.toString(16)}`, { pid, counter })
      assert.deepEqual([counterValue(pid, program, refCtrOffset), await tracer.counters()], [0, []])
      await probe.detach()
    },
  )
}
