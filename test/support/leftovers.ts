/**
 * What this process holds: file descriptors and threads. A tracer that is closed must have given all of its own back.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { descriptors } from './descriptors.js'
import { threadsNamed } from './threads.js'
import { waitFor } from './wait.js'

/** What the loader of TypeScript keeps, whose files come and go for a while after the start. */
const LOADER = join(tmpdir(), 'tsx-')

/** Descriptors by what they refer to, with their number, and the number of threads and of mapped rings. */
export interface Holdings {
  readonly descriptors: Readonly<Record<string, number>>
  readonly threads: number
  readonly rings: number
}

/** What the process holds now. */
export function holdings(): Holdings {
  const counts: Record<string, number> = {}
  for (const link of descriptors()) {
    if (link.startsWith(LOADER)) continue
    // Pipes and sockets are told apart by a number that changes.
    const kind = link.replace(/\[\d+\]/, '[]')
    counts[kind] = (counts[kind] ?? 0) + 1
  }
  return { descriptors: counts, threads: readdirSync('/proc/self/task').length, rings: mappedRings() }
}

/** How many pieces of rings this process has mapped: a large ring has several. */
export function mappedRings(): number {
  const lines = readFileSync('/proc/self/maps', 'latin1').split('\n')
  return lines.filter((line) => line.endsWith('anon_inode:bpf-map')).length
}

/** A thread of the round before that was joined may still have been counted; then a further round is compared. */
const MAX_ROUNDS = 4

/**
 * Runs `work` twice and asserts that the second time left nothing in this process. The first time starts what stays by design: libuv's
 * pool, the closing thread.
 */
export async function assertLeavesNothing(work: () => Promise<void>): Promise<void> {
  const aheadIsOver = (): Promise<true> =>
    waitFor('what was registered ahead to be closed', () => threadsNamed('uprobe-ahead').length === 0)
  await work()
  await aheadIsOver()
  let before = holdings()
  for (let round = 1; ; round++) {
    await work()
    await aheadIsOver()
    const { threads } = before
    // A thread that was joined is gone from /proc a moment later. If one is not, the comparison says so.
    await waitFor('threads to end', () => holdings().threads <= threads).catch(() => undefined)
    const after = holdings()
    if (after.threads >= threads || round === MAX_ROUNDS) {
      assert.deepEqual(after, before)
      return
    }
    before = after
  }
}
