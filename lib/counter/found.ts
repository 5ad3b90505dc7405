/**
 * The processes that a probe for every process has found: held as long as they live, and told of when they end.
 */
import type { Ring } from '../delivery/ring.js'
import { ENOSYS, EPERM, ESRCH } from '../errno.js'
import { errnoOf } from '../errors.js'
import type { Native } from '../native.js'
import type { TargetProcess } from '../target/process.js'
import { TargetWatches } from '../target/watches.js'

interface Found {
  readonly target: TargetProcess
  onEnd(): void
  /** Processes that were met and use the same memory: children of vfork, before they call exec, and their parents. */
  readonly sharers: Set<number>
}

/** See the module's comment. */
export class FoundProcesses {
  readonly #found = new Map<number, Found>()
  readonly #watches: TargetWatches

  /** @param onError - told of what fails while an end is looked into */
  constructor(native: Native, ring: Ring, onError: (error: unknown) => void) {
    this.#watches = new TargetWatches(native, ring, {
      onEnd: (target) => {
        if (this.has(target)) this.#found.get(target.pid)?.onEnd()
      },
      // Memory is reached through descriptors, whichever thread they were opened by.
      onThreadChange: () => undefined,
      onError,
    })
  }

  /** How many there are. */
  get size(): number {
    return this.#found.size
  }

  /** Those whose children are of interest. */
  get pids(): number[] {
    return [...this.#found].flatMap(([pid, { sharers }]) => [pid, ...sharers])
  }

  /** The process of that number, which may have ended since or have become another program. */
  get(pid: number): TargetProcess | undefined {
    return this.#found.get(pid)?.target
  }

  /** Whether it is one of these. */
  has(target: TargetProcess): boolean {
    return this.get(target.pid) === target
  }

  /**
   * Takes a process in; it is closed with the others.
   * @param onEnd - it has exited, or called exec
   * @throws {UprobeError} `ERR_UPROBE_TARGET_GONE`; it is not taken in then, and still the caller's to close
   */
  async add(target: TargetProcess, onEnd: () => void): Promise<void> {
    // Before the watch, which may tell of something at once.
    this.#found.set(target.pid, { target, onEnd, sharers: new Set() })
    try {
      await this.#watches.add(target)
      // Of what was before it, the watch does not tell.
      if (target.addressSpaceGone()) throw target.goneError()
    } catch (error) {
      if (this.has(target)) this.#found.delete(target.pid)
      await this.#watches.remove(target)
      throw error
    }
  }

  /**
   * Whether a process uses the memory of one of these, so that there is nothing of its own to claim. Asked before anything of it is opened: it may get memory of its own at any
   * time, by exec, but never comes to share.
   */
  sharesMemory(native: Native, pid: number): boolean {
    for (const [other, { sharers }] of this.#found) {
      if (other === pid || !sharesMemory(native, pid, other)) continue
      sharers.add(pid)
      return true
    }
    return false
  }

  /** Lets a process go. Returns those that were left out because of it, and are to be looked at again; `null` if it was not there. */
  async remove(pid: number): Promise<readonly number[] | null> {
    const found = this.#found.get(pid)
    if (found === undefined) return null
    this.#found.delete(pid)
    await this.#watches.remove(found.target)
    found.target.close()
    return [...found.sharers]
  }

  /** Lets all go. */
  async clear(): Promise<void> {
    for (const pid of [...this.#found.keys()]) await this.remove(pid)
  }
}

/** Of two processes one of which is gone, it is not so; nor where the kernel does not say (it was built without kcmp): to claim nothing there would be worse. */
function sharesMemory(native: Native, pid: number, other: number): boolean {
  try {
    return native.sameAddressSpace(pid, other)
  } catch (error) {
    if ([ESRCH, ENOSYS, EPERM].includes(errnoOf(error) ?? 0)) return false
    throw error
  }
}
