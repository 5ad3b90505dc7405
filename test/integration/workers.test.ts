/**
 * A Worker that ends without closing its tracer, as it does when it is terminated: what it had attached is gone from the target, and from the process.
 *
 * Not for guests: it starts Workers that compile TypeScript.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { join } from 'node:path'
import test from 'node:test'
import { Worker } from 'node:worker_threads'
import { buildTarget } from '../support/build.js'
import { descriptors } from '../support/descriptors.js'
import { REGISTRATIONS } from '../support/features.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

/** Attaches, says so, and then waits; or ends as it is told. */
function attaching(pid: number, leaseDir: string, options: object): Worker {
  const program = `
    require('tsx/cjs')
    const { parentPort } = require('node:worker_threads')
    const { Tracer } = require(${JSON.stringify(join(__dirname, '..', '..', 'lib', 'index.ts'))})
    const tracer = new Tracer({ leaseDir: ${JSON.stringify(leaseDir)} })
    tracer.attach('usdt:t:shared', ${JSON.stringify({ pid, ...options })}).then(() => parentPort.postMessage('attached'))
    parentPort.once('message', (how) => {
      if (how === 'exits') process.exit()
      throw new Error('on purpose')
    })`
  return new Worker(program, { eval: true })
}

/** What this process has open that belongs to tracing, by kind. */
function open(): string[] {
  return descriptors()
    .filter((name) => /bpf|perf_event|pidfd|leases|\/proc\/\d+\/|usdt$/.test(name))
    .sort()
}

for (const counter of ['kernel', 'msb'] as const) {
  for (const registration of REGISTRATIONS) {
    for (const how of ['is terminated', 'exits', 'fails']) {
      test(`a Worker that ${how} leaves nothing (${counter}, ${registration})`, GCC, async (t) => {
        const target = await Target.start(t, buildTarget(t, 'usdt'))
        const leaseDir = leaseDirectory()
        const before = open()
        const worker = attaching(target.pid, leaseDir, { counter, registration })
        const warned: Error[] = []
        const onWarning = (warning: Error) => warned.push(warning)
        process.on('warning', onWarning)
        t.after(() => process.off('warning', onWarning))
        assert.deepEqual(await once(worker, 'message'), ['attached'])
        const failed = how === 'fails' ? once(worker, 'error') : null
        const ended = new Promise((resolve) => worker.once('exit', resolve))
        if (how === 'is terminated') await worker.terminate()
        else worker.postMessage(how)
        if (failed !== null) assert.match(String(await failed), /on purpose/)
        await ended
        const armed = (): boolean =>
          notesOf(target.program, 't:shared').some(({ fileOffset }) => isArmed(target.pid, target.program, fileOffset))
        // The closing thread does it, a moment later.
        await waitFor('the breakpoints to be out', () => !armed())
        await waitFor('all to be closed', () => open().length === before.length)
        assert.deepEqual(open(), before)
        assert.equal(await target.ask('counters'), counter === 'kernel' ? '0 0 0 0' : '0 0 32768 0')
        // A claim is an orphan by now, as after the end of a process, and the next attach clears it.
        const probe = await newTracer(t, { leaseDir }).attach('usdt:t:shared', { pid: target.pid, counter, registration })
        assert.equal(await target.askNumber('shared 2'), 6)
        await detachComplete(probe, 6)
        assert.equal(await target.ask('counters'), '0 0 0 0')
        assert.deepEqual(
          leaseFiles(leaseDir).filter((name) => name.startsWith('lease')),
          [],
        )
        assert.deepEqual(warned, [])
      })
    }
  }
}
