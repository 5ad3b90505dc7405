/**
 * Watching the processes of a probe: their end, and their becoming another program.
 *
 * A pidfd tells the end of the process, its last thread included. A task watch on a living thread tells exec, and the end of that thread, on which another has to stand
 * in: uprobe filters go by a thread's address space.
 */
import type { Ring } from '../delivery/ring.js'
import type { Native, TargetEvent } from '../native.js'
import type { TargetProcess } from './process.js'
import { TaskEvents } from './task-events.js'

/** Who is told. What these reject with is handled by the caller. */
export interface WatchesHost {
  /** The process has exited, or has called exec. */
  onEnd(target: TargetProcess, reason: 'exit' | 'exec'): void
  /** The thread that stood for the process has exited, and another stands for it now. */
  onThreadChange(target: TargetProcess): void
  onError(error: unknown): void
}

/** What is watched of one process: the numbers of its watches, and the event that is being opened for one. */
interface Watched {
  readonly pidfd: number
  task: number | null
  opening: Promise<number | null> | null
}

/** The watches of one probe. */
export class TargetWatches {
  readonly #watches = new Map<TargetProcess, Watched>()

  /** @param tasks - events that may have been opened before */
  constructor(
    private readonly native: Native,
    private readonly ring: Ring,
    private readonly host: WatchesHost,
    private readonly tasks: TaskEvents = new TaskEvents(native),
  ) {}

  /**
   * Begins to watch a process.
   * @throws {UprobeError} `ERR_UPROBE_TARGET_GONE`
   */
  async add(target: TargetProcess): Promise<void> {
    const pidfd = this.#give(target.openPidfd(), 'pidfd', () => this.host.onEnd(target, 'exit'))
    const watched: Watched = { pidfd, task: null, opening: null }
    this.#watches.set(target, watched)
    try {
      await this.#watchTask(target, watched)
    } catch (error) {
      await this.remove(target)
      throw error
    }
  }

  /** Ends the watching of a process, at once; when it resolves, what was being opened for it is closed, too. Idempotent. */
  async remove(target: TargetProcess): Promise<void> {
    const watched = this.#watches.get(target)
    if (watched !== undefined) this.ring.unwatch(watched.pidfd)
    if (watched?.task != null) this.ring.unwatch(watched.task)
    this.#watches.delete(target)
    await this.tasks.drop(target)
    // Whoever waits for this one closes it, since it is not wanted any more.
    await watched?.opening?.catch(() => null)
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
  async #watchTask(target: TargetProcess, watched: Watched): Promise<void> {
    if (watched.task !== null) this.ring.unwatch(watched.task)
    watched.task = null
    watched.opening = this.tasks.take(target)
    const fd = await watched.opening
    watched.opening = null
    if (fd === null) return
    if (this.#watches.get(target) === watched) watched.task = this.#give(fd, 'task', (event) => this.#onTask(target, watched, event))
    else this.native.closeFd(fd)
  }

  #onTask(target: TargetProcess, watched: Watched, event: TargetEvent['event']): void {
    this.#follow(target, watched, event).catch((error: unknown) => this.host.onError(error))
  }

  /** The watched thread called exec or ended: the process may have another program now, or another thread must stand in. */
  async #follow(target: TargetProcess, watched: Watched, event: TargetEvent['event']): Promise<void> {
    if (this.#watches.get(target) !== watched || !target.isAlive()) return
    const before = target.tid
    target.refreshThread()
    if (event === 'hangup') {
      // The watch ended with its thread. Whether exec was called is asked when the new one is open, so that no exec falls between the two.
      await this.#watchTask(target, watched)
      if (this.#watches.get(target) !== watched) return
    }
    const replaced = target.readable ? target.addressSpaceGone() : event === 'exec'
    if (!replaced) {
      if (target.tid !== before) this.host.onThreadChange(target)
    } else if (target.isAlive()) {
      this.host.onEnd(target, 'exec')
    }
  }
}
