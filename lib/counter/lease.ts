/**
 * What a lease says, and its text on disk: one JSON object.
 *
 * Numbers of 64 bits are written as decimal strings, addresses and offsets as `0x…`. Whoever can write the directory is the agent's own user, yet a file may be half-written,
 * or of another version; so it is read strictly, and what is not understood as a whole is not believed in part.
 */
import { TimeSlice } from '../elf/time-slice.js'
import type { SpaceId } from './space.js'

/** A counter that is claimed in one mapping. */
export interface LeaseCounter {
  readonly provider: string
  readonly name: string
  /** Offset in the file; `null` for a counter in `.bss`. */
  readonly refCtrOffset: bigint | null
  /** Virtual address in the file. */
  readonly vaddr: bigint
  /** Address in the process. */
  readonly address: bigint
}

/** Who has claimed which counters, in which process. */
export interface LeaseRecord {
  readonly version: 1
  readonly owner: LeaseHolder
  readonly bootId: string
  /** CLOCK_BOOTTIME when it was written, in nanoseconds, to a hundredth of a second. */
  readonly sinceNs: bigint
  /** The same in clock ticks of the machine (boot-clock.ts): a child that was born later has a start time that is not smaller. */
  readonly sinceTicks: bigint
  readonly target: {
    /** As the owner sees it. */
    readonly pid: number
    readonly startTime: bigint
    readonly space: SpaceId
  }
  readonly file: { readonly device: bigint; readonly inode: bigint; readonly path: string }
  readonly counters: readonly LeaseCounter[]
}

/** The agent that holds a lease. */
export interface LeaseHolder {
  readonly pid: number
  readonly startTime: bigint
  readonly comm: string
  /** Version of this package. */
  readonly package: string
  /** Inode of the pid namespace in which `pid`, and the target's `pid`, are meant. */
  readonly pidNamespace: string
}

/** The longest text that is read. A lease for some thousands of counters is far below. */
export const MAX_LEASE_BYTES = 4 * 1024 * 1024

/** Writes counters as a lease has them, without the brackets around them: those of a large lease are written some at a time. */
export function formatCounters(counters: readonly LeaseCounter[]): string {
  // Numbers are made text before, and not by a replacer, which is called for each.
  const texts = counters.map(({ provider, name, refCtrOffset, vaddr, address }) => ({
    provider,
    name,
    refCtrOffset: refCtrOffset === null ? null : hex(refCtrOffset),
    vaddr: hex(vaddr),
    address: hex(address),
  }))
  return JSON.stringify(texts).slice(1, -1)
}

/**
 * Writes a lease.
 * @param counters - its counters, as {@link formatCounters} has written them
 */
export function formatLease(lease: LeaseRecord, counters = formatCounters(lease.counters)): string {
  const { version, owner, bootId, sinceNs, sinceTicks, target, file } = lease
  const text = JSON.stringify({
    version,
    owner: { ...owner, startTime: String(owner.startTime) },
    bootId,
    sinceNs: String(sinceNs),
    sinceTicks: String(sinceTicks),
    target: { ...target, startTime: String(target.startTime) },
    file: { ...file, device: String(file.device), inode: String(file.inode) },
  })
  return `${text.slice(0, -1)},"counters":[${counters}]}\n`
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`
}

/** The version of the format that this package writes. */
const VERSION = 1

/** Whether a text is a lease of a version that is newer than ours, which we cannot understand, and whose owner's successors can. */
export function isNewerLease(text: string): boolean {
  try {
    const { version } = object(JSON.parse(text))
    return typeof version === 'number' && Number.isInteger(version) && version > VERSION
  } catch (error) {
    return nullIfNoLease(error) ?? false
  }
}

/** Reads a lease; `null` if it is not one, whole and of this version. */
export function parseLease(text: string): LeaseRecord | null {
  try {
    const lease = ofThisVersion(text)
    return lease === null ? null : recordOf(lease, list(lease.counters).map(counterOf))
  } catch (error) {
    return nullIfNoLease(error)
  }
}

/**
 * The same, with the event loop's turns in between: a lease may have thousands of counters, and a text of a megabyte takes ten milliseconds to parse. One that is laid out as {@link formatLease} does
 * is parsed piece by piece. If that does not work out it is parsed as one, so that it is never refused for how it is laid out.
 */
export async function parseLeaseInSlices(text: string): Promise<LeaseRecord | null> {
  const pieces = piecesOf(text)
  if (pieces === null) return parseLease(text)
  const slice = new TimeSlice()
  try {
    const lease = ofThisVersion(pieces.head)
    // What is behind the counters may say otherwise.
    if (lease === null) return parseLease(text)
    const counters: LeaseCounter[] = []
    for (const piece of pieces.lists) {
      if (slice.isOver) await slice.rest()
      counters.push(...list(JSON.parse(piece)).map(counterOf))
    }
    return recordOf(lease, counters)
  } catch (error) {
    nullIfNoLease(error)
    return parseLease(text)
  }
}

/** A text shorter than two of them is parsed as one; so long are the pieces of others, and one counter longer. It takes a fraction of a millisecond. */
const PIECE_CHARACTERS = 16 * 1024
const BEFORE_COUNTERS = ',"counters":['
const BETWEEN_COUNTERS = '},{"provider":'
const BEHIND_COUNTERS = ']}\n'

/**
 * Divides the text of a lease into one without counters, and lists of counters; `null` if it is short, or not laid out for that.
 *
 * No text is parsed to divide it. That is right all the same: if each piece is JSON, so is the whole, with just these counters, since it is the pieces with a comma in between. And JSON is not divided in the
 * middle of a string: its quote would be the end of the string, for within a string it has a backslash before it, and no string is followed by a letter.
 */
function piecesOf(text: string): { readonly head: string; readonly lists: Iterable<string> } | null {
  const end = text.length - BEHIND_COUNTERS.length
  const headEnd = text.indexOf(BEFORE_COUNTERS)
  if (text.length < 2 * PIECE_CHARACTERS || headEnd < 0 || !text.endsWith(BEHIND_COUNTERS)) return null
  return { head: `${text.slice(0, headEnd)}}`, lists: listsOf(text, headEnd + BEFORE_COUNTERS.length, end) }
}

function* listsOf(text: string, start: number, end: number): Generator<string> {
  for (let from = start; ; ) {
    const between = text.indexOf(BETWEEN_COUNTERS, from + PIECE_CHARACTERS)
    if (between < 0) return yield `[${text.slice(from, end)}]`
    // Behind the brace of the one, before that of the other.
    yield `[${text.slice(from, between + 1)}]`
    from = between + 2
  }
}

function ofThisVersion(text: string): Record<string, unknown> | null {
  const lease = object(JSON.parse(text))
  return lease.version === VERSION ? lease : null
}

function nullIfNoLease(error: unknown): null {
  if (error instanceof SyntaxError || error instanceof NotALease) return null
  throw error
}

function recordOf(lease: Record<string, unknown>, counters: readonly LeaseCounter[]): LeaseRecord {
  const target = object(lease.target)
  const space = object(target.space)
  const file = object(lease.file)
  return {
    version: 1,
    owner: parseHolder(lease.owner),
    bootId: string(lease.bootId),
    sinceNs: decimal(lease.sinceNs),
    sinceTicks: decimal(lease.sinceTicks),
    target: {
      pid: pid(target.pid),
      startTime: decimal(target.startTime),
      space: {
        pidNamespace: digits(space.pidNamespace),
        pid: pid(space.pid),
        fingerprint: matching(space.fingerprint, /^[0-9a-f]{32}$/),
      },
    },
    file: { device: decimal(file.device), inode: decimal(file.inode), path: string(file.path) },
    counters,
  }
}

function counterOf(item: unknown): LeaseCounter {
  const counter = object(item)
  return {
    provider: string(counter.provider),
    name: string(counter.name),
    refCtrOffset: counter.refCtrOffset === null ? null : hexadecimal(counter.refCtrOffset),
    vaddr: hexadecimal(counter.vaddr),
    address: even(hexadecimal(counter.address)),
  }
}

/** Reads who holds a lease. Throws {@link NotALease}. */
export function parseHolder(value: unknown): LeaseHolder {
  const holder = object(value)
  return {
    pid: pid(holder.pid),
    startTime: decimal(holder.startTime),
    comm: string(holder.comm),
    package: string(holder.package),
    pidNamespace: digits(holder.pidNamespace),
  }
}

/** Something in a file is not what a lease has there. */
export class NotALease extends Error {}

function object(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new NotALease('not an object')
  return value as Record<string, unknown>
}

function list(value: unknown): unknown[] {
  if (!Array.isArray(value)) throw new NotALease('not a list')
  return value
}

function string(value: unknown): string {
  if (typeof value !== 'string') throw new NotALease('not a string')
  return value
}

function matching(value: unknown, pattern: RegExp): string {
  const text = string(value)
  if (!pattern.test(text)) throw new NotALease(`not ${pattern}`)
  return text
}

function digits(value: unknown): string {
  return matching(value, /^\d{1,20}$/)
}

function decimal(value: unknown): bigint {
  return BigInt(digits(value))
}

function hexadecimal(value: unknown): bigint {
  return BigInt(matching(value, /^0x[0-9a-f]{1,16}$/))
}

/** A counter that is claimed has two bytes that can be stored at once. */
function even(value: bigint): bigint {
  if (value % 2n !== 0n) throw new NotALease('an odd address')
  return value
}

function pid(value: unknown): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > 2 ** 22) throw new NotALease('not a pid')
  return value
}
