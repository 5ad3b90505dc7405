/**
 * A process id that the kernel hands out again never leads a probe to the new process.
 */
import assert from 'node:assert/strict'
import { existsSync, readFileSync, readlinkSync } from 'node:fs'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { assertStats, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

/** A target that is not our own child, so that it is reaped without our event loop turning. */
class Orphanage {
  constructor(
    private readonly t: Parameters<typeof buildTarget>[0],
    private readonly program: string,
    private readonly withPid: string,
  ) {}

  /** Starts the program under a pid, or under any. */
  async start(pid: number): Promise<{ target: Target; pid: number }> {
    const target = await Target.start(this.t, this.withPid, { args: [String(pid), this.program] })
    const child = readFileSync(`/proc/${target.pid}/task/${target.pid}/children`, 'utf8').trim()
    return { target, pid: Number(child) }
  }
}

/** Turns without the event loop until `condition` holds. */
function spinUntil(what: string, condition: () => boolean): void {
  const deadline = Date.now() + 10_000
  while (!condition()) if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`)
}

function runs(pid: number, program: string): boolean {
  try {
    return readlinkSync(`/proc/${pid}/exe`) === program
  } catch {
    // There is no such process yet.
    return false
  }
}

function assertUntouched(pid: number, program: string): void {
  const { fileOffset, refCtrOffset } = gatedNote(program, 't:gated')
  assert.equal(isArmed(pid, program, fileOffset), false)
  assert.equal(counterValue(pid, program, refCtrOffset), 0)
}

test('after the end of a target its pid can come back: the ended probe does nothing to the new process', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const orphanage = new Orphanage(t, program, buildTarget(t, 'with-pid'))
  const { target, pid } = await orphanage.start(0)
  const probe = await newTracer(t).attach('usdt:t:gated', { pid })
  await target.ask('gated 3')
  process.kill(pid, 'SIGKILL')
  await target.exited
  await waitFor('the probe to end', () => probe.state === 'target-exited')

  const again = await orphanage.start(pid)
  assert.equal(again.pid, pid)
  assertUntouched(pid, program)
  await probe.detach()
  assert.equal(await again.target.askNumber('gated 3'), 0)
  assertUntouched(pid, program)
  assertStats(probe.stats(), { hits: 3, delivered: 3 })
})

test('a pid that comes back while the event loop stands still: resuming refuses, and does nothing to the new process', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const orphanage = new Orphanage(t, program, buildTarget(t, 'with-pid'))
  const { pid } = await orphanage.start(0)
  const probe = await newTracer(t).attach('usdt:t:gated', { pid })
  await probe.pause()

  process.kill(pid, 'SIGKILL')
  spinUntil('the process to be reaped', () => !existsSync(`/proc/${pid}`))
  const starting = orphanage.start(pid)
  spinUntil('its pid to come back', () => runs(pid, program))
  const resumed = probe.resume().then(
    () => 'resumed',
    (error: { code?: string }) => error.code,
  )
  const again = await starting
  assert.match((await resumed) ?? '', /^ERR_UPROBE_(TARGET_GONE|CLOSED)$/)
  assertUntouched(pid, program)
  await waitFor('the probe to end', () => probe.state === 'target-exited')
  assert.equal(await again.target.askNumber('gated 3'), 0)
  assert.equal(again.pid, pid)
})
