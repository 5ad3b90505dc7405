/**
 * The counts that the capture programs keep, in a per-CPU array map.
 *
 * Each program adds atomically on the CPU it runs on (programs on uprobes may be preempted and interleave on one CPU), so the sum over
 * all CPUs is exact once the probe is closed, and a moment behind before.
 *
 * The kernel allocates each entry of such a map by itself, and reading takes a system call each: ten thousand took 17 ms to make. So the slots of a large probe share entries.
 */
import { STATS_VALUE_BYTES } from '../capture/compile.js'
import type { Native } from '../native.js'
import { BPF_MAP_TYPE_PERCPU_ARRAY, createLargeMap } from './bpf-objects.js'

/** Counts since a probe was attached, by slot. */
export interface KernelCounts {
  /** Executions of the site. */
  readonly hits: readonly number[]
  /** Hits that the filter rejected. */
  readonly filtered: readonly number[]
  /** Hits for which the ring had no room. */
  readonly lostRing: readonly number[]
}

/** A probe with more slots than this shares entries; so many to each, which makes values of 1.5 KB. */
const SLOTS_AN_ENTRY = 64

let possible: number | null = null

/** Number of possible CPUs. Asked once, before the first probe is attached: the last counts must not need a file descriptor that may be lacking by then. */
export function possibleCpus(native: Native): number {
  possible ??= native.possibleCpus()
  return possible
}

/** The counts of one probe. */
export class SiteCounts {
  #closed = false

  /** @param slotsAnEntry - as of `CaptureProgram` */
  private constructor(
    private readonly native: Native,
    readonly fd: number,
    private readonly slots: number,
    readonly slotsAnEntry: number,
  ) {}

  /** Throws as `createLargeMap`. */
  static async open(native: Native, slots: number): Promise<SiteCounts> {
    possibleCpus(native)
    const slotsAnEntry = slots > SLOTS_AN_ENTRY ? SLOTS_AN_ENTRY : 1
    const fd = await createLargeMap(native, {
      type: BPF_MAP_TYPE_PERCPU_ARRAY,
      keyBytes: 4,
      valueBytes: STATS_VALUE_BYTES * slotsAnEntry,
      maxEntries: entriesFor(slots, slotsAnEntry),
      name: 'uprobe_stats',
    })
    return new SiteCounts(native, fd, slots, slotsAnEntry)
  }

  /** Reads them all. */
  read(): KernelCounts {
    return readCounts(this.native, this.fd, this.slots, this.slotsAnEntry)
  }

  /** Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.native.closeFd(this.fd)
  }
}

function entriesFor(slots: number, slotsAnEntry: number): number {
  return Math.ceil(slots / slotsAnEntry)
}

function readCounts(native: Native, fd: number, slots: number, slotsAnEntry: number): KernelCounts {
  const cpus = possibleCpus(native)
  // A per-CPU value is padded to 8 bytes; ours is a multiple of 8 already.
  const halves = new Uint32Array(native.bpfMapRead(fd, 0, entriesFor(slots, slotsAnEntry), STATS_VALUE_BYTES * slotsAnEntry * cpus))
  const number = (at: number): number => (halves[at] ?? 0) + (halves[at + 1] ?? 0) * 2 ** 32
  const hits = zeros(slots)
  const filtered = zeros(slots)
  const lostRing = zeros(slots)
  const halvesASlot = STATS_VALUE_BYTES / 4
  // An entry has a value for each CPU, and in each the slots that share it; behind the last slot there are some that nobody uses.
  let at = 0
  for (let first = 0; first < slots; first += slotsAnEntry) {
    for (let cpu = 0; cpu < cpus; cpu++) {
      for (let slot = first; slot < first + slotsAnEntry; slot++, at += halvesASlot) {
        // Most of thousands of sites have not been hit.
        if (halves[at] === 0 && halves[at + 1] === 0) continue
        hits[slot] = (hits[slot] ?? 0) + number(at)
        filtered[slot] = (filtered[slot] ?? 0) + number(at + 2)
        lostRing[slot] = (lostRing[slot] ?? 0) + number(at + 4)
      }
    }
  }
  return { hits, filtered, lostRing }
}

/** Counts from which to count. Numbers in an array are small integers to V8, of which nothing is made when they are read; of a Float64Array, until its code is optimized, an object is made each time. */
export function zeros(count: number): number[] {
  return new Array<number>(count).fill(0)
}

/** Reads how often the site of a map with one slot was executed. */
export function readHits(native: Native, statsFd: number): number {
  return readCounts(native, statsFd, 1, 1).hits[0] ?? 0
}
