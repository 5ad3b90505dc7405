/**
 * Watching the processes of a probe: their end, and their becoming another program.
 *
 * A pidfd tells the end of the process, its last thread included. A task watch on a living thread tells exec, and the end of that thread, on which another has to stand
 * in: uprobe filters go by a thread's address space.
 */
import type { Ring } from '../delivery/ring.js'
import { ESRCH } from '../errno.js'
import { errnoOf } from '../errors.js'
import type { Native, TargetEvent } from '../native.js'
import type { TargetProcess } from './process.js'

/** Who is told. What these reject with is handled by the caller. */
export interface WatchesHost {
  /** The process has exited, or has called exec. */
  onEnd(target: TargetProcess, reason: 'exit' | 'exec'): void
  /** The thread that stood for the process has exited, and another stands for it now. */
  onThreadChange(target: TargetProcess): void
  onError(error: unknown): void
}

/** The watches of one probe. */
export class TargetWatches {
  readonly #watches = new Map<TargetProcess, { pidfd: number; task: number | null }>()

  constructor(
    private readonly native: Native,
    private readonly ring: Ring,
    private readonly host: WatchesHost,
  ) {}

  /**
   * Begins to watch a process.
   * @throws {UprobeError} `ERR_UPROBE_TARGET_GONE`
   */
  add(target: TargetProcess): void {
    const pidfd = this.#give(target.openPidfd(), 'pidfd', () => this.host.onEnd(target, 'exit'))
    this.#watches.set(target, { pidfd, task: null })
    try {
      this.#watchTask(target)
    } catch (error) {
      this.remove(target)
      throw error
    }
  }

  /** Ends the watching of a process. Idempotent. */
  remove(target: TargetProcess): void {
    const { pidfd, task } = this.#watches.get(target) ?? {}
    if (pidfd !== undefined) this.ring.unwatch(pidfd)
    if (task != null) this.ring.unwatch(task)
    this.#watches.delete(target)
  }

  /** Hands an fd to the reader, to be watched. */
  #give(fd: number, kind: 'pidfd' | 'task', callback: (event: TargetEvent['event']) => void): number {
    try {
      return this.ring.watch(fd, kind, callback)
    } catch (error) {
      this.native.closeFd(fd)
      throw error
    }
  }

  /** Watches a living thread of the process, if it has one; otherwise the pidfd will tell. */
  #watchTask(target: TargetProcess): void {
    const watches = this.#watches.get(target)
    if (watches === undefined) return
    if (watches.task !== null) this.ring.unwatch(watches.task)
    watches.task = null
    do {
      let fd: number
      try {
        fd = this.native.taskWatchOpen(target.tid)
      } catch (error) {
        // The thread ended after it was chosen.
        if (errnoOf(error) === ESRCH) continue
        throw error
      }
      watches.task = this.#give(fd, 'task', (event) => this.#onTask(target, event))
      return
    } while (target.refreshThread())
  }

  /** The watched thread called exec or ended: the process may have another program now, or another thread must stand in. */
  #onTask(target: TargetProcess, event: TargetEvent['event']): void {
    try {
      if (!this.#watches.has(target) || !target.isAlive()) return
      const before = target.tid
      target.refreshThread()
      // The watch ended with its thread. Whether exec was called is asked when the new one is open, so that no exec falls between the two.
      if (event === 'hangup') this.#watchTask(target)
      const replaced = target.readable ? target.addressSpaceGone() : event === 'exec'
      if (!replaced) {
        if (target.tid !== before) this.host.onThreadChange(target)
      } else if (target.isAlive()) {
        this.host.onEnd(target, 'exec')
      }
    } catch (error) {
      this.host.onError(error)
    }
  }
}
