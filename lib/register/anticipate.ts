/**
 * Waiting for the kernel while there is something else to do.
 *
 * A registration takes a lock that forks of processes take, too, and these go by a fast path that has to be closed first, for which the kernel waits a grace period of RCU, 6 ms and more (`percpu_down_write(&dup_mmap_sem)` in
 * register_for_each_vma, kernel/events/uprobes.c; rcu_sync_enter, kernel/rcu/sync.c). It stays closed for a grace period or two after the last registration, so that those that follow do not wait. An attach that has found its sites spends
 * some milliseconds with them before it registers them. So it first registers something else, on another thread: a probe in a file that nobody maps, which is taken out at once.
 *
 * The price is that the lock is taken twice more, for a moment. It is one of the whole machine, and whoever wants to register keeps all forks waiting while a large process forks. So it is done only where a registration follows in some
 * milliseconds, which would meet the same fork, and not for a name that is looked for and is not there; and once at a time for all tracers of a process.
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

/**
 * Begins to wait for what a registration will wait for. Resolves when that is over; never rejects, since the registration itself will tell what is in its way.
 * @param kernelRelease - as `os.release()` tells it
 */
export async function anticipateRegistration(native: Native, kernelRelease: string): Promise<void> {
  if (withoutLinks.has(native) || isAmong(kernelRelease, LINKS_ARE_FRAGILE)) return
  try {
    await native.bpfAnticipateUprobes()
  } catch (error) {
    if (errnoOf(error) === EINVAL) withoutLinks.add(native)
  }
}
