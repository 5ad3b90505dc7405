/**
 * What has begun and not ended yet, of a latency: the maps that hold it, and the tracepoints at which what can no longer end is taken out of them.
 *
 * Both are bounded. A thread that is over is taken out by a program at its exit, in the thread itself, so that nothing leaks and no thread that gets its number finds what was left. By an argument, what a process has begun
 * is found by a number that is its own as long as it lives; when it is over, that number is forgotten, and what it began is pushed out in time by what is used. Before Linux 6.16 a process counts as over when its leader thread is,
 * since nobody tells of the last one: what the others began before cannot end, and what they begin then is forgotten when it is pushed out.
 *
 * Where counters are claimed in processes that come later, things begin in these before their ends are seen: beginnings may need no counter, or have had theirs first. And perf events on a process see nothing from when its leader
 * thread exits until they are moved to another. What began before may have ended unseen, and an end must not be taken for its: of calls within each other, the outer one's would end the inner one. So there is a moment for each
 * process from which on all of its beginnings and ends are seen, and what began before it is given up by whatever seems to end it. While counters are being set, or events moved, of either probe, that moment is in the future: of several
 * sites at which things begin one is seen before another, too. What begins after it is kept above all from before, and sees its end, as everything within it does.
 */
import { readlinkSync } from 'node:fs'
import { machineMonotonicNs } from '../counter/boot-clock.js'
import { TimeSlice } from '../elf/time-slice.js'
import { EINVAL, ENOENT } from '../errno.js'
import { errnoOf, UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import {
  BPF_LICENSE,
  BPF_MAP_TYPE_ARRAY,
  BPF_MAP_TYPE_HASH,
  BPF_MAP_TYPE_LRU_HASH,
  BPF_PROG_TYPE_RAW_TRACEPOINT,
  createLargeMap,
  loadProgram,
} from '../register/bpf-objects.js'
import { closeRegistrations } from '../register/close.js'
import { compileOver, type LastExit, type SinceMap, type StartMaps, type Tracepoint } from './latency-code.js'
import type { Matching } from './options.js'
import { stackBytes } from './stack-code.js'

/** The memory that beginnings take in the kernel, if they are large. */
const MOST_BYTES = 16 * 1024 * 1024
const MOST_THREADS = 4096
const MOST_STARTS = 65_536
/** Of the kernel's for an entry. */
const ENTRY_BYTES = 64
/** The life of a process begins with the first thing that begins in it. */
const MOST_LIVES = 16_384
/** The moments from which on beginnings and ends are seen. Numbers of processes go up, so that two that live at once seldom have one in common; it costs them no more than what is open when one of them comes. */
const SINCE_ENTRIES = 65_536
const NOT_YET = 2n ** 64n - 1n
/** Inode of the initial pid namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h), whose numbers programs in the kernel see. */
const INITIAL_PID_NAMESPACE = 'pid:[4026531836]'
/** How many bytes of beginnings, and how many of them, are forgotten in one call: each takes three system calls. */
const SLICE_BYTES = 256 * 1024
const SLICE_ENTRIES = 512

/** Where a latency begins, and where it ends. */
export type Side = 'start' | 'end'

/** What is being done in the processes that have one moment in common. */
interface Unsettled {
  /** How many are at work. */
  working: number
  /** Who has failed, and has not succeeded since. */
  readonly failed: Set<Side>
}

/** The beginnings of one latency. */
export class Starts {
  #closed = false
  /** By entry of the map of moments. */
  readonly #unsettled = new Map<number, Unsettled>()

  private constructor(
    private readonly native: Native,
    readonly maps: StartMaps,
    private readonly keyBytes: number,
    private readonly fds: number[],
  ) {}

  /**
   * Makes the maps and watches for what is over.
   * @param lossFd - where beginnings that are given up are counted
   * @param comeLate - whether {@link seeLate} is going to be called
   * @throws {UprobeError} as {@link createLargeMap}
   */
  static async open(native: Native, by: Matching['by'], keyBytes: number, lossFd: number, comeLate: boolean): Promise<Starts> {
    const fds: number[] = []
    const create = async (type: number, name: string, mapKeyBytes: number, valueBytes: number, maxEntries: number): Promise<number> => {
      const fd = await createLargeMap(native, { type, keyBytes: mapKeyBytes, valueBytes, maxEntries, name })
      fds.push(fd)
      return fd
    }
    const atMost = (most: number, bytes: number): number => Math.min(most, Math.floor(MOST_BYTES / (bytes + ENTRY_BYTES)))
    const openSince = async (): Promise<SinceMap> => {
      // Elsewhere a program sees other numbers than we do, so all have one moment.
      const entries = readlinkSync('/proc/self/ns/pid') === INITIAL_PID_NAMESPACE ? SINCE_ENTRIES : 1
      return { entries, fd: await create(BPF_MAP_TYPE_ARRAY, 'uprobe_since', 4, 8, entries) }
    }
    const openMaps = async (): Promise<StartMaps> => {
      const since = comeLate ? await openSince() : null
      if (by === 'argument') {
        const bytes = 8 + keyBytes
        return {
          by,
          since,
          startsFd: await create(BPF_MAP_TYPE_LRU_HASH, 'uprobe_starts', 16, bytes, atMost(MOST_STARTS, bytes)),
          livesFd: await create(BPF_MAP_TYPE_LRU_HASH, 'uprobe_lives', 8, 8, MOST_LIVES),
        }
      }
      const bytes = stackBytes(keyBytes)
      return {
        by,
        since,
        threadsFd: await create(BPF_MAP_TYPE_HASH, 'uprobe_threads', 8, bytes, atMost(MOST_THREADS, bytes)),
        zerosFd: await create(BPF_MAP_TYPE_ARRAY, 'uprobe_zeros', 4, bytes, 1),
      }
    }
    try {
      const maps = await openMaps()
      const watch = async (tracepoint: Tracepoint, last: LastExit): Promise<void> => {
        const program = await loadProgram(native, {
          type: BPF_PROG_TYPE_RAW_TRACEPOINT,
          expectedAttachType: 0,
          insns: compileOver(maps, keyBytes, lossFd, tracepoint, last),
          license: BPF_LICENSE,
          name: 'uprobe_over',
        })
        fds.push(program)
        fds.push(native.bpfRawTracepointOpen(tracepoint, program))
      }
      try {
        await watch('sched_process_exit', 'told')
      } catch (error) {
        if (errnoOf(error) !== EINVAL || error instanceof UprobeError) throw error
        await watch('sched_process_exit', 'leader')
      }
      await watch('sched_process_exec', 'told')
      return new Starts(native, maps, keyBytes, fds)
    } catch (error) {
      await closeRegistrations(native, fds)
      throw error
    }
  }

  /** Forgets what has begun. No program of the two probes may run; threads and processes may come to their end meanwhile. */
  async clear(): Promise<void> {
    const { maps, keyBytes } = this
    const [fd, mapKeyBytes, valueBytes] =
      maps.by === 'argument' ? [maps.startsFd, 16, 8 + keyBytes] : [maps.threadsFd, 8, stackBytes(keyBytes)]
    const each = mapKeyBytes + valueBytes
    const most = Math.max(1, Math.min(SLICE_ENTRIES, Math.floor(SLICE_BYTES / each)))
    const slice = new TimeSlice()
    while (!this.#closed) {
      const taken = this.#take(fd, mapKeyBytes, valueBytes, most)
      if (taken !== null && taken.byteLength < most * each) return
      if (slice.isOver) await slice.rest()
    }
  }

  /** Returns `null` if an entry went away by itself. */
  #take(fd: number, keyBytes: number, valueBytes: number, most: number): ArrayBuffer | null {
    try {
      return this.native.bpfMapTake(fd, keyBytes, valueBytes, most)
    } catch (error) {
      if (errnoOf(error) === ENOENT) return null
      throw error
    }
  }

  /**
   * Does what makes beginnings or ends in a process seen that were not. What began there before it is done is given up by what seems to end it; if it fails, what begins later, too, until it succeeds:
   * some may be seen, and others not. A process that is gone has nothing to end.
   */
  async seeLate(side: Side, pid: number, work: () => Promise<void>): Promise<void> {
    const { since } = this.maps
    if (since === null) return work()
    const entry = pid % since.entries
    const unsettled = this.#unsettled.get(entry) ?? { working: 0, failed: new Set<Side>() }
    this.#unsettled.set(entry, unsettled)
    unsettled.working++
    this.#seeSince(since, entry, NOT_YET)
    try {
      await work()
      unsettled.failed.delete(side)
    } catch (error) {
      if (error instanceof UprobeError && error.code === 'ERR_UPROBE_TARGET_GONE') unsettled.failed.delete(side)
      else unsettled.failed.add(side)
      throw error
    } finally {
      unsettled.working--
      if (unsettled.working === 0 && unsettled.failed.size === 0) {
        this.#unsettled.delete(entry)
        this.#seeSince(since, entry, machineMonotonicNs())
      }
    }
  }

  #seeSince({ fd }: SinceMap, entry: number, timeNs: bigint): void {
    // Another file may have its number by now.
    if (!this.#closed) this.native.bpfMapUpdate(fd, entry, new Uint8Array(BigUint64Array.of(timeNs).buffer))
  }

  /** Ends the watching, and forgets everything. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await closeRegistrations(this.native, this.fds)
  }
}
