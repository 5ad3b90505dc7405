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

/** A counter in one address space: 64 hexadecimal digits. */
export type CounterKey = string

/** The key of the counter at an address. */
export function counterKey(space: SpaceId, address: bigint): CounterKey {
  const { pidNamespace, pid, fingerprint } = space
  return createHash('sha256').update(`${BOOT_ID}:${pidNamespace}:${pid}:${fingerprint}:${address}`).digest('hex')
}

/** Whoever looks for what dead agents left holds this byte, so that two do not do it at once. */
const RECOVERY_BYTE = 0n
/** How long to wait before trying again for a byte that another agent holds for a step, which takes it some microseconds. */
const RETRY_MS = 1

/** 62 bits of a key, and two bytes for each. Offsets of locks are signed 64-bit numbers. */
function stepByte(key: CounterKey): bigint {
  return (BigInt(`0x${key.slice(0, 16)}`) >> 3n) * 2n + 2n
}

function presenceByte(key: CounterKey): bigint {
  return stepByte(key) + 1n
}

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
    if (!this.native.lockByte(this.fd, presenceByte(key), 'shared'))
      throw new Error('the presence at a counter is held exclusively outside of a step')
  }

  /** We are not, any more. Idempotent. */
  leave(key: CounterKey): void {
    this.native.lockByte(this.fd, presenceByte(key), 'none')
  }

  /** Whether another agent is. Within a step, and while we are not. */
  othersPresent(key: CounterKey): boolean {
    const alone = this.native.lockByte(this.fd, presenceByte(key), 'exclusive')
    if (alone) this.native.lockByte(this.fd, presenceByte(key), 'none')
    return !alone
  }

  /** Runs what only one may do at a time: looking for what dead agents left. */
  async recovering<T>(work: () => Promise<T>): Promise<T> {
    while (!this.native.lockByte(this.fd, RECOVERY_BYTE, 'exclusive')) await delay(RETRY_MS)
    try {
      return await work()
    } finally {
      this.native.lockByte(this.fd, RECOVERY_BYTE, 'none')
    }
  }
}

/** In one order for everybody, so that two agents never wait for each other. */
function sortedBytes(keys: readonly CounterKey[]): bigint[] {
  return [...new Set(keys.map(stepByte))].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))
}
