/**
 * Waiting for the kernel while there is something else to do.
 *
 * A registration takes a lock that forks of processes take, too, and these go by a fast path that has to be closed first, for which the kernel waits a grace period of RCU, 6 ms and more (`percpu_down_write(&dup_mmap_sem)` in
 * register_for_each_vma, kernel/events/uprobes.c; rcu_sync_enter, kernel/rcu/sync.c). It stays closed for a grace period or two after the last registration, so that those that follow do not wait. An attach that has found its sites spends
 * some milliseconds with them before it registers them. So it first registers something else, on another thread: a probe in a file that nobody maps, which is taken out at once. No process notices.
 *
 * The lock is one of the whole machine, and while a large process forks, whoever wants to register keeps all other forks waiting with it. So this is done only where a registration follows in some milliseconds, which will meet the same
 * fork; not for a name that is looked for and is not there.
 */
import { EINVAL } from '../errno.js'
import { errnoOf } from '../errors.js'
import type { Native } from '../native.js'

/** Where the kernel has no link that could be registered so lightly. */
const withoutLinks = new WeakSet<Native>()

/** Begins to wait for what a registration will wait for. Resolves when that is over, and nothing of it is left; never rejects, since the registration itself will tell what is in its way. */
export async function anticipateRegistration(native: Native): Promise<void> {
  if (withoutLinks.has(native)) return
  try {
    await native.bpfAnticipateUprobes()
  } catch (error) {
    if (errnoOf(error) === EINVAL) withoutLinks.add(native)
  }
}
