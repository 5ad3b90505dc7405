/**
 * Tracers of a test, and what their probes deliver.
 */
import assert from 'node:assert/strict'
import { type Hit, type Probe, type ProbeStats, Tracer, type TracerOptions, UprobeError, type UprobeErrorCode } from '../../lib/index.js'
import type { Cleanup } from './temp.js'

/** A tracer that is closed when the test is over. */
export function newTracer(t: Cleanup, options: TracerOptions = {}): Tracer {
  const tracer = new Tracer(options)
  t.after(() => tracer.close())
  return tracer
}

/** Collects the hits of a probe from now on. They are complete once it is detached. */
export function collect(probe: Probe): Hit[] {
  const hits: Hit[] = []
  probe.on('hit', (hit) => hits.push(hit))
  return hits
}

/** Detaches and asserts that every hit was delivered, and how many there were. */
export async function detachComplete(probe: Probe, hits: number): Promise<void> {
  await probe.detach()
  assertStats(probe.stats(), { hits, delivered: hits })
}

/** As {@link detachComplete}, of a probe that gave way for a while. */
export async function detachAfterYield(probe: Probe, hits: number): Promise<void> {
  await probe.detach()
  const { seenFraction } = probe.stats()
  assert.ok(seenFraction > 0 && seenFraction < 1, `${seenFraction} was seen`)
  assertStats(probe.stats(), { hits, delivered: hits, seenFraction })
}

/** Asserts the counts of an ended probe; those that are not named must be 0. */
export function assertStats(stats: ProbeStats, expected: Partial<ProbeStats>): void {
  const { seenMs: _, ...counts } = stats
  assert.deepEqual(counts, { hits: 0, filtered: 0, delivered: 0, lost: 0, lostRing: 0, lostQueue: 0, seenFraction: 1, ...expected })
}

/** Asserts that `work` is refused with a code, and returns the error. */
export async function refused(work: Promise<unknown>, code: UprobeErrorCode): Promise<UprobeError> {
  try {
    await work
  } catch (error) {
    if (!(error instanceof UprobeError)) throw error
    assert.equal(error.code, code, error.message)
    return error
  }
  throw new assert.AssertionError({ message: `it was not refused with ${code}` })
}
