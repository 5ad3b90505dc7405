/**
 * The stacks of one probe: what the records of hits refer to.
 *
 * The capture program sends the addresses of a stack once (stack-code.ts), and notes in a map of the kernel that it has. Here is the other end of it: each stack that it noted is kept as long as
 * the probe's hits are, so that every later hit finds it. When the map is full, further stacks come with every hit again; of those the youngest are kept. So memory is bounded, and a hit
 * whose stack was let go says so instead of showing another.
 */
import { randomBytes } from 'node:crypto'
import type { Stack } from '../capture/hit.js'
import type { BatchMemory } from '../capture/memory.js'
import type { RecordOffsets } from '../capture/record-offsets.js'
import { STACK_FIELD, STACK_KEY_BYTES, type StackProgram } from '../capture/stack-code.js'
import type { Native } from '../native.js'
import { BPF_MAP_TYPE_HASH, createLargeMap } from '../register/bpf-objects.js'
import type { RecordSink } from './ring.js'

/** Bounds, for one probe. */
export interface StackLimits {
  /** How many stacks the kernel notes as sent. */
  readonly noted: number
  /** How many of the others are kept. */
  readonly others: number
}

const DEFAULT_LIMITS: StackLimits = { noted: 16_384, others: 65_536 }

/** How many addresses the stacks of either kind may have together, whatever their number: 2^21 take 64 MiB. */
const MAX_ADDRESSES = { noted: 2 ** 21, others: 2 ** 20 }

let limits = DEFAULT_LIMITS

/** For tests: the bounds of probes that are attached from now on; the usual ones by default. */
export function setStackLimits(changed: StackLimits = DEFAULT_LIMITS): void {
  limits = changed
}

/** The stacks of one probe: a sink for their records. The opener closes it when no program runs any more; what was received can be looked up for ever. */
export class StackTable implements RecordSink {
  /** A hit must find its stack, also if both come in one batch. */
  readonly early = true
  readonly #noted = new Map<string, Stack>()
  readonly #others = new Map<string, Stack>()
  #otherAddresses = 0
  #closed = false

  private constructor(
    private readonly native: Native,
    readonly program: StackProgram,
    private readonly mostOthers: number,
    private readonly onNew: (stack: Stack) => void,
  ) {}

  /**
   * Makes the map in which the kernel notes what was sent.
   * @param sinkId - the number in the records of stacks
   * @param depth - most addresses of a stack
   * @param onNew - told of each stack when it comes
   * @throws {UprobeError} as {@link createLargeMap}
   */
  static async open(native: Native, sinkId: number, depth: number, onNew: (stack: Stack) => void): Promise<StackTable> {
    const { noted, others } = limits
    const seenFd = await createLargeMap(native, {
      type: BPF_MAP_TYPE_HASH,
      keyBytes: STACK_KEY_BYTES,
      valueBytes: 8,
      maxEntries: Math.min(noted, Math.floor(MAX_ADDRESSES.noted / depth)),
      name: 'uprobe_stacks',
    })
    const [first = 0n, second = 0n, third = 0n, fourth = 0n] = new BigUint64Array(Uint8Array.from(randomBytes(32)).buffer)
    return new StackTable(native, { seenFd, sinkId, secrets: [first, second, third | 1n, fourth | 1n] }, others, onNew)
  }

  /** Takes records of stacks out of a batch. */
  receive({ view }: BatchMemory, offsets: RecordOffsets): void {
    for (let index = 0; index < offsets.length; index++) {
      const offset = offsets.at(index) ?? 0
      const key = keyOf(view, offset + STACK_FIELD.key)
      if (this.#noted.has(key)) continue
      const count = view.getUint32(offset + STACK_FIELD.count, true)
      const known = this.#others.get(key)
      const stack = known ?? {
        pid: view.getUint32(offset + STACK_FIELD.pid, true),
        addresses: Array.from({ length: count }, (_, index) => view.getBigUint64(offset + STACK_FIELD.addresses + 8 * index, true)),
      }
      // Once more at the end, so that it is the youngest.
      if (known !== undefined) this.#forget(key, known)
      if (view.getUint32(offset + STACK_FIELD.kept, true) === 1) this.#noted.set(key, stack)
      else this.#keepOther(key, stack)
      if (known === undefined) this.onNew(stack)
    }
  }

  /**
   * The stack that a hit refers to.
   * @param at - where in its record it says so
   * @returns `null` if it was let go
   */
  at(view: DataView, at: number): Stack | null {
    const key = keyOf(view, at)
    return this.#noted.get(key) ?? this.#others.get(key) ?? null
  }

  /** Closes the map. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.native.closeFd(this.program.seenFd)
  }

  #keepOther(key: string, stack: Stack): void {
    this.#others.set(key, stack)
    this.#otherAddresses += stack.addresses.length
    for (const [oldest, old] of this.#others) {
      if (this.#others.size <= this.mostOthers && this.#otherAddresses <= MAX_ADDRESSES.others) return
      this.#forget(oldest, old)
    }
  }

  #forget(key: string, stack: Stack): void {
    this.#others.delete(key)
    this.#otherAddresses -= stack.addresses.length
  }
}

function keyOf(view: DataView, at: number): string {
  return `${view.getBigUint64(at, true).toString(36)}.${view.getBigUint64(at + 8, true).toString(36)}`
}
