/**
 * Claims against perf and bpftrace: each comes and goes on the same counter, and each finds it either free or taken. (race.test.ts makes the same harder, where a leak harms nobody.)
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { type TestContext, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { UprobeError } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Random, testSeed } from '../support/random.js'
import { Target } from '../support/target.js'
import { addEvent, WITH_TRACEFS } from '../support/tracefs.js'
import { newTracer } from '../support/tracing.js'

/** How often each tool must have found the counter free, and taken. */
const LEAST = 3
const PATIENCE_MS = 90_000
const LONGEST_HOLD_MS = 400

/** What bpftrace and perf print, each in the one case and in the other. */
const FREE = /^counting$|<not counted>/m
const TAKEN = /Error attaching probe|<not supported>/

interface Tally {
  free: number
  taken: number
}

/** Runs a command to its end; its output on both streams. */
function run(t: TestContext, command: string, args: readonly string[]): Promise<string> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  t.after(() => child.kill('SIGKILL'))
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text))
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', () => resolve(output))
  })
}

/** One attempt of bpftrace, for a moment. */
function bpftrace(t: TestContext, path: string, pid: number): () => Promise<string> {
  return () => run(t, 'bpftrace', ['-p', String(pid), '-e', `usdt:${path}:t:right { } interval:ms:50 { printf("counting\\n"); exit(); }`])
}

/** One attempt of perf, for a moment, with an event that brings the counter, as `perf probe` makes it of a USDT probe. */
function perf(t: TestContext, path: string, pid: number): () => Promise<string> {
  const { fileOffset, refCtrOffset } = gatedNote(path, 't:left')
  const event = addEvent(t, path, fileOffset, refCtrOffset).replace('/', ':')
  const [command = '', ...args] = WITH_TRACEFS
  return () => run(t, command, [...args, 'perf', 'stat', '-e', event, '-p', String(pid), '--', 'sleep', '0.05'])
}

const skip = needs({ programs: ['gcc', 'bpftrace', 'perf', 'unshare'] })

test('claims, perf and bpftrace come and go on one counter: each is refused while another has it, and nothing is left', skip, async (t) => {
  const path = buildTarget(t, 'siblings')
  const target = await Target.start(t, path)
  const seed = testSeed()
  const random = new Random(seed)
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  const tallies = { claims: { free: 0, taken: 0 }, bpftrace: { free: 0, taken: 0 }, perf: { free: 0, taken: 0 } }
  const deadline = performance.now() + PATIENCE_MS
  const enough = (): boolean => Object.values(tallies).every(({ free, taken }) => free >= LEAST && taken >= LEAST)
  const over = (): boolean => enough() || performance.now() > deadline

  const claim = async (tally: Tally): Promise<void> => {
    while (!over()) {
      try {
        const probe = await tracer.attach('usdt:t:left', { pid: target.pid, counter: 'msb' })
        tally.free++
        await delay(random.below(LONGEST_HOLD_MS))
        await probe.pause()
        await probe.resume()
        await probe.detach()
      } catch (error) {
        if (!(error instanceof UprobeError)) throw error
        assert.equal(error.code, 'ERR_UPROBE_COUNTER_BUSY', error.message)
        tally.taken++
      }
      await delay(random.below(LONGEST_HOLD_MS))
    }
  }
  const trace = async (attempt: () => Promise<string>, tally: Tally): Promise<void> => {
    while (!over()) {
      const output = await attempt()
      if (FREE.test(output)) tally.free++
      else if (TAKEN.test(output)) tally.taken++
      else assert.fail(output)
    }
  }
  await Promise.all([
    claim(tallies.claims),
    trace(bpftrace(t, path, target.pid), tallies.bpftrace),
    trace(perf(t, path, target.pid), tallies.perf),
  ])

  t.diagnostic(`seed ${seed}: ${JSON.stringify(tallies)}`)
  for (const name of ['t:left', 't:right']) {
    const { fileOffset, refCtrOffset } = gatedNote(path, name)
    assert.equal(isArmed(target.pid, path, fileOffset), false)
    assert.equal(counterValue(target.pid, path, refCtrOffset), 0)
  }
  assert.equal(await target.askNumber('left 1'), 0)
  assert.ok(enough(), JSON.stringify(tallies))
})
