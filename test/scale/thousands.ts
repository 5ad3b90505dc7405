/**
 * A running program with ten thousand probes, and what the tests of it share.
 */
import assert from 'node:assert/strict'
import { buildTarget } from '../support/build.js'
import { Target } from '../support/target.js'
import type { Cleanup } from '../support/temp.js'

export const SITES = 10_000

/** The program, and how its probes are named. */
export interface Thousands {
  readonly target: Target
  readonly pid: number
  /** The probes whose numbers match a pattern. */
  spec(numbers: string): string
}

/** Starts it. */
export async function startThousands(t: Cleanup): Promise<Thousands> {
  const target = await Target.start(t, buildTarget(t, 'thousands'))
  return { target, pid: target.pid, spec: (numbers) => `usdt:${target.program}:t:site${numbers}` }
}

/** The number in the name of a probe, as `usdt:t:site17`. */
export function numberOf(probe: string): number {
  return Number(/^usdt:t:site(\d+)$/.exec(probe)?.[1])
}

/** Asserts that so many semaphores have a value, as the program sees them, and all others 0. */
export async function assertSemaphores({ target }: Thousands, count: number, value: number): Promise<void> {
  assert.deepEqual([await target.askNumber('up'), await target.askNumber('total')], [count, count * value])
}

/** How often the program executes a probe when it is asked to vary. */
export function variedHits(number: number): number {
  return number % 3
}
