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
import { closeSync, constants, existsSync, fstatSync, mkdirSync, openSync, readdirSync, readSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { EACCES, ELOOP, ENOENT, ENXIO, EPERM } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { Native } from '../native.js'
import { limitError } from '../shortage.js'
import {
  isNewerLease,
  type LeaseHolder,
  type LeaseRecord,
  MAX_LEASE_BYTES,
  NotALease,
  parseHolder,
  parseLease,
  parseLeaseInSlices,
} from './lease.js'

/** A lease as its name says, and its owner. */
export interface LeaseEntry {
  readonly name: string
  readonly ownerId: string
  /** Given back; only cleaning up is left. */
  readonly released: boolean
  /** Given up with something left to do, which its owner could not: it is anybody's, also while the owner lives. */
  readonly left: boolean
  readonly ownerAlive: boolean
}

/** A lease as it is found. */
export interface LeaseFile extends LeaseEntry {
  /** `null` if it cannot be understood. */
  readonly lease: LeaseRecord | null
  /** Why one that cannot be understood may be a good lease all the same, and is left; `null` if there is no such reason. */
  readonly leave: string | null
}

/** An owner as it is found. */
export interface OwnerFile {
  readonly id: string
  readonly alive: boolean
  /** `null` if its file cannot be understood, or is gone. */
  readonly holder: LeaseHolder | null
}

/** Where root's agents keep their leases if nobody says otherwise. */
const OF_ROOT = '/run/uprobe'

/** Where leases are kept if nobody says otherwise: `/run/uprobe` for root; for others `$XDG_RUNTIME_DIR/uprobe`, and without that variable `/run/user/UID/uprobe`. */
export function defaultLeaseDirectory(): string {
  const runtime = process.env.XDG_RUNTIME_DIR
  if (process.geteuid?.() === 0) return OF_ROOT
  return join(runtime?.startsWith('/') ? runtime : `/run/user/${process.geteuid?.() ?? 0}`, 'uprobe')
}

/**
 * What is to be said to who looks for the claims of all agents, and is not root: those of root's agents cannot be known.
 * @param given - the directory that was asked for, which settles whose are meant
 * @param ofRoot - for tests
 * @returns `ERR_UPROBE_LEASE`, or `null` if nothing is hidden
 */
export function hiddenLeases(given: string | undefined, ofRoot = OF_ROOT): UprobeError | null {
  if (given !== undefined || process.geteuid?.() === 0 || !existsSync(ofRoot)) return null
  return new UprobeError(
    'ERR_UPROBE_LEASE',
    `Agents of root keep their leases in ${ofRoot}, which another user may not read: whether they hold claims is not known. ` +
      `Run as root; or name your own directory, ${escapeForDisplay(defaultLeaseDirectory())} unless you chose another, with leaseDir.`,
    { path: ofRoot },
  )
}

const LEASE = /^(lease|released|left)-(\d+-\d+-[0-9a-f]{8})-\d+\.json$/
const OWNER = /^owner-(\d+-\d+-[0-9a-f]{8})\.json$/

/** What stands under a name: its descriptor, or why there is none. */
type Opened = number | 'absent' | 'no-file' | 'forbidden'

/** The text under a name, or why there is none. */
type Found = { readonly text: string } | Exclude<Opened, number>

function leaseFile(entry: LeaseEntry, found: Found, lease: LeaseRecord | null): LeaseFile {
  if (found === 'forbidden') return { ...entry, lease, leave: 'it may not be read' }
  const newer = lease === null && typeof found !== 'string' && isNewerLease(found.text)
  return { ...entry, lease, leave: newer ? 'it was written by a newer version of this package' : null }
}

/** An open lease directory. The opener closes it. */
export class LeaseDirectory {
  #closed = false

  private constructor(
    private readonly native: Native,
    readonly path: string,
    private readonly fd: number,
    private readonly purpose: Purpose,
  ) {}

  /**
   * Opens the directory, and makes it if need be.
   * @param absent - what to do if it is not there: make it, or answer `null`
   * @throws {UprobeError} `ERR_UPROBE_LEASE` if it cannot be made, opened or trusted
   */
  static open(native: Native, path: string, absent: 'create'): LeaseDirectory
  static open(native: Native, path: string, absent: 'create' | 'ignore'): LeaseDirectory | null
  static open(native: Native, path: string, absent: 'create' | 'ignore'): LeaseDirectory | null {
    const purpose = absent === 'create' ? 'claim' : 'look'
    let fd: number
    try {
      if (absent === 'create') make(native, path)
      fd = native.openDirectory(path)
    } catch (error) {
      if (absent === 'ignore' && errnoOf(error) === ENOENT) return null
      // It is made; the one that it is to be in is not, as /run/user/UID of a user who is not logged in.
      const missing = errnoOf(error) === ENOENT && !existsSync(dirname(path))
      throw leaseError(
        path,
        missing ? `cannot be made, since ${escapeForDisplay(dirname(path))} is not there` : 'cannot be opened',
        error,
        purpose,
      )
    }
    try {
      const { uid, mode } = fstatSync(fd)
      if (uid !== process.geteuid?.())
        throw leaseError(path, `belongs to user ${uid}, so that what stands in it cannot be trusted`, undefined, purpose)
      if ((mode & 0o077) !== 0) throw leaseError(path, 'is open to other users (it must have mode 0700)', undefined, purpose)
      return new LeaseDirectory(native, path, fd, purpose)
    } catch (error) {
      native.closeFd(fd)
      throw error
    }
  }

  /** A path to a file in the directory, whatever its own path means by now. */
  pathOf(name: string): string {
    return `/proc/self/fd/${this.fd}/${name}`
  }

  /**
   * Opens the file of the locks (counter-locks.ts), made if need be; the caller closes it. Each caller has an open file of its own, and so locks of its own.
   * @throws a failed system call
   */
  openLocks(): number {
    // Without waiting, should somebody have put a FIFO there; locks on anything but a file would not be those that the others take.
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW | constants.O_NONBLOCK
    const fd = openSync(this.pathOf('locks'), flags, 0o600)
    if (fstatSync(fd).isFile()) return fd
    closeSync(fd)
    throw leaseError(this.path, 'has something else than a file for its locks', undefined, this.purpose)
  }

  /**
   * Everything in it that is a lease, with whether its owner lives, and what it says.
   * @param wanted - which of them: a lease of ten thousand counters takes ten milliseconds to read
   * @throws {UprobeError} `ERR_UPROBE_LIMIT`, `ERR_UPROBE_LEASE` if it cannot be said
   */
  list(wanted: (entry: LeaseEntry) => boolean = () => true): LeaseFile[] {
    return this.entries()
      .filter(wanted)
      .flatMap((entry) => {
        const found = this.#read(entry.name)
        return found === 'absent' ? [] : [leaseFile(entry, found, typeof found === 'string' ? null : parseLease(found.text))]
      })
  }

  /** What one of them says, read with the event loop's turns in between; `null` if it went since it was listed. Throws as {@link list}. */
  async read(entry: LeaseEntry): Promise<LeaseFile | null> {
    const found = this.#read(entry.name)
    if (found === 'absent') return null
    return leaseFile(entry, found, typeof found === 'string' ? null : await parseLeaseInSlices(found.text))
  }

  /** The same, as far as names tell. Throws as {@link list}. */
  entries(): LeaseEntry[] {
    // Owners are asked for after their leases are listed. One that has a lease has been there before it, so that whoever is dead now had died with it; asked for first, one that
    // came in between would be missing, and its lease would be taken for a dead one's.
    const alive = new Map<string, boolean>()
    return this.names().flatMap((name) => {
      const [, kind, ownerId] = LEASE.exec(name) ?? []
      if (ownerId === undefined) return []
      const ownerAlive = alive.get(ownerId) ?? this.#isLocked(`owner-${ownerId}.json`)
      alive.set(ownerId, ownerAlive)
      return [{ name, ownerId, released: kind === 'released', left: kind === 'left', ownerAlive }]
    })
  }

  /** The owners. Throws as {@link list}. */
  owners(): OwnerFile[] {
    return this.names().flatMap((name) => {
      const id = OWNER.exec(name)?.[1]
      return id === undefined ? [] : [{ id, alive: this.#isLocked(name), holder: this.#holder(name) }]
    })
  }

  /** All names. */
  names(): string[] {
    try {
      return readdirSync(this.pathOf('.')).sort()
    } catch (error) {
      throw this.#unreadable(error)
    }
  }

  /** Closes it. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.native.closeFd(this.fd)
  }

  #holder(name: string): LeaseHolder | null {
    const read = this.#read(name)
    if (typeof read === 'string') return null
    try {
      return parseHolder(JSON.parse(read.text))
    } catch (error) {
      if (error instanceof SyntaxError || error instanceof NotALease) return null
      throw error
    }
  }

  /** Whether somebody holds the lock of a file. */
  #isLocked(name: string): boolean {
    const opened = this.#open(name)
    // An owner that cannot be asked is left in peace; where there is no file, there is none.
    if (typeof opened !== 'number') return opened === 'forbidden'
    try {
      // Shared, so that two who look at the same time do not take each other for the owner.
      return !this.native.lockFile(opened, 'shared')
    } finally {
      closeSync(opened)
    }
  }

  /** The text of a file, or why there is none; `no-file` also if it is longer than any that we write. */
  #read(name: string): Found {
    const opened = this.#open(name)
    if (typeof opened !== 'number') return opened
    try {
      const { size } = fstatSync(opened)
      if (size > MAX_LEASE_BYTES) return 'no-file'
      const buffer = Buffer.alloc(size)
      return { text: buffer.toString('utf8', 0, readSync(opened, buffer, 0, size, 0)) }
    } catch (error) {
      throw this.#unreadable(error)
    } finally {
      closeSync(opened)
    }
  }

  /**
   * Opens a regular file, without waiting and without following a link.
   * @throws {UprobeError} if that fails for a reason that says nothing of the file: taken for an answer, a lack of descriptors would make living owners dead
   */
  #open(name: string): Opened {
    let fd: number
    try {
      fd = openSync(this.pathOf(name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    } catch (error) {
      switch (errnoOf(error)) {
        case ENOENT:
          return 'absent'
        // A symbolic link; a socket.
        case ELOOP:
        case ENXIO:
          return 'no-file'
        case EACCES:
        case EPERM:
          return 'forbidden'
        default:
          throw this.#unreadable(error)
      }
    }
    if (fstatSync(fd).isFile()) return fd
    closeSync(fd)
    return 'no-file'
  }

  #unreadable(error: unknown): unknown {
    return isSystemCallError(error) ? leaseError(this.path, 'cannot be read', error, this.purpose) : error
  }
}

/** Makes the directory in the one it is to be in, which must be there. */
function make(native: Native, path: string): void {
  const parent = native.openDirectory(dirname(path))
  try {
    mkdirSync(`/proc/self/fd/${parent}/${basename(path)}`, 0o700)
  } catch (error) {
    if (!isSystemCallError(error) || error.code !== 'EEXIST') throw error
  } finally {
    native.closeFd(parent)
  }
}

/** What a directory is opened for: to claim counters, or to look who has, as `repair()`, `release()` and `counters()` do. */
type Purpose = 'claim' | 'look'

const REMEDIES: Record<Purpose, string> = {
  claim:
    'Nothing was written to the target. ' +
    "Give a directory of your own, with mode 0700 and no symbolic link on the way to it, with leaseDir; or use counter: 'kernel', which needs none.",
  look: 'Run as the user whose agents are meant, or name the directory that they use, which has mode 0700 and no symbolic link on the way to it, with leaseDir.',
}

/** Why leases cannot be kept or looked at, and what helps: `ERR_UPROBE_LEASE`, or `ERR_UPROBE_LIMIT` if that is the cause. */
export function leaseError(path: string, why: string, cause?: unknown, purpose: Purpose = 'claim'): UprobeError {
  const limit = limitError(cause, `The lease directory ${escapeForDisplay(path)} ${why}`)
  if (limit !== null) return limit
  const reason = isSystemCallError(cause) ? ` (${cause.code})` : ''
  return new UprobeError('ERR_UPROBE_LEASE', `The lease directory ${escapeForDisplay(path)} ${why}${reason}. ${REMEDIES[purpose]}`, {
    cause,
    errno: errnoOf(cause),
    path: escapeForDisplay(path),
  })
}
