/**
 * A probe: what `tracer.attach` returns, and what a program holds on to.
 *
 * It owns the registrations of one specification, delivers their hits, counts what happened to each, and takes everything back when it is detached, when its
 * processes are gone, or when its signal is aborted. Whatever of these comes first, the end is one and the same: close the registrations (the kernel
 * waits until no program runs any more), drain the ring, then read the counts; so hits = filtered + delivered + lost holds exactly.
 */
import { EventEmitter } from 'node:events'
import type { Hit, HitDecoder } from './capture/hit.js'
import type { SiteTarget } from './counter/verify.js'
import { HitBatch } from './delivery/batch.js'
import { Consumer, callGuarded } from './delivery/consumer.js'
import type { Ring } from './delivery/ring.js'
import { ESRCH } from './errno.js'
import { errnoOf, UprobeError } from './errors.js'
import type { Logger } from './log.js'
import type { Native, WatchEvent } from './native.js'
import type { Attachment } from './register/attachment.js'
import type { CapturePrograms } from './register/programs.js'
import { type KernelCounts, readCounts } from './register/stats.js'
import type { TargetFile } from './target/file.js'
import type { TargetProcess } from './target/process.js'

/**
 * What a probe is doing.
 * - `attached`: its sites are armed and hits are delivered;
 * - `paused`: its registrations are out of the kernel until `resume()`;
 * - `detached`: it was detached and holds nothing;
 * - `target-exited`: all its processes exited or called exec, and it holds nothing.
 */
export type ProbeState = 'attached' | 'paused' | 'detached' | 'target-exited'

/** A `'state'` event. */
export interface ProbeStateChange {
  /** The state of the whole probe after the change. */
  readonly state: ProbeState
  /**
   * What happened: `exit` and `exec` end the probe's part in process `pid`; `leader-exit` means that the leader thread of `pid` exited and the probe was
   * moved to a living one; the others are what was asked of the probe.
   */
  readonly reason: 'pause' | 'resume' | 'detach' | 'exit' | 'exec' | 'leader-exit'
  /** The process, where the change is about one. */
  readonly pid?: number
  /** Whether hits may have been missed, uncounted, in the course of the change. */
  readonly mayHaveMissed: boolean
}

/** One instruction of one file that a probe resolves to. */
export interface ProbeSite {
  /** Resolved name without the path, as `usdt:postgresql:query__start` or `uprobe:malloc`. */
  readonly probe: string
  /** The file, as the target knows it. */
  readonly path: string
  /** Offset of the instruction in the file. */
  readonly fileOffset: bigint
  /** Offset of the counter in the file; `null` if the probe has none. */
  readonly refCtrOffset: bigint | null
  /** Operands as the note stores them; `null` for functions. */
  readonly args: string | null
  /** The processes in which the site was looked at after attaching. */
  readonly targets: readonly SiteTarget[]
}

/** Counts of hits. hits = filtered + delivered + lost holds exactly once the probe is detached; before, some are on their way. */
export interface ProbeStats {
  /** Executions of the sites while attached and not paused, counted in the kernel. */
  readonly hits: number
  /** Hits that the filter rejected, in the kernel. */
  readonly filtered: number
  /** Hits handed to listeners or to the queue of the iterator; of a probe that only counts, all that were not filtered. */
  readonly delivered: number
  /** All others: `lostRing` + `lostQueue`, and after the end whatever else is missing. */
  readonly lost: number
  /** Hits for which the kernel's ring had no room: JavaScript did not keep up. */
  readonly lostRing: number
  /** Hits for which the queue of the iterator had no room. */
  readonly lostQueue: number
}

/** Counts of one name in one file. */
export interface NamedStats extends ProbeStats {
  readonly probe: string
  readonly path: string
}

/** Events of a {@link Probe}, and what their listeners get. */
export interface ProbeEvents {
  /** One hit. */
  hit: [hit: Hit]
  /** The hits that one wake-up delivers. */
  batch: [batch: HitBatch]
  /** The state changed, or a process went away. */
  state: [change: ProbeStateChange]
  /** Something failed in the background; the probe goes on as far as it can. */
  error: [error: Error]
}

/** What every EventEmitter emits before it adds a listener. */
interface NewListenerEvent {
  newListener: [event: string | symbol]
}

/** @internal What a probe is made of. */
export interface ProbeParts {
  readonly native: Native
  readonly ring: Ring
  readonly probeId: number
  readonly attachment: Attachment
  readonly programs: CapturePrograms
  readonly statsFd: number
  readonly files: readonly TargetFile[]
  readonly processes: readonly TargetProcess[]
  /** By slot; `targets` are filled in by {@link Probe.start}. */
  readonly sites: readonly ProbeSite[]
  readonly warnings: readonly string[]
  readonly decoder: HitDecoder
  readonly countOnly: boolean
  readonly queueLimit: number
  readonly log: Logger
  readonly onEnded: () => void
}

/** Bytes of batches that may wait for an iterator, whatever their number of hits. */
const QUEUE_BYTES = 64 * 1024 * 1024

/** An attached probe; see the module's comment. Made by `tracer.attach`. */
export class Probe extends EventEmitter<ProbeEvents & NewListenerEvent> implements AsyncIterable<Hit> {
  readonly #parts: ProbeParts
  readonly #consumer: Consumer
  readonly #delivered: Float64Array
  readonly #lostQueue: Float64Array
  readonly #watches = new Map<TargetProcess, { pidfd: number; task: number | null }>()
  readonly #targets: Set<TargetProcess>
  readonly #abort = new AbortController()
  #sites: readonly (ProbeSite | null)[]
  #finalCounts: readonly KernelCounts[] | null = null
  #state: ProbeState = 'attached'
  #work: Promise<unknown> = Promise.resolve()
  #ending: Promise<void> | null = null

  /** @internal */
  constructor(parts: ProbeParts) {
    super()
    this.#parts = parts
    this.#targets = new Set(parts.processes)
    this.#sites = parts.sites
    this.#delivered = new Float64Array(parts.sites.length)
    this.#lostQueue = new Float64Array(parts.sites.length)
    this.#consumer = new Consumer(
      {
        emitBatch: (batch) => this.#emitBatch(batch),
        hasListeners: () => this.listenerCount('hit') + this.listenerCount('batch') > 0,
        ref: () => parts.ring.ref(),
        unref: () => parts.ring.unref(),
        abandon: () => this.detach(),
      },
      { hits: parts.queueLimit, bytes: QUEUE_BYTES },
    )
    this.on('newListener', (event) => this.#onNewListener(event))
    parts.ring.addSink(parts.probeId, { receive: (buffer, offsets) => this.#receive(buffer, offsets) })
  }

  /** The sites, with the processes in which they were looked at. */
  get sites(): readonly ProbeSite[] {
    return this.#sites.filter((site) => site !== null)
  }

  /** What was not as asked for and did not make attaching fail, as sentences. They are logged too. */
  get warnings(): readonly string[] {
    return this.#parts.warnings
  }

  /** What the probe is doing. */
  get state(): ProbeState {
    return this.#state
  }

  /** The counts of all sites together. While attached they are a moment old. */
  stats(): ProbeStats {
    return this.#sum(this.#kernelCounts(), this.#parts.sites.keys())
  }

  /** The counts by name and file, in the order of the sites. */
  statsByName(): NamedStats[] {
    const slotsByName = new Map<string, number[]>()
    this.#sites.forEach((site, slot) => {
      if (site === null) return
      const key = `${site.probe}\0${site.path}`
      const known = slotsByName.get(key)
      if (known === undefined) slotsByName.set(key, [slot])
      else known.push(slot)
    })
    const counts = this.#kernelCounts()
    return [...slotsByName].map(([key, slots]) => {
      const [probe = '', path = ''] = key.split('\0')
      return { probe, path, ...this.#sum(counts, slots) }
    })
  }

  /**
   * Takes the registrations out of the kernel until `resume()`: the sites cost the target nothing, and a counter goes down again. What was hit before is
   * delivered. Does nothing if the probe is paused.
   * @throws {UprobeError} `ERR_UPROBE_CLOSED` after the end
   */
  pause(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#state === 'paused') return
      this.#throwIfEnded()
      await this.#parts.attachment.unregister()
      await this.#parts.ring.drain()
      this.#change('paused', { reason: 'pause', mayHaveMissed: false })
    })
  }

  /**
   * Registers the sites again. Does nothing if the probe is not paused.
   * @throws {UprobeError} as `tracer.attach`, when the kernel refuses; the probe stays paused then
   */
  resume(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#state === 'attached') return
      this.#throwIfEnded()
      const failures = await this.#parts.attachment.register(this.#abort.signal)
      const [first] = failures
      if (first !== undefined) {
        await this.#parts.attachment.unregister()
        throw first.error
      }
      this.#change('attached', { reason: 'resume', mayHaveMissed: false })
    })
  }

  /** Detaches: nothing is left in the target or in this process, and the counts are final when it resolves. Idempotent. */
  detach(): Promise<void> {
    return this.#end('detached', 'detach')
  }

  /** Detaches; for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.detach()
  }

  /**
   * Iterates the hits, in the order in which the kernel recorded them. Leaving the loop detaches the probe. While the loop waits for a hit the process is kept
   * alive; otherwise a probe does not keep it alive.
   * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` if there are listeners, or another iterator
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<Hit> {
    return this.#consumer.iterate()
  }

  /** @internal All is armed: takes note of what was found, and of the slots whose sites were left out. */
  start(leftOut: ReadonlySet<number>, targets: ReadonlyMap<number, readonly SiteTarget[]>): void {
    this.#sites = this.#parts.sites.map((site, slot) => (leftOut.has(slot) ? null : { ...site, targets: targets.get(slot) ?? [] }))
  }

  /** @internal The site of a slot, also while the probe is being armed. */
  siteOfSlot(slot: number): ProbeSite {
    const site = this.#sites[slot] ?? this.#parts.sites[slot]
    if (site === undefined) throw new RangeError(`there is no slot ${slot}`)
    return site
  }

  /** @internal Detaches when the signal is aborted. */
  detachOnAbort(signal: AbortSignal): void {
    const detach = (): void => this.#background(() => this.detach())
    signal.addEventListener('abort', detach, { once: true })
    // A signal may outlive many probes, and must not keep them.
    this.#abort.signal.addEventListener('abort', () => signal.removeEventListener('abort', detach), { once: true })
    if (signal.aborted) detach()
  }

  /** @internal Watches the processes, so that their end is noticed. */
  watchTargets(): void {
    for (const target of this.#targets) this.#watch(target)
  }

  #watch(target: TargetProcess): void {
    const pidfd = this.#give(target.openPidfd(), 'pidfd', () => this.#background(() => this.#endTarget(target, 'exit')))
    this.#watches.set(target, { pidfd, task: null })
    this.#watchTask(target)
  }

  /** Hands an fd to the reader, to be watched. */
  #give(fd: number, kind: 'pidfd' | 'task', callback: (event: WatchEvent['event']) => void): number {
    try {
      return this.#parts.ring.watch(fd, kind, callback)
    } catch (error) {
      this.#parts.native.closeFd(fd)
      throw error
    }
  }

  /** Watches a living thread of the process, if it has one; otherwise the pidfd will tell. */
  #watchTask(target: TargetProcess): void {
    const { ring, native } = this.#parts
    const watches = this.#watches.get(target)
    if (watches === undefined) return
    if (watches.task !== null) ring.unwatch(watches.task)
    watches.task = null
    do {
      let fd: number
      try {
        fd = native.taskWatchOpen(target.tid)
      } catch (error) {
        // The thread ended after it was chosen.
        if (errnoOf(error) === ESRCH) continue
        throw error
      }
      watches.task = this.#give(fd, 'task', (event) => this.#background(() => this.#onTask(target, event)))
      return
    } while (target.refreshThread())
  }

  #unwatch(target: TargetProcess): void {
    const { pidfd, task } = this.#watches.get(target) ?? {}
    if (pidfd !== undefined) this.#parts.ring.unwatch(pidfd)
    if (task != null) this.#parts.ring.unwatch(task)
    this.#watches.delete(target)
  }

  /** The watched thread called exec or ended: the process may have another program now, or another thread must stand in. */
  async #onTask(target: TargetProcess, event: WatchEvent['event']): Promise<void> {
    if (!this.#targets.has(target) || this.#ending !== null || !target.isAlive()) return
    const before = target.tid
    target.refreshThread()
    // The watch ended with its thread. Whether exec was called is asked when the new one is open, so that no exec falls between the two.
    if (event === 'hangup') this.#watchTask(target)
    const replaced = target.readable ? target.addressSpaceGone() : event === 'exec'
    if (replaced) return target.isAlive() ? this.#endTarget(target, 'exec') : undefined
    if (target.tid === before) return
    const { attachment, log } = this.#parts
    await this.#inTurn(async () => {
      if (this.#ending !== null) return
      let moved = false
      try {
        moved = this.#state === 'attached' && (await attachment.moveToLivingThread(target, this.#abort.signal))
      } catch (error) {
        // The end of the probe or of the process, which was quicker, is told by itself.
        if (this.#abort.signal.aborted || !target.isAlive()) return
        throw error
      }
      if (moved) log.warn({ pid: target.pid }, 'the leader thread exited; hits until the probe was moved to another thread may be missing')
      this.#change(this.#state, { reason: 'leader-exit', pid: target.pid, mayHaveMissed: moved })
    })
  }

  async #endTarget(target: TargetProcess, reason: 'exit' | 'exec'): Promise<void> {
    if (!this.#targets.delete(target)) return
    this.#unwatch(target)
    try {
      if (this.#targets.size === 0) {
        await this.#end('target-exited', reason, target.pid)
      } else {
        await this.#inTurn(async () => {
          if (this.#ending !== null) return
          await this.#parts.attachment.endTarget(target)
          this.#change(this.#state, { reason, pid: target.pid, mayHaveMissed: false })
        })
      }
    } finally {
      target.close()
    }
  }

  #end(state: 'detached' | 'target-exited', reason: 'detach' | 'exit' | 'exec', pid?: number): Promise<void> {
    if (this.#ending === null) {
      this.#abort.abort(new UprobeError('ERR_UPROBE_CLOSED', 'The probe was detached meanwhile.'))
      // A pause or resume that is under way must not register anything behind our back.
      const before = this.#work
      this.#ending = (async () => {
        await Promise.allSettled([before])
        try {
          await this.#tearDown()
        } finally {
          // Whoever waits for hits learns of the end last, and then sees the final state and counts.
          this.#change(state, { reason, mayHaveMissed: false, ...(pid === undefined ? {} : { pid }) })
          this.#consumer.end()
        }
      })()
    }
    return this.#ending
  }

  async #tearDown(): Promise<void> {
    const { native, ring, probeId, attachment, programs, statsFd, files, onEnded } = this.#parts
    try {
      try {
        await attachment.unregister()
        await ring.drain()
      } finally {
        // Also after a failure: the map is about to be closed, and its number to be given to somebody else.
        this.#finalCounts = readCounts(native, statsFd, 0, this.#parts.sites.length)
      }
    } finally {
      ring.removeSink(probeId)
      for (const target of this.#targets) {
        this.#unwatch(target)
        target.close()
      }
      this.#targets.clear()
      await programs.close()
      native.closeFd(statsFd)
      for (const file of files) file.close()
      onEnded()
    }
  }

  #receive(buffer: ArrayBuffer, offsets: readonly number[]): void {
    const { decoder } = this.#parts
    const taken = this.#consumer.accept(new HitBatch(buffer, offsets, decoder))
    offsets.forEach((offset, index) => {
      const slot = decoder.slotOf(buffer, offset)
      const counts = index < taken ? this.#delivered : this.#lostQueue
      counts[slot] = (counts[slot] ?? 0) + 1
    })
  }

  /** Returns how many hits found a listener: all of them if it takes batches, else those up to where the last one left. */
  #emitBatch(batch: HitBatch): number {
    const whole = this.listenerCount('batch') > 0
    if (whole) callGuarded(() => this.emit('batch', batch))
    let taken = 0
    while (taken < batch.length && this.listenerCount('hit') > 0) {
      const hit = batch.at(taken++)
      callGuarded(() => this.emit('hit', hit))
    }
    return whole ? batch.length : taken
  }

  #onNewListener(event: string | symbol): void {
    if (event !== 'hit' && event !== 'batch') return
    if (this.#consumer.iterating) {
      throw new UprobeError(
        'ERR_UPROBE_BAD_OPTION',
        "The probe is being iterated, which takes its hits. Leave the loop first, or do not listen for 'hit' or 'batch'.",
      )
    }
    queueMicrotask(() => this.#consumer.flushToListeners())
  }

  #kernelCounts(): readonly KernelCounts[] {
    return this.#finalCounts ?? readCounts(this.#parts.native, this.#parts.statsFd, 0, this.#parts.sites.length)
  }

  #sum(counts: readonly KernelCounts[], slots: Iterable<number>): ProbeStats {
    let hits = 0
    let filtered = 0
    let delivered = 0
    let lostRing = 0
    let lostQueue = 0
    for (const slot of slots) {
      const kernel = counts[slot]
      if (kernel === undefined) continue
      hits += kernel.hits
      filtered += kernel.filtered
      lostRing += kernel.lostRing
      delivered += this.#delivered[slot] ?? 0
      lostQueue += this.#lostQueue[slot] ?? 0
    }
    if (this.#parts.countOnly) delivered = hits - filtered
    // After the end nothing is on its way any more, so whatever is not accounted for is lost.
    const lost = this.#finalCounts === null ? lostRing + lostQueue : hits - filtered - delivered
    return { hits, filtered, delivered, lost, lostRing, lostQueue }
  }

  #change(state: ProbeState, change: Omit<ProbeStateChange, 'state'>): void {
    this.#state = state
    this.#parts.log.info({ state, ...change }, 'probe state')
    callGuarded(() => this.emit('state', { state, ...change }))
  }

  #throwIfEnded(): void {
    if (this.#ending !== null) throw new UprobeError('ERR_UPROBE_CLOSED', 'The probe is detached. Attach a new one.')
  }

  /** Runs one change of the registrations after the other. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#work.then(work, work)
    this.#work = result.catch(() => undefined)
    return result
  }

  #background(work: () => Promise<void>): void {
    work().catch((error: unknown) => {
      const failure = error instanceof Error ? error : new Error(String(error))
      this.#parts.log.error({ err: failure }, 'probe failed in the background')
      if (this.listenerCount('error') > 0) callGuarded(() => this.emit('error', failure))
    })
  }
}
