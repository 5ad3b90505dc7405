/**
 * Who is at a counter: locks by which agents, Workers and tracers agree, and which die with their holder.
 *
 * One file in the lease directory holds no data and many locks, two bytes of it for each counter in each address space, found by hashing:
 *
 *  - the *step* byte, held by one while it decides and stores;
 *  - the *presence* byte, shared by all whose claim is switched on.
 *
 * "Is there another claim?" is asked by whoever leaves: having given its own presence back, it tries to have the byte for itself. The step byte makes asking and clearing one
 * step. The locks are of the kind that belongs to an open file (F_OFD_SETLK), so each tracer has opened the file for itself.
 */
import { createHash } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import type { Native } from '../native.js'
import { BOOT_ID, type SpaceId } from './space.js'

/** A counter in one address space. */
export interface CounterKey {
  /** 64 hexadecimal digits. */
  readonly id: string
  /** The two bytes of the file. */
  readonly stepByte: bigint
  readonly presenceByte: bigint
}

/** The key of the counter at an address. */
export function counterKey(space: SpaceId, address: bigint): CounterKey {
  const { pidNamespace, pid, fingerprint } = space
  const id = createHash('sha256').update(`${BOOT_ID}:${pidNamespace}:${pid}:${fingerprint}:${address}`).digest('hex')
  // 61 bits, and two bytes for each: offsets of locks are signed 64-bit numbers.
  const stepByte = (BigInt(`0x${id.slice(0, 16)}`) >> 3n) * 2n + 2n
  return { id, stepByte, presenceByte: stepByte + 1n }
}

/** Whoever looks for what dead agents left holds this byte, so that two do not do it at once. */
const RECOVERY_BYTE = 0n
/** How long to wait before trying again for a byte that another agent holds for a step, which takes it some microseconds. */
const RETRY_MS = 1

/** The locks of one tracer. */
export class CounterLocks {
  /** @param fd - of the file, opened for reading and writing by this tracer alone; stays the caller's */
  constructor(
    private readonly native: Native,
    private readonly fd: number,
  ) {}

  /** Runs a step that nobody else can be in, for these counters; `done` is false if somebody is. */
  tryStep<T>(keys: readonly CounterKey[], step: () => T): { done: true; value: T } | { done: false } {
    const held: bigint[] = []
    try {
      for (const byte of sortedBytes(keys)) {
        if (!this.native.lockByte(this.fd, byte, 'exclusive')) return { done: false }
        held.push(byte)
      }
      return { done: true, value: step() }
    } finally {
      for (const byte of held) this.native.lockByte(this.fd, byte, 'none')
    }
  }

  /** The same, as soon as nobody is. */
  async step<T>(keys: readonly CounterKey[], step: () => T, signal?: AbortSignal): Promise<T> {
    for (;;) {
      signal?.throwIfAborted()
      const result = this.tryStep(keys, step)
      if (result.done) return result.value
      await delay(RETRY_MS)
    }
  }

  /** We are at the counter. Within a step. Idempotent. */
  enter(key: CounterKey): void {
    // Shared, and held exclusively only within a step, so that it is free.
    if (!this.native.lockByte(this.fd, key.presenceByte, 'shared'))
      throw new Error('the presence at a counter is held exclusively outside of a step')
  }

  /** We are not, any more. Within a step. Returns whether another agent is. Idempotent. */
  leave(key: CounterKey): boolean {
    return this.othersPresent(key)
  }

  /** Whether another agent is at the counter. Within a step. Our own presence ends with the question: a lock of ours is changed, not added to. */
  othersPresent(key: CounterKey): boolean {
    const alone = this.native.lockByte(this.fd, key.presenceByte, 'exclusive')
    this.native.lockByte(this.fd, key.presenceByte, 'none')
    return !alone
  }

  /**
   * Runs what only one may do at a time: looking for what dead agents left.
   * @param patienceMs - how long to wait for another who does
   * @returns what `work` returns; `null` if the other was not through in that time
   */
  async recovering<T>(patienceMs: number, work: () => Promise<T>): Promise<T | null> {
    const deadline = performance.now() + patienceMs
    while (!this.native.lockByte(this.fd, RECOVERY_BYTE, 'exclusive')) {
      if (performance.now() > deadline) return null
      await delay(RETRY_MS)
    }
    try {
      return await work()
    } finally {
      this.native.lockByte(this.fd, RECOVERY_BYTE, 'none')
    }
  }
}

/** In one order for everybody, so that two agents never wait for each other. */
function sortedBytes(keys: readonly CounterKey[]): bigint[] {
  const [only] = keys
  if (only !== undefined && keys.length === 1) return [only.stepByte]
  return [...new Set(keys.map(({ stepByte }) => stepByte))].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))
}
