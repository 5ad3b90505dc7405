/**
 * The owner of leases: stands for one tracer in the lease directory, as long as the tracer lives and no moment longer.
 *
 * Its file is locked before it has its name, so that nobody ever finds it unlocked while the tracer lives; the kernel unlocks it when the process ends, however it does.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, constants, openSync, readFileSync, readlinkSync, renameSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { isSystemCallError } from '../errors.js'
import { type Native, packageRoot } from '../native.js'
import { parseStat } from '../target/process.js'
import { CounterLocks } from './counter-locks.js'
import { formatLease, type LeaseHolder, type LeaseRecord } from './lease.js'
import { type LeaseDirectory, leaseError } from './lease-directory.js'
import { BOOT_ID } from './space.js'

/** A lease that is held. */
export interface Lease {
  /** Name of its file. */
  name: string
}

/** What the claimer says; the owner adds the rest. */
export type LeaseClaim = Omit<LeaseRecord, 'version' | 'owner' | 'bootId' | 'sinceNs' | 'sinceTicks'>

/** One tracer's presence in the lease directory. */
export class LeaseOwner {
  readonly locks: CounterLocks
  #next = 0
  #closed = false

  private constructor(
    private readonly directory: LeaseDirectory,
    native: Native,
    readonly id: string,
    private readonly holder: LeaseHolder,
    private readonly ownerFd: number,
    private readonly locksFd: number,
  ) {
    this.locks = new CounterLocks(native, locksFd)
  }

  /**
   * Enters the directory. The directory must stay open as long as the owner is.
   * @throws {UprobeError} `ERR_UPROBE_LEASE`
   */
  static create(directory: LeaseDirectory, native: Native): LeaseOwner {
    const holder = ownProcess()
    const id = `${holder.pid}-${holder.startTime}-${randomBytes(4).toString('hex')}`
    const fds: number[] = []
    try {
      const locksFd = openSync(directory.pathOf('locks'), constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
      fds.push(locksFd)
      const ownerFd = writeNew(directory, `owner-${id}.json`, `${JSON.stringify(holder, stringify)}\n`, (fd) => {
        if (!native.lockFile(fd, 'exclusive')) throw new Error('a new file is locked')
      })
      return new LeaseOwner(directory, native, id, holder, ownerFd, locksFd)
    } catch (error) {
      for (const fd of fds) closeSync(fd)
      throw isSystemCallError(error) ? leaseError(directory.path, 'cannot be written', error) : error
    }
  }

  /**
   * Records a claim. It is on disk when this returns, and not at all if it throws.
   * @throws {UprobeError} `ERR_UPROBE_LEASE`
   */
  write(claim: LeaseClaim): Lease {
    const sinceNs = process.hrtime.bigint() + bootTimeOffsetNs()
    const record: LeaseRecord = {
      version: 1,
      owner: this.holder,
      bootId: BOOT_ID,
      sinceNs,
      sinceTicks: sinceNs / (1_000_000_000n / TICKS_PER_SECOND),
      ...claim,
    }
    const name = `lease-${this.id}-${this.#next++}.json`
    try {
      closeSync(writeNew(this.directory, name, formatLease(record)))
    } catch (error) {
      throw isSystemCallError(error) ? leaseError(this.directory.path, 'cannot be written', error) : error
    }
    return { name }
  }

  /** The claim is given back: the file says so from now on. Idempotent. */
  release(lease: Lease): void {
    const name = lease.name.replace(/^lease-/, 'released-')
    if (name === lease.name) return
    renameSync(this.directory.pathOf(lease.name), this.directory.pathOf(name))
    lease.name = name
  }

  /** Nothing is left to be done about the claim. Idempotent. */
  remove(lease: Lease): void {
    rmSync(this.directory.pathOf(lease.name), { force: true })
  }

  /** Leaves the directory. Leases that were not removed are from now on those of a dead owner. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    const left = this.directory.names().some((name) => name.includes(`-${this.id}-`))
    if (!left) rmSync(this.directory.pathOf(`owner-${this.id}.json`), { force: true })
    closeSync(this.ownerFd)
    closeSync(this.locksFd)
  }
}

/** USER_HZ: the unit of times in /proc, 100 on every supported architecture. */
const TICKS_PER_SECOND = 100n

/** CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC by the time that the machine was suspended. /proc/uptime counts by it, to a hundredth of a second. */
function bootTimeOffsetNs(): bigint {
  const [seconds = '0'] = readFileSync('/proc/uptime', 'utf8').split(' ')
  const offset = BigInt(Math.round(Number(seconds) * 1e9)) - process.hrtime.bigint()
  // Below the grain of the clock it is no suspension.
  return offset > 1_000_000_000n ? offset : 0n
}

function ownProcess(): LeaseHolder {
  const { startTime } = parseStat(readFileSync('/proc/self/stat', 'utf8'))
  const manifest = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { version?: string }
  return {
    pid: process.pid,
    startTime,
    comm: readFileSync('/proc/self/comm', 'utf8').trim(),
    package: manifest.version ?? 'unknown',
    pidNamespace: /\d+/.exec(readlinkSync('/proc/self/ns/pid'))?.[0] ?? '0',
  }
}

function stringify(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? String(value) : value
}

/** Writes a file that is there under its name only when it is whole. Returns its descriptor; nothing is left if it throws. */
function writeNew(directory: LeaseDirectory, name: string, text: string, beforeNamed?: (fd: number) => void): number {
  const temporary = directory.pathOf(`new-${name}`)
  const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const fd = openSync(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
  try {
    const bytes = Buffer.from(text)
    let written = 0
    while (written < bytes.length) written += writeSync(fd, bytes, written)
    beforeNamed?.(fd)
    renameSync(temporary, directory.pathOf(name))
    return fd
  } catch (error) {
    closeSync(fd)
    rmSync(temporary, { force: true })
    throw error
  }
}
