/**
 * The directory in which agents tell each other, and those who come after them, what they have claimed.
 *
 *     owner-ID.json             one a tracer, with its lock: whoever can take the lock knows that the owner is dead
 *     owner-ID.sock             where it can be asked to give way (control.ts)
 *     lease-ID-N.json           what it has claimed in one process; written whole under another name and then renamed, so that it is there or not
 *     released-ID-N.json        the same, given back: only cleaning up is left
 *     locks                     no data, but the locks of counters (counter-locks.ts)
 *
 * What stands in it makes a root process write into the memory of others, so it is believed only if nobody else can have written it: the way to it has no symbolic link, it is
 * ours, and open to nobody else. From then on everything is reached through its descriptor.
 */
import { closeSync, constants, fstatSync, mkdirSync, openSync, readdirSync, readSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { ENOENT } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { Native } from '../native.js'
import { type LeaseHolder, type LeaseRecord, MAX_LEASE_BYTES, NotALease, parseHolder, parseLease } from './lease.js'

/** A lease as it is found. */
export interface LeaseFile {
  readonly name: string
  readonly ownerId: string
  /** Given back; only cleaning up is left. */
  readonly released: boolean
  /** `null` if it cannot be understood. */
  readonly lease: LeaseRecord | null
  readonly ownerAlive: boolean
}

/** An owner as it is found. */
export interface OwnerFile {
  readonly id: string
  readonly alive: boolean
  /** `null` if its file cannot be understood, or is gone. */
  readonly holder: LeaseHolder | null
}

/** Where leases are kept if nobody says otherwise: `/run/uprobe` for root, `$XDG_RUNTIME_DIR/uprobe` for others. */
export function defaultLeaseDirectory(): string {
  const runtime = process.env.XDG_RUNTIME_DIR
  if (process.geteuid?.() === 0) return '/run/uprobe'
  return join(runtime?.startsWith('/') ? runtime : `/run/user/${process.geteuid?.() ?? 0}`, 'uprobe')
}

const LEASE = /^(lease|released)-(\d+-\d+-[0-9a-f]{8})-\d+\.json$/
const OWNER = /^owner-(\d+-\d+-[0-9a-f]{8})\.json$/

/** An open lease directory. The opener closes it. */
export class LeaseDirectory {
  #closed = false

  private constructor(
    private readonly native: Native,
    readonly path: string,
    private readonly fd: number,
  ) {}

  /**
   * Opens the directory, and makes it if need be.
   * @param absent - what to do if it is not there: make it, or answer `null`
   * @throws {UprobeError} `ERR_UPROBE_LEASE` if it cannot be made, opened or trusted
   */
  static open(native: Native, path: string, absent: 'create'): LeaseDirectory
  static open(native: Native, path: string, absent: 'create' | 'ignore'): LeaseDirectory | null
  static open(native: Native, path: string, absent: 'create' | 'ignore'): LeaseDirectory | null {
    let fd: number
    try {
      if (absent === 'create') make(native, path)
      fd = native.openDirectory(path)
    } catch (error) {
      if (absent === 'ignore' && errnoOf(error) === ENOENT) return null
      throw leaseError(path, 'cannot be opened', error)
    }
    try {
      const { uid, mode } = fstatSync(fd)
      if (uid !== process.geteuid?.()) throw leaseError(path, `belongs to user ${uid}, so that what stands in it cannot be trusted`)
      if ((mode & 0o077) !== 0) throw leaseError(path, 'is open to other users (it must have mode 0700)')
      return new LeaseDirectory(native, path, fd)
    } catch (error) {
      closeSync(fd)
      throw error
    }
  }

  /** A path to a file in the directory, whatever its own path means by now. */
  pathOf(name: string): string {
    return `/proc/self/fd/${this.fd}/${name}`
  }

  /** Everything in it that is a lease, the oldest first, with whether its owner lives. */
  list(): LeaseFile[] {
    const owners = new Map(this.owners().map((owner) => [owner.id, owner]))
    const leases: LeaseFile[] = []
    for (const name of this.names()) {
      const [, kind, ownerId] = LEASE.exec(name) ?? []
      if (ownerId === undefined) continue
      const text = this.#read(name)
      // It went away since it was listed.
      if (text === undefined) continue
      leases.push({
        name,
        ownerId,
        released: kind === 'released',
        lease: text === null ? null : parseLease(text),
        ownerAlive: owners.get(ownerId)?.alive ?? false,
      })
    }
    return leases
  }

  /** The owners. */
  owners(): OwnerFile[] {
    return this.names().flatMap((name) => {
      const id = OWNER.exec(name)?.[1]
      return id === undefined ? [] : [{ id, alive: this.#isLocked(name), holder: this.#holder(name) }]
    })
  }

  /** All names. */
  names(): string[] {
    return readdirSync(this.pathOf('.')).sort()
  }

  /** Closes it. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    closeSync(this.fd)
  }

  #holder(name: string): LeaseHolder | null {
    const text = this.#read(name)
    if (text === undefined || text === null) return null
    try {
      return parseHolder(JSON.parse(text))
    } catch (error) {
      if (error instanceof SyntaxError || error instanceof NotALease) return null
      throw error
    }
  }

  /** Whether somebody holds the lock of a file. */
  #isLocked(name: string): boolean {
    const fd = this.#open(name)
    if (fd === undefined) return false
    try {
      // Shared, so that two who look at the same time do not take each other for the owner.
      return fd !== null && !this.native.lockFile(fd, 'shared')
    } finally {
      if (fd !== null) closeSync(fd)
    }
  }

  /** The text of a file; `undefined` if it is not there, `null` if it is nothing that anybody should read. */
  #read(name: string): string | null | undefined {
    const fd = this.#open(name)
    if (fd == null) return fd
    try {
      const { size } = fstatSync(fd)
      if (size > MAX_LEASE_BYTES) return null
      const buffer = Buffer.alloc(size)
      return buffer.toString('utf8', 0, readSync(fd, buffer, 0, size, 0))
    } finally {
      closeSync(fd)
    }
  }

  /** Opens a regular file, without waiting and without following a link. */
  #open(name: string): number | null | undefined {
    let fd: number
    try {
      fd = openSync(this.pathOf(name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    } catch (error) {
      if (!isSystemCallError(error)) throw error
      return errnoOf(error) === ENOENT ? undefined : null
    }
    if (fstatSync(fd).isFile()) return fd
    closeSync(fd)
    return null
  }
}

/** Makes the directory in the one it is to be in, which must be there. */
function make(native: Native, path: string): void {
  const parent = native.openDirectory(dirname(path))
  try {
    mkdirSync(`/proc/self/fd/${parent}/${path.slice(dirname(path).length).replace(/^\/+/, '')}`, 0o700)
  } catch (error) {
    if (!isSystemCallError(error) || error.code !== 'EEXIST') throw error
  } finally {
    closeSync(parent)
  }
}

/** Why a lease cannot be kept, and what helps. */
export function leaseError(path: string, why: string, cause?: unknown): UprobeError {
  const reason = isSystemCallError(cause) ? ` (${cause.code})` : ''
  return new UprobeError(
    'ERR_UPROBE_LEASE',
    `The lease directory ${escapeForDisplay(path)} ${why}${reason}. Nothing was written to the target. ` +
      "Give a directory of your own, with mode 0700 and no symbolic link on the way to it, with leaseDir; or use counter: 'kernel', which needs none.",
    { cause, errno: errnoOf(cause), path: escapeForDisplay(path) },
  )
}
