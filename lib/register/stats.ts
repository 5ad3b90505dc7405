/**
 * The counts that the capture programs keep: one entry a site in a per-CPU array map.
 *
 * Each program adds atomically on the CPU it runs on (programs on uprobes may be preempted and interleave on one CPU), so the sum over
 * all CPUs is exact once the probe is closed, and a moment behind before.
 */
import { STATS_VALUE_BYTES } from '../capture/compile.js'
import type { Native } from '../native.js'

/** Counts of one site since it was attached. */
export interface KernelCounts {
  /** Executions of the site. */
  readonly hits: number
  /** Hits that the filter rejected. */
  readonly filtered: number
  /** Hits for which the ring had no room. */
  readonly lostRing: number
}

let possible: number | null = null

/** Number of possible CPUs. Asked once, before the first probe is attached: the last counts must not need a file descriptor that may be lacking by then. */
export function possibleCpus(native: Native): number {
  possible ??= native.possibleCpus()
  return possible
}

/** Reads the counts of `count` sites from slot `first`. */
export function readCounts(native: Native, statsFd: number, first: number, count: number): KernelCounts[] {
  const cpus = possibleCpus(native)
  // A per-CPU value is padded to 8 bytes; ours is a multiple of 8 already.
  const words = new BigUint64Array(native.bpfMapRead(statsFd, first, count, STATS_VALUE_BYTES * cpus))
  const wordsPerCpu = STATS_VALUE_BYTES / 8
  const counts: KernelCounts[] = []
  for (let slot = 0; slot < count; slot++) {
    const sums = [0n, 0n, 0n]
    for (let cpu = 0; cpu < cpus; cpu++) {
      const at = (slot * cpus + cpu) * wordsPerCpu
      sums.forEach((sum, field) => {
        sums[field] = sum + (words[at + field] ?? 0n)
      })
    }
    const [hits = 0n, filtered = 0n, lostRing = 0n] = sums
    counts.push({ hits: Number(hits), filtered: Number(filtered), lostRing: Number(lostRing) })
  }
  return counts
}

/** Reads the counts of one site. */
export function sumCpus(native: Native, statsFd: number, slot: number): KernelCounts {
  return readCounts(native, statsFd, slot, 1)[0] ?? { hits: 0, filtered: 0, lostRing: 0 }
}
