/**
 * The owner of leases: stands for one tracer in the lease directory, as long as the tracer lives and no moment longer.
 *
 * Its file is locked before it has its name, so that nobody ever finds it unlocked while the tracer lives; the kernel unlocks it when the process ends, however it does.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, constants, openSync, readFileSync, readlinkSync, renameSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { isSystemCallError, UprobeError } from '../errors.js'
import { childLogger, type Logger } from '../log.js'
import { type Native, packageRoot } from '../native.js'
import { parseStat } from '../target/process.js'
import { NS_PER_TICK, ticksSinceBoot } from './boot-clock.js'
import { CounterLocks } from './counter-locks.js'
import { formatCounters, formatLease, type LeaseHolder, type LeaseRecord, MAX_LEASE_BYTES } from './lease.js'
import { type LeaseDirectory, leaseError } from './lease-directory.js'
import { BOOT_ID } from './space.js'

/** A lease that is held. */
export interface Lease {
  /** Name of its file. */
  name: string
  /** As the file says. */
  readonly sinceTicks: bigint
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
    private readonly log: Logger,
  ) {
    this.locks = new CounterLocks(native, locksFd)
  }

  /**
   * Enters the directory. The directory must stay open as long as the owner is.
   * @param log - told of what could not be tidied up
   * @throws {UprobeError} `ERR_UPROBE_LEASE`, `ERR_UPROBE_LIMIT`
   */
  static create(directory: LeaseDirectory, native: Native, log: Logger = childLogger(false, 'lease')): LeaseOwner {
    const fds: number[] = []
    try {
      const holder = ownProcess()
      const id = `${holder.pid}-${holder.startTime}-${randomBytes(4).toString('hex')}`
      const locksFd = directory.openLocks()
      fds.push(locksFd)
      const ownerFd = writeNew(directory, `owner-${id}.json`, Buffer.from(`${JSON.stringify(holder, stringify)}\n`), (fd) => {
        if (!native.lockFile(fd, 'exclusive')) throw new Error('a new file is locked')
      })
      return new LeaseOwner(directory, native, id, holder, ownerFd, locksFd, log)
    } catch (error) {
      for (const fd of fds) closeSync(fd)
      throw isSystemCallError(error) ? leaseError(directory.path, 'cannot be written', error) : error
    }
  }

  /**
   * Records a claim. It is on disk when this returns, and not at all if it throws.
   * @param counters - those of the claim, as `formatCounters` has written them
   * @throws {UprobeError} `ERR_UPROBE_LEASE`, `ERR_UPROBE_LIMIT`, `ERR_UPROBE_TOO_MANY_SITES`
   */
  write(claim: LeaseClaim, counters = formatCounters(claim.counters)): Lease {
    const name = `lease-${this.id}-${this.#next++}.json`
    try {
      const sinceTicks = ticksSinceBoot()
      const record: LeaseRecord = {
        version: 1,
        owner: this.holder,
        bootId: BOOT_ID,
        sinceNs: sinceTicks * NS_PER_TICK,
        sinceTicks,
        ...claim,
      }
      const bytes = Buffer.from(formatLease(record, counters))
      if (bytes.length > MAX_LEASE_BYTES) throw tooManyCounters(claim)
      closeSync(writeNew(this.directory, name, bytes))
      return { name, sinceTicks }
    } catch (error) {
      throw isSystemCallError(error) ? leaseError(this.directory.path, 'cannot be written', error) : error
    }
  }

  /**
   * The claim is given back: the file says so from now on. Idempotent. A directory that cannot be written any more does not keep anybody from giving back: whoever finds the
   * lease later finds the bit clear.
   */
  release(lease: Lease): void {
    this.#rename(lease, 'released')
  }

  /** The claim is given up, but something of it could not be cleared: whoever recovers next sees to it, also while we live. */
  leave(lease: Lease): void {
    this.#rename(lease, 'left')
  }

  #rename(lease: Lease, kind: 'released' | 'left'): void {
    const name = lease.name.replace(/^(lease|released)-/, `${kind}-`)
    if (name === lease.name) return
    this.#tidy(lease.name, () => {
      renameSync(this.directory.pathOf(lease.name), this.directory.pathOf(name))
      lease.name = name
    })
  }

  /** Nothing is left to be done about the claim. Idempotent. */
  remove(lease: Lease): void {
    this.#tidy(lease.name, () => rmSync(this.directory.pathOf(lease.name), { force: true }))
  }

  /** Leaves the directory. Leases that were not removed are from now on those of a dead owner. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    const file = `owner-${this.id}.json`
    this.#tidy(file, () => {
      const left = this.directory.names().some((name) => name.includes(`-${this.id}-`))
      if (!left) rmSync(this.directory.pathOf(file), { force: true })
    })
    closeSync(this.ownerFd)
    closeSync(this.locksFd)
  }

  #tidy(file: string, work: () => void): void {
    try {
      work()
    } catch (error) {
      if (!isSystemCallError(error) && !(error instanceof UprobeError)) throw error
      this.log.warn({ err: error, file }, 'a file in the lease directory could not be put away; the next agent does it')
    }
  }
}

/** A record that nobody would read back would leave its bits for ever if we were killed. */
function tooManyCounters({ counters, target }: LeaseClaim): UprobeError {
  return new UprobeError(
    'ERR_UPROBE_TOO_MANY_SITES',
    `${counters.length} counters of process ${target.pid} cannot be claimed by one probe: the record of the claim would be longer than ${MAX_LEASE_BYTES} bytes. Attach them in several probes, or use counter: 'kernel'.`,
    { pid: target.pid },
  )
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
function writeNew(directory: LeaseDirectory, name: string, bytes: Buffer, beforeNamed?: (fd: number) => void): number {
  const temporary = directory.pathOf(`new-${name}`)
  const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const fd = openSync(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
  try {
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
