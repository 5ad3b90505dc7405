/**
 * The maps of one aggregation, and how they are read so that every hit is seen once and whole.
 *
 * There are two generations of everything. A program enters the current one, adds to it, and leaves it (turn-code.ts). To read, the other one is made the current one; when all have left that had entered the old one, it
 * stands still: every hit that it holds is in it as a whole, and it is read and cleared. What is read is added up in JavaScript, so that a snapshot is what all generations so far have brought.
 *
 * Programs need no memory barriers; those of the reader stand in for them. During a grace period of RCU every CPU passes one (synchronize_rcu, kernel/rcu/tree.c; membarrier(2) rests on the same). What a program did before
 * it is seen after the grace period, and what it does after it sees all that was done before the grace period. So if anything that a program did was seen before a grace period, then all that it had done until then is seen
 * after it. Hence:
 *
 *     grace period            what clears the other generation is seen before what makes it current, so that no program comes upon an entry that was removed
 *     make the other one current
 *     grace period            a program that still took the old one to be current has entered it visibly
 *     left = how many have left the old one
 *     grace period            those have entered it visibly, and what they have added is seen from now on
 *     entered = how many have entered it; if they are more than have left, again from `left` on
 *
 * Counts are of different CPUs and moments, but those that have left are read first, so that whoever is still inside makes the difference. A program that enters later finds that the generation is not the current one, and adds
 * nothing to it.
 *
 * User space has the grace period as a side effect of replacing a map within a map of maps (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c). The map of maps is used for nothing else. membarrier(2) would do, but not on kernels
 * that run with nohz_full.
 */
import { TimeSlice } from '../elf/time-slice.js'
import { UprobeError } from '../errors.js'
import type { BpfMap, Native } from '../native.js'
import {
  BPF_MAP_TYPE_ARRAY,
  BPF_MAP_TYPE_ARRAY_OF_MAPS,
  BPF_MAP_TYPE_PERCPU_ARRAY,
  BPF_MAP_TYPE_PERCPU_HASH,
  createLargeMap,
} from '../register/bpf-objects.js'
import { possibleCpus } from '../register/stats.js'
import { type GroupMaps, LOSS, LOSS_BYTES } from './group-code.js'
import type { GroupLayout } from './layout.js'
import { TURNS, TURNS_BYTES } from './turn-code.js'

/** Gets what was read: a group on all CPUs. `key` is `null` for what has no group of its own; both are valid during the call only. */
export type TakeGroup = (key: Buffer | null, values: DataView) => void

/** How many bytes of groups, and how many groups, are read before the event loop gets its turn. */
const SLICE_BYTES = 256 * 1024
const SLICE_GROUPS = 512
/** The clock is read once in so many groups that are added. */
const GROUPS_A_LOOK = 16
/** The memory that groups take in the kernel where their number is not given. */
const DEFAULT_BYTES = 64 * 1024 * 1024
/** And the most that may be asked for. */
const MOST_BYTES = 1024 * 1024 * 1024
const DEFAULT_GROUPS = 1024

/** Counts of what was not added, by reason. */
export type Losses = Readonly<Record<keyof typeof LOSS, number>>

/** The maps of one aggregation. */
export class GroupStore {
  readonly #cpus: number
  #generation: 0 | 1 = 0
  /** Whether something was cleared since the last grace period. */
  #cleared = false
  #closed = false

  /** @param maxGroups - how many groups there may be */
  private constructor(
    private readonly native: Native,
    private readonly layout: GroupLayout,
    readonly maxGroups: number,
    readonly maps: GroupMaps,
    private readonly waitFd: number,
    private readonly fds: readonly number[],
  ) {
    this.#cpus = possibleCpus(native)
  }

  /**
   * Makes the maps, which takes the kernel a second if they are as large as they may be.
   * @param wanted - how many groups there may be; `null` for as many as a share of memory allows
   * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` when so many groups take too much memory; else as {@link createLargeMap}
   */
  static async open(native: Native, layout: GroupLayout, wanted: number | null): Promise<GroupStore> {
    // Both generations.
    const bytesOfGroup = 2 * (layout.keyBytes + layout.bytes * possibleCpus(native))
    const maxGroups =
      layout.keyBytes === 0 ? 0 : (wanted ?? Math.max(1, Math.min(DEFAULT_GROUPS, Math.floor(DEFAULT_BYTES / bytesOfGroup))))
    if (maxGroups * bytesOfGroup > MOST_BYTES) {
      throw new UprobeError(
        'ERR_UPROBE_BAD_OPTION',
        `Option maxGroups: a group takes ${bytesOfGroup} bytes on this machine, and ${MOST_BYTES} are possible in all. Give at most ${Math.floor(MOST_BYTES / bytesOfGroup)}, or a lower scale.`,
      )
    }
    const fds: number[] = []
    try {
      const createOf = async (map: BpfMap): Promise<number> => {
        const fd = await createLargeMap(native, map)
        fds.push(fd)
        return fd
      }
      const create = (type: number, name: string, valueBytes: number, maxEntries: number, keyBytes = 4): Promise<number> =>
        createOf({ type, keyBytes, valueBytes, maxEntries, name })
      const generationFd = await create(BPF_MAP_TYPE_ARRAY, 'uprobe_turn', 8, 1)
      const turnsFd = await create(BPF_MAP_TYPE_PERCPU_ARRAY, 'uprobe_turns', TURNS_BYTES, 1)
      const othersFd = await create(BPF_MAP_TYPE_PERCPU_ARRAY, 'uprobe_others', layout.bytes, 2)
      const lossFd = await create(BPF_MAP_TYPE_PERCPU_ARRAY, 'uprobe_losses', LOSS_BYTES, 1)
      const group = (): Promise<number> => create(BPF_MAP_TYPE_PERCPU_HASH, 'uprobe_groups', layout.bytes, maxGroups, layout.keyBytes)
      const groupFds = layout.keyBytes === 0 ? null : ([await group(), await group()] as const)
      const zerosFd = groupFds === null ? null : await create(BPF_MAP_TYPE_ARRAY, 'uprobe_zeros', layout.bytes, 1)
      const waitFd = await createOf({
        type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
        keyBytes: 4,
        valueBytes: 4,
        maxEntries: 1,
        name: 'uprobe_wait',
        innerMapFd: generationFd,
      })
      return new GroupStore(native, layout, maxGroups, { generationFd, turnsFd, othersFd, groupFds, zerosFd, lossFd }, waitFd, fds)
    } catch (error) {
      for (const fd of fds) native.closeFd(fd)
      throw error
    }
  }

  /**
   * Takes what was added since the last time. Must not be called again before it has resolved.
   * @param turn - whether groups keep their places (else those that come first from now on have them); and what to call when the other generation is made the current one: hits from then on are not taken
   * @throws {UprobeError} `ERR_UPROBE_CLOSED`
   */
  async take(callback: TakeGroup, { keep = false, onTurn = () => undefined }: { keep?: boolean; onTurn?: () => void } = {}): Promise<void> {
    this.#throwIfClosed()
    const old = this.#generation
    if (keep) await this.#reserveGroups(old)
    if (this.#cleared) await this.#gracePeriod()
    this.#throwIfClosed()
    this.#generation = old === 0 ? 1 : 0
    this.native.bpfMapUpdate(this.maps.generationFd, 0, new Uint8Array(BigUint64Array.of(BigInt(this.#generation)).buffer))
    onTurn()
    await this.#gracePeriod()
    for (let left = this.#turns(old, TURNS.left); ; left = this.#turns(old, TURNS.left)) {
      await this.#gracePeriod()
      if (this.#turns(old, TURNS.entered) === left) break
    }
    await this.#takeGeneration(old, callback)
  }

  /** Takes all that is left, when no program runs any more. */
  async takeRest(callback: TakeGroup): Promise<void> {
    // Both, since a read that failed may have left something in the other one.
    for (const generation of [0, 1] as const) await this.#takeGeneration(generation, callback)
  }

  /**
   * The counts of what was not added, since the beginning.
   * @throws {UprobeError} `ERR_UPROBE_CLOSED`
   */
  losses(): Losses {
    this.#throwIfClosed()
    const sum = this.#read(this.maps.lossFd, LOSS_BYTES)
    const { unreadable, contended, start, unmatched, unfinished, ended } = LOSS
    return {
      unreadable: sum(unreadable),
      contended: sum(contended),
      start: sum(start),
      unmatched: sum(unmatched),
      unfinished: sum(unfinished),
      ended: sum(ended),
    }
  }

  /** Closes the maps, whose memory the kernel gives back on its own threads (bpf_map_put, kernel/bpf/syscall.c). Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    for (const fd of this.fds) this.native.closeFd(fd)
  }

  /** The numbers of its descriptors may be those of other files by now. */
  #throwIfClosed(): void {
    if (this.#closed) throw new UprobeError('ERR_UPROBE_CLOSED', 'The aggregation has ended, and what it had counted could not be read.')
  }

  async #gracePeriod(): Promise<void> {
    await this.native.bpfMapReplaceInner(this.waitFd, 0, this.maps.generationFd)
    this.#cleared = false
  }

  /** How many have ever entered a generation, or left it. */
  #turns(generation: 0 | 1, field: number): number {
    return this.#read(this.maps.turnsFd, TURNS_BYTES)(field + 8 * generation)
  }

  /** Reads the one entry of a per-CPU array; what is returned adds up the word at an offset. */
  #read(fd: number, bytes: number): (at: number) => number {
    const words = new DataView(this.native.bpfMapRead(fd, 0, 1, bytes * this.#cpus))
    return (at) => {
      let count = 0
      for (let cpu = 0; cpu < this.#cpus; cpu++) count += readCount(words, cpu * bytes + at)
      return count
    }
  }

  /** Gives the groups of a generation their places in the other one, before others come there. */
  async #reserveGroups(generation: 0 | 1): Promise<void> {
    const { groupFds } = this.maps
    if (groupFds === null) return
    const { keyBytes, bytes } = this.layout
    const valueBytes = bytes * this.#cpus
    const most = Math.max(1, Math.min(SLICE_GROUPS, Math.floor(SLICE_BYTES / valueBytes)))
    const slice = new TimeSlice()
    let last: Uint8Array = new Uint8Array(0)
    // Bounded by their number, since programs go on adding.
    for (let reserved = 0; reserved < this.maxGroups; reserved += most) {
      last = this.native.bpfMapReserve(groupFds[generation], groupFds[generation === 0 ? 1 : 0], keyBytes, valueBytes, last, most)
      if (last.length === 0) return
      await slice.rest()
      this.#throwIfClosed()
    }
  }

  async #takeGeneration(generation: 0 | 1, callback: TakeGroup): Promise<void> {
    this.#cleared = true
    await this.#takeGroups(generation, callback)
    this.#takeOthers(generation, callback)
  }

  async #takeGroups(generation: 0 | 1, callback: TakeGroup): Promise<void> {
    const fd = this.maps.groupFds?.[generation]
    if (fd === undefined) return
    const { keyBytes, bytes } = this.layout
    const valueBytes = bytes * this.#cpus
    const each = keyBytes + valueBytes
    const most = Math.max(1, Math.min(SLICE_GROUPS, Math.floor(SLICE_BYTES / each)))
    const slice = new TimeSlice()
    for (;;) {
      const taken = this.native.bpfMapTake(fd, keyBytes, valueBytes, most)
      for (let at = 0; at < taken.byteLength; at += each) {
        // What was taken is in the buffer only, so it is added to the end whatever else happens.
        if ((at / each) % GROUPS_A_LOOK === 0 && slice.isOver) await slice.rest()
        callback(Buffer.from(taken, at, keyBytes), new DataView(taken, at + keyBytes, valueBytes))
      }
      if (taken.byteLength < most * each) return
      await slice.rest()
    }
  }

  #takeOthers(generation: 0 | 1, callback: TakeGroup): void {
    const bytes = this.layout.bytes * this.#cpus
    callback(null, new DataView(this.native.bpfMapRead(this.maps.othersFd, generation, 1, bytes)))
    this.native.bpfMapUpdate(this.maps.othersFd, generation, new Uint8Array(bytes))
  }
}

/** A count of 64 bits as a number, exact up to 2^53. */
export function readCount(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32
}
