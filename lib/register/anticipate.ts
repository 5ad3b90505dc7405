/**
 * Waiting for the kernel while there is something else to do.
 *
 * A registration takes a lock that forks of processes take, too, and these go by a fast path that has to be closed first, for which the kernel waits a grace period of RCU, 6 ms and more (`percpu_down_write(&dup_mmap_sem)` in
 * register_for_each_vma, kernel/events/uprobes.c; rcu_sync_enter, kernel/rcu/sync.c). It stays closed for a grace period or two after the last registration, so that those that follow do not wait. An attach reads the process, the file
 * and its probes, and makes programs, before it registers anything, which takes about as long. So it first registers something else, on another thread: a probe in a file that nobody maps, which is taken out at once.
 *
 * The price is that the lock is taken twice more, for a moment, and again twice if the search took long. It is one of the whole machine, and whoever wants to register keeps all forks waiting while a large process forks. So it is done only
 * where a registration probably follows in some milliseconds, which would meet the same fork: when the file is found that is named, or the processes, and their files; but after a search that found no sites in them the same search
 * waits until there are. Who asks again and again for something that is not there pays once. And it is done once at a time for all tracers of a process.
 */
import { EINVAL } from '../errno.js'
import { errnoOf } from '../errors.js'
import { isAmong, type Releases } from '../kernel-release.js'
import type { Native } from '../native.js'

/** Where the kernel has no link that could be registered so lightly. */
const withoutLinks = new WeakSet<Native>()

/** Where a link that fails for want of memory or of a descriptor leaves the kernel with memory that it has freed (CVE-2024-47675): not for something that need not be. */
const LINKS_ARE_FRAGILE: readonly Releases[] = [
  [
    [6, 6, 0],
    [6, 6, 54],
  ],
  [
    [6, 7, 0],
    [6, 10, 13],
  ],
  [
    [6, 11, 0],
    [6, 11, 2],
  ],
]

/** What is under way, for all who want it at that time. */
const underWay = new WeakMap<Native, Promise<void>>()

/** What was looked for and not found since, as far as is known, with when that was; the longest ago first. */
const missing = new Map<string, number>()
/** While so many are known, nothing else begins early. */
const MOST_MISSING = 256
const FORGOTTEN_AFTER_MS = 60_000

/** The fast path stays closed for a grace period at least when the lock was given back. */
const STAYS_CLOSED_MS = 5

/** What one attach does of it. */
export class Anticipation {
  #begun: Promise<void> | null = null
  #overAt: number | null = null

  /**
   * @param search - what is looked for, and where: equal for searches that find the same
   * @param kernelRelease - as `os.release()` tells it
   */
  constructor(
    private readonly native: Native,
    private readonly search: string,
    private readonly kernelRelease: string,
  ) {}

  /** To be called when it is known in which files to look. While one attach looks for something, no other begins early that looks for the same. */
  look(): void {
    const now = performance.now()
    for (const [search, at] of missing) {
      if (now - at < FORGOTTEN_AFTER_MS) break
      missing.delete(search)
    }
    const isMissing = missing.delete(this.search)
    if (missing.size >= MOST_MISSING) return
    missing.set(this.search, now)
    if (!isMissing) this.#begun = this.#ask()
  }

  /** To be called when it is known that there are sites. If the search took so long that the wait was for nothing, it begins anew. */
  found(): void {
    missing.delete(this.search)
    const isFresh = this.#overAt === null || performance.now() - this.#overAt < STAYS_CLOSED_MS
    if (this.#begun === null || !isFresh) this.#begun = this.#ask()
  }

  /** Resolves when what was registered is in, or was refused; a thread of its own takes it out a moment later. Never rejects, since the registration that follows will tell what is in its way. */
  async over(): Promise<void> {
    await this.#begun
  }

  async #ask(): Promise<void> {
    const { native } = this
    this.#overAt = null
    if (withoutLinks.has(native) || isAmong(this.kernelRelease, LINKS_ARE_FRAGILE)) return
    const asked = underWay.get(native) ?? native.bpfAnticipateUprobes()
    underWay.set(native, asked)
    try {
      await asked
    } catch (error) {
      if (errnoOf(error) === EINVAL) withoutLinks.add(native)
    }
    if (underWay.get(native) === asked) underWay.delete(native)
    this.#overAt = performance.now()
  }
}
