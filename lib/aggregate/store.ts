/**
 * The maps of one aggregation, and how they are read so that every hit is seen once and whole.
 *
 * There are two generations of everything. Programs ask at each hit which one to add to. To read, the other one is made the current one; then the kernel waits until no program that began before is still running; then
 * the old generation stands still: every hit that it holds is in it as a whole, and it is read and cleared. What is read is added up in JavaScript, so that a snapshot is what all generations so far have brought.
 *
 * The waiting is a side effect of the kernel's: replacing a map within a map of maps does not return before that (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c, which is there so that user space knows when nobody uses
 * the old map any more). It covers programs that do not sleep, which is why these do not. The map of maps is used for nothing else.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import {
  BPF_MAP_TYPE_ARRAY,
  BPF_MAP_TYPE_ARRAY_OF_MAPS,
  BPF_MAP_TYPE_PERCPU_ARRAY,
  BPF_MAP_TYPE_PERCPU_HASH,
  createMap,
} from '../register/bpf-objects.js'
import { possibleCpus } from '../register/stats.js'
import { type GroupMaps, LOSS, LOSS_BYTES } from './group-code.js'
import type { GroupLayout } from './layout.js'

/** Gets what was read: a group on all CPUs. `key` is `null` for what has no group of its own; both are valid during the call only. */
export type TakeGroup = (key: Buffer | null, values: DataView) => void

/** How many bytes of groups are read before the event loop gets its turn. */
const SLICE_BYTES = 256 * 1024
/** The memory that groups take in the kernel where their number is not given. */
const DEFAULT_BYTES = 64 * 1024 * 1024
/** And the most that may be asked for. */
const MOST_BYTES = 1024 * 1024 * 1024
const DEFAULT_GROUPS = 1024

/** Counts of what was not added, by reason. */
export type Losses = Readonly<Record<keyof typeof LOSS, number>>

/** The maps of one aggregation. */
export class GroupStore {
  readonly maps: GroupMaps
  /** How many groups there may be. */
  readonly maxGroups: number
  readonly #fds: number[] = []
  readonly #waitFd: number
  readonly #cpus: number
  #generation: 0 | 1 = 0
  #closed = false

  /**
   * @param maxGroups - `null` for as many as a share of memory allows
   * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` when so many groups take too much memory; else as {@link createMap}
   */
  constructor(
    private readonly native: Native,
    private readonly layout: GroupLayout,
    maxGroups: number | null,
  ) {
    this.#cpus = possibleCpus(native)
    // Both generations.
    const bytesOfGroup = 2 * (layout.keyBytes + layout.bytes * this.#cpus)
    this.maxGroups =
      layout.keyBytes === 0 ? 0 : (maxGroups ?? Math.max(1, Math.min(DEFAULT_GROUPS, Math.floor(DEFAULT_BYTES / bytesOfGroup))))
    if (this.maxGroups * bytesOfGroup > MOST_BYTES) {
      throw new UprobeError(
        'ERR_UPROBE_BAD_OPTION',
        `Option maxGroups: a group takes ${bytesOfGroup} bytes on this machine, and ${MOST_BYTES} are possible in all. Give at most ${Math.floor(MOST_BYTES / bytesOfGroup)}, or a lower scale.`,
      )
    }
    try {
      const create = (type: number, name: string, valueBytes: number, maxEntries: number, keyBytes = 4): number => {
        const fd = createMap(native, { type, keyBytes, valueBytes, maxEntries, name })
        this.#fds.push(fd)
        return fd
      }
      const generationFd = create(BPF_MAP_TYPE_ARRAY, 'uprobe_turn', 8, 1)
      const othersFd = create(BPF_MAP_TYPE_PERCPU_ARRAY, 'uprobe_others', layout.bytes, 2)
      const lossFd = create(BPF_MAP_TYPE_PERCPU_ARRAY, 'uprobe_losses', LOSS_BYTES, 1)
      const group = (): number => create(BPF_MAP_TYPE_PERCPU_HASH, 'uprobe_groups', layout.bytes, this.maxGroups, layout.keyBytes)
      const groupFds = layout.keyBytes === 0 ? null : ([group(), group()] as const)
      const zerosFd = groupFds === null ? null : create(BPF_MAP_TYPE_ARRAY, 'uprobe_zeros', layout.bytes, 1)
      this.#waitFd = createMap(native, {
        type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
        keyBytes: 4,
        valueBytes: 4,
        maxEntries: 1,
        name: 'uprobe_wait',
        innerMapFd: generationFd,
      })
      this.#fds.push(this.#waitFd)
      this.maps = { generationFd, othersFd, groupFds, zerosFd, lossFd }
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** Takes what was added since the last time. Must not be called again before it has resolved. */
  async take(callback: TakeGroup): Promise<void> {
    const old = this.#generation
    this.#generation = old === 0 ? 1 : 0
    this.native.bpfMapUpdate(this.maps.generationFd, 0, new Uint8Array(BigUint64Array.of(BigInt(this.#generation)).buffer))
    await this.native.bpfMapReplaceInner(this.#waitFd, 0, this.maps.generationFd)
    await this.#takeGroups(old, callback)
    this.#takeOthers(old, callback)
  }

  /** The counts of what was not added, since the beginning. */
  losses(): Losses {
    const words = new DataView(this.native.bpfMapRead(this.maps.lossFd, 0, 1, LOSS_BYTES * this.#cpus))
    const sum = (at: number): number => {
      let count = 0
      for (let cpu = 0; cpu < this.#cpus; cpu++) count += readCount(words, cpu * LOSS_BYTES + at)
      return count
    }
    const { unreadable, contended, start, unmatched, unfinished, rejected } = LOSS
    return {
      unreadable: sum(unreadable),
      contended: sum(contended),
      start: sum(start),
      unmatched: sum(unmatched),
      unfinished: sum(unfinished),
      rejected: sum(rejected),
    }
  }

  /** Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    for (const fd of this.#fds) this.native.closeFd(fd)
  }

  async #takeGroups(generation: 0 | 1, callback: TakeGroup): Promise<void> {
    const fd = this.maps.groupFds?.[generation]
    if (fd === undefined) return
    const { keyBytes, bytes } = this.layout
    const valueBytes = bytes * this.#cpus
    const each = keyBytes + valueBytes
    const slice = Math.max(1, Math.floor(SLICE_BYTES / each))
    for (;;) {
      const taken = this.native.bpfMapTake(fd, keyBytes, valueBytes, slice)
      for (let at = 0; at < taken.byteLength; at += each) {
        callback(Buffer.from(taken, at, keyBytes), new DataView(taken, at + keyBytes, valueBytes))
      }
      if (taken.byteLength < slice * each) return
      await nextTurn()
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
