/**
 * A process, or a Worker, may end at any moment of a reader's life. Nothing may crash then, hang, or outlive it.
 *
 * Not for guests: it is about Node, and no kernel makes a difference.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { addonPath } from '../../lib/native.js'
import { mappedRings } from '../support/leftovers.js'
import { notesOf } from '../support/notes.js'
import { freshCopy } from '../support/temp.js'
import { threadsNamed } from '../support/threads.js'
import { waitFor } from '../support/wait.js'
import { MAP_RINGBUF, native, recordingProgram, uprobePmu, withoutRights } from './kernel.js'

const RING_FD = 1111
const LOSS_FD = 2222
const STEPS = [
  'start',
  'loaded',
  'maps',
  'mapping',
  'mapped',
  'loading',
  'reader',
  'opening',
  'attached',
  'hits',
  'doorbell',
  'watching',
  'draining',
  'drained',
  'closing',
  'closed reader',
  'unmapped',
  'closed',
]

interface Outcome {
  code: number | string | null | undefined
  signal: string | null | undefined
  stdout: string
  stderr: string
}

/** What churn.cjs prints. */
type Churned = Record<'before' | 'after', { readers: number; epolls: number; events: number; rings: number }>

/** Runs a fixture with a plan to its end. */
function run(fixture: string, plan: unknown, options: readonly string[] = []): Promise<Outcome> {
  const program = join(__dirname, 'fixtures', fixture)
  return new Promise((resolve) => {
    execFile(process.execPath, [...options, program, JSON.stringify(plan)], { timeout: 60_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : error.code, signal: error?.signal, stdout, stderr })
    })
  })
}

/** What the fixtures need to probe the self-test of a fresh copy of the addon. */
function selfTestPlan(t: TestContext): { addon: string; site: { type: number; fileOffset: string }; insns: number[]; ringBytes: number } {
  const addon = freshCopy(t, addonPath())
  const [note] = notesOf(addon, 'uprobe:selftest')
  assert.ok(note)
  return {
    addon,
    site: { type: uprobePmu(), fileOffset: String(note.fileOffset) },
    insns: [...recordingProgram(RING_FD, LOSS_FD, false)],
    ringBytes: 65_536,
  }
}

/** How many readers run in this process. */
const readerThreads = (): number => threadsNamed('uprobe-reader').length

const WAYS = [
  { how: 'exit', code: 7, stderr: /^$/ },
  { how: 'throw', code: 1, stderr: /Error: thrown on purpose/ },
  { how: 'end', code: 0, stderr: /^$/ },
]

for (const { how, code, stderr } of WAYS) {
  test(`a process may ${how} at every step`, { skip: withoutRights }, async (t) => {
    const plan = selfTestPlan(t)
    for (const step of STEPS) {
      const outcome = await run('lifecycle.cjs', { ...plan, how, step })
      assert.equal(outcome.code, code, `${how} at ${step}: ${JSON.stringify(outcome)}`)
      assert.match(outcome.stderr, stderr, `${how} at ${step}`)
    }
  })
}

test('Workers may come and go at every step, 16 at a time', { skip: withoutRights }, async (t) => {
  const plan = selfTestPlan(t)
  const plans = Array.from({ length: 160 }, (_, index) => ({
    ...plan,
    step: STEPS[index % STEPS.length],
    how: WAYS[index % WAYS.length]?.how,
    // Some are terminated at whatever step they have come to.
    ...(index % 3 === 2 || index % 4 === 0 ? { terminateAfterMs: 5 + ((index * 7) % 45) } : {}),
  }))
  const outcome = await run('churn.cjs', { plans })
  assert.equal(outcome.code, 0, JSON.stringify(outcome))
  const { before, after } = JSON.parse(outcome.stdout) as Churned
  // An fd whose number a Worker had got is its own to close, or the process's end.
  assert.deepEqual({ ...after, events: 0 }, before)
})

test('a Worker may go while a large ring is being mapped, or unmapped, and leaves nothing of it', { skip: withoutRights }, async (t) => {
  const plan = { ...selfTestPlan(t), ringBytes: 64 << 20 }
  const steps = ['mapping', 'mapped', 'reader', 'closed reader', 'unmapped']
  const plans = Array.from({ length: 45 }, (_, index) => ({
    ...plan,
    step: steps[index % steps.length],
    how: WAYS[index % WAYS.length]?.how,
    ...(index % 4 === 0 ? { terminateAfterMs: 40 + ((index * 7) % 45) } : {}),
  }))
  const outcome = await run('churn.cjs', { plans })
  assert.equal(outcome.code, 0, JSON.stringify(outcome))
  const { before, after } = JSON.parse(outcome.stdout) as Churned
  assert.deepEqual({ ...after, events: 0 }, before)
})

test('a probe that arrives after its Worker has gone is closed', { skip: withoutRights }, async (t) => {
  const plan = selfTestPlan(t)
  const outcome = await run('churn.cjs', { plans: Array.from({ length: 32 }, () => ({ ...plan, step: 'opening', how: 'exit' })) })
  assert.equal(outcome.code, 0, JSON.stringify(outcome))
  const { before, after } = JSON.parse(outcome.stdout) as Churned
  assert.deepEqual(after, before)
})

for (const { how, code, stderr } of WAYS) {
  test(`a batch that is kept stays as it is while others come and go, until its process, or Worker, does ${how}`, {
    skip: withoutRights,
  }, async (t) => {
    const plan = { ...selfTestPlan(t), how }
    const alone = await run('lent.cjs', plan)
    assert.equal(alone.code, code, JSON.stringify(alone))
    assert.match(alone.stderr, stderr)
    const employed = await run('lent.cjs', { ...plan, workers: 3 })
    assert.deepEqual({ code: employed.code, stderr: employed.stderr }, { code: 0, stderr: '' })
  })
}

test('a reader that nobody closed goes with its object', { skip: withoutRights }, async (t) => {
  const collect = (globalThis as { gc?: () => void }).gc
  if (collect === undefined) {
    const program = process.argv[1] ?? ''
    const outcome = await new Promise<Outcome>((resolve) => {
      const options = ['--expose-gc', '--import', 'tsx', '--test-name-pattern', t.name, program]
      const { NODE_TEST_CONTEXT: _, ...env } = process.env
      execFile(process.execPath, options, { timeout: 60_000, env }, (error, stdout, stderr) => {
        resolve({ code: error === null ? 0 : error.code, signal: error?.signal, stdout, stderr })
      })
    })
    assert.equal(outcome.code, 0, `${outcome.stdout}${outcome.stderr}`)
    return
  }
  const mapFd = native.bpfMapCreate({ type: MAP_RINGBUF, keyBytes: 0, valueBytes: 0, maxEntries: 4096, name: 'test_ring' })
  t.after(() => native.closeFd(mapFd))
  const make = async () => {
    const ring = await native.mapRing(mapFd, 4096)
    return new native.RingReader({ ring, flushIntervalMs: 1, pendingLimitBytes: 4096, onDoorbell: () => undefined }).tid
  }
  for (let count = 0; count < 10; count++) await make()
  assert.ok(readerThreads() > 0)
  // And one that no reader has taken.
  await native.mapRing(mapFd, 4096)
  await waitFor('the readers to be collected', () => {
    collect()
    return readerThreads() === 0 && mappedRings() === 0
  })
})
