/**
 * Processes that come later: those that map a file anew, and those that are born of known ones.
 *
 * Nothing is polled. The kernel writes down each executable mapping and each fork in a perf event's *side band*, which is what tells a profiler whose code it sampled. One
 * such event a CPU serves a whole tracer; the reader's thread drops what nobody asked for, and only the rest comes here.
 *
 * What the kernel writes of a file is not enough to know it: devices and inodes of overlayfs and btrfs are others than those of stat(2), so a file is let through by its inode
 * alone, or by its name, and then looked up in the process (maps.ts).
 */
import { readFileSync, realpathSync } from 'node:fs'
import { basename } from 'node:path'
import type { Ring } from '../delivery/ring.js'
import { ENODEV } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import type { Native, SidebandEvent } from '../native.js'
import { limitError } from '../shortage.js'
import { type FileIdentity, mapsFile } from './maps.js'
import { TargetProcess } from './process.js'

/**
 * Pages of each CPU's ring: some hundreds of program starts. Rings of unprivileged users count against kernel.perf_event_mlock_kb, of which this is a quarter
 * by default. What does not fit is lost, which is told.
 */
const RING_PAGES = 32

/** A file that is waited for. */
interface AwaitedFile {
  readonly identity: FileIdentity
  readonly path: string
}

/** Tells of processes that map a file anew, or are born of known ones. */
export class Newcomers {
  #known: readonly number[] = []
  /** The names under which the files may be mapped. */
  readonly names: readonly string[]

  private constructor(
    private readonly sidebands: Sidebands,
    readonly files: readonly AwaitedFile[],
    readonly onProcess: (pid: number, how: 'fork' | 'map') => void,
    readonly onLost: () => void,
  ) {
    this.names = files.flatMap(({ path }) => namesOf(path))
  }

  /**
   * Begins to wait. Processes that map a file before this returns are not told of; walk /proc after it.
   * @param onProcess - called with `map` for a process that maps one of the files executable, or may do so, also when it has done so before; and with `fork` for
   *   a new child of a process of {@link watchForksOf}, or of such a child, which may have ended or called exec since. Of one process in the order in which it happened, as
   *   far as it happened on one CPU.
   * @param onLost - called when there may have been more: walk /proc
   * @throws {UprobeError} `ERR_UPROBE_PERMISSION`, `ERR_UPROBE_LIMIT`
   */
  static start(
    native: Native,
    ring: Ring,
    files: ReadonlyArray<{ readonly identity: FileIdentity; readonly path: string }>,
    onProcess: (pid: number, how: 'fork' | 'map') => void,
    onLost: () => void,
  ): Newcomers {
    const sidebands = Sidebands.of(native, ring)
    const newcomers = new Newcomers(sidebands, files, onProcess, onLost)
    sidebands.add(newcomers)
    return newcomers
  }

  /** The processes of {@link watchForksOf}. */
  get known(): readonly number[] {
    return this.#known
  }

  /** Children of these processes, and of no others, are told of from now on; those of the last moments, too. */
  watchForksOf(pids: readonly number[]): void {
    this.#known = [...pids]
    this.sidebands.update()
  }

  /** Ends it: nothing is told after this. Idempotent. */
  close(): void {
    this.sidebands.remove(this)
  }
}

/** The side bands of all CPUs, for all that wait at one ring: opened with the first, closed with the last. */
class Sidebands {
  static readonly #ofRing = new WeakMap<Ring, Sidebands>()
  readonly #waiting = new Set<Newcomers>()
  /** By CPU. */
  readonly #watches = new Map<number, number>()
  /** What was told and is not yet looked at, oldest first. */
  readonly #queue: Array<{ readonly pid: number; readonly how: 'fork' | 'map' }> = []
  /** Of these, the processes that mapped something: how often does not matter. */
  readonly #mapped = new Set<number>()
  #lost = false
  #working = false

  private constructor(
    private readonly native: Native,
    private readonly ring: Ring,
  ) {}

  static of(native: Native, ring: Ring): Sidebands {
    let sidebands = Sidebands.#ofRing.get(ring)
    if (sidebands === undefined) {
      sidebands = new Sidebands(native, ring)
      Sidebands.#ofRing.set(ring, sidebands)
    }
    return sidebands
  }

  add(newcomers: Newcomers): void {
    if (this.#waiting.size === 0) this.#open()
    this.#waiting.add(newcomers)
    this.update()
  }

  remove(newcomers: Newcomers): void {
    if (!this.#waiting.delete(newcomers)) return
    this.update()
    if (this.#waiting.size === 0) this.#close()
  }

  /** Tells the reader what is waited for, by all together. */
  update(): void {
    const waiting = [...this.#waiting]
    const files = waiting.flatMap((newcomers) => newcomers.files)
    this.ring.reader.setSidebandFilter({
      inodes: BigUint64Array.from(new Set(files.map(({ identity }) => identity.inode))),
      names: [...new Set(waiting.flatMap(({ names }) => names))],
      pids: Int32Array.from(new Set(waiting.flatMap((newcomers) => newcomers.known))),
    })
  }

  #open(): void {
    try {
      this.#openOnline()
    } catch (error) {
      this.#close()
      throw limitError(error, 'New processes cannot be watched for') ?? refused(error)
    }
  }

  /** Opens a side band on each CPU that is online and has none. Returns whether there were any. */
  #openOnline(): boolean {
    const missing = onlineCpus().filter((cpu) => !this.#watches.has(cpu))
    for (const cpu of missing) this.#openOne(cpu)
    return missing.length > 0
  }

  #openOne(cpu: number): void {
    let fd: number
    try {
      fd = this.native.sidebandOpen(cpu)
    } catch (error) {
      // It went offline since the list was read.
      if (errnoOf(error) === ENODEV) return
      throw error
    }
    try {
      const watch = this.ring.watchSideband(fd, RING_PAGES, (event) => {
        if (event.event === 'offline') this.#watches.delete(cpu)
        this.#onEvent(event)
      })
      this.#watches.set(cpu, watch)
    } catch (error) {
      this.native.closeFd(fd)
      throw error
    }
  }

  #close(): void {
    for (const watch of this.#watches.values()) this.ring.unwatch(watch)
    this.#watches.clear()
    this.#queue.length = 0
    this.#mapped.clear()
    this.#lost = false
  }

  #onEvent(event: SidebandEvent): void {
    switch (event.event) {
      case 'map':
        if (this.#mapped.has(event.pid)) return
        this.#mapped.add(event.pid)
        this.#queue.push({ pid: event.pid, how: 'map' })
        break
      case 'fork':
        this.#queue.push({ pid: event.pid, how: 'fork' })
        break
      default:
        // Nothing runs any more on a CPU that went offline, but what it told last may be gone with it.
        this.#lost = true
    }
    if (!this.#working) void this.#work()
  }

  /** Looks at one process after the other. Does not reject. */
  async #work(): Promise<void> {
    this.#working = true
    // What comes in one batch of events is looked at together.
    await Promise.resolve()
    this.#lost ||= this.#cameOnline()
    for (;;) {
      if (this.#lost) {
        this.#lost = false
        for (const newcomers of [...this.#waiting]) newcomers.onLost()
      }
      const next = this.#queue.shift()
      if (next === undefined) break
      if (next.how === 'fork') {
        for (const newcomers of [...this.#waiting]) if (newcomers.known.length > 0) newcomers.onProcess(next.pid, 'fork')
        continue
      }
      // From here on a mapping is a new one, which this look may miss.
      this.#mapped.delete(next.pid)
      for (const newcomers of await this.#mappers(next.pid)) if (this.#waiting.has(newcomers)) newcomers.onProcess(next.pid, 'map')
    }
    this.#working = false
  }

  /**
   * Listens to CPUs that have come online since, of which nobody tells: it shows with the next event of another. Returns whether there were any; what ran on them until now was missed.
   */
  #cameOnline(): boolean {
    try {
      return this.#openOnline()
    } catch (error) {
      if (!isSystemCallError(error)) throw error
      // Tried again with the next event; until then everybody looks for what is missed.
      return true
    }
  }

  /** For whom a process is of interest by what it maps. */
  async #mappers(pid: number): Promise<Newcomers[]> {
    const waiting = [...this.#waiting]
    let target: TargetProcess | null = null
    try {
      target = TargetProcess.open(this.native, pid)
      const code = (await target.maps()).filter(({ executable }) => executable)
      const { procDirectory } = target
      return waiting.filter(({ files }) => files.some(({ identity }) => mapsFile(procDirectory, code, identity) !== false))
    } catch (error) {
      if (error instanceof UprobeError && error.code === 'ERR_UPROBE_TARGET_GONE') return []
      // Whoever is told will meet the same failure, and can say what it means for him.
      return waiting
    } finally {
      target?.close()
    }
  }
}

/** The last components under which a file may be mapped: its name, and that of what a symbolic link leads to. */
function namesOf(path: string): string[] {
  try {
    return [basename(path), basename(realpathSync(path))]
  } catch (error) {
    // It may have no name here any more, or never had.
    if (isSystemCallError(error)) return [basename(path)]
    throw error
  }
}

/** The CPUs that are online, from a list such as `0-3,8`. */
function onlineCpus(): number[] {
  return readFileSync('/sys/devices/system/cpu/online', 'utf8')
    .trim()
    .split(',')
    .flatMap((range) => {
      const [first = Number.NaN, last = first] = range.split('-').map(Number)
      return Array.from({ length: last - first + 1 }, (_, index) => first + index)
    })
}

function refused(error: unknown): unknown {
  if (!isSystemCallError(error)) return error
  return new UprobeError(
    'ERR_UPROBE_PERMISSION',
    `New processes cannot be watched for: the kernel refused a perf event of a CPU (${error.code}). Run with CAP_PERFMON, or as root; ` +
      'if it is the size of its ring, raise kernel.perf_event_mlock_kb.',
    { cause: error, errno: errnoOf(error), syscall: error.syscall },
  )
}
