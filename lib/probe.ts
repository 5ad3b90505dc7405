/**
 * A probe: what `tracer.attach` returns, and what a program holds on to.
 *
 * It owns the registrations of one specification, delivers their hits, counts what happened to each, and takes everything back when it is detached, when its
 * processes are gone, or when its signal is aborted. Whatever of these comes first, the end is one and the same: close the registrations (the kernel
 * waits until no program runs any more), drain the ring, then read the counts; so hits = filtered + delivered + lost holds exactly.
 */
import { EventEmitter } from 'node:events'
import type { Arming, ClaimedArming } from './arming.js'
import type { Throttled } from './budget/member.js'
import { SeenClock, type SeenState, type SeenTime } from './budget/seen-clock.js'
import type { Hit, HitDecoder } from './capture/hit.js'
import type { BatchMemory } from './capture/memory.js'
import type { RecordOffsets } from './capture/record-offsets.js'
import type { Arrival } from './counter/claims.js'
import type { ReleasedCounter } from './counter/control.js'
import type { SiteFindings } from './counter/site-findings.js'
import type { ProbeHolds } from './counter/table.js'
import { HitBatch } from './delivery/batch.js'
import { Consumer, callGuarded } from './delivery/consumer.js'
import type { QueueLimits } from './delivery/queue.js'
import type { Ring } from './delivery/ring.js'
import { UprobeError } from './errors.js'
import type { Logger } from './log.js'
import type { Native } from './native.js'
import type { ProbeSite } from './probe-site.js'
import { ProbeSites } from './probe-sites.js'
import type { NamedStats, NewListenerEvent, ProbeEvents, ProbeState, ProbeStateChange, ProbeStats } from './probe-types.js'
import { type ReportProgress, SiteWork } from './progress.js'
import type { Attachment } from './register/attachment.js'
import type { PauseMap } from './register/pause-map.js'
import type { CapturePrograms } from './register/programs.js'
import type { SiteCounts } from './register/stats.js'
import { type NamedFile, SiteNames } from './site-names.js'
import { type Counted, Tally } from './tally.js'
import type { TargetFile } from './target/file.js'
import type { TargetProcess } from './target/process.js'
import type { TaskEvents } from './target/task-events.js'
import { TargetWatches, type WatchesHost } from './target/watches.js'

/** @internal What a probe is made of. */
export interface ProbeParts {
  readonly native: Native
  readonly ring: Ring
  readonly probeId: number
  readonly attachment: Attachment
  readonly arming: Arming
  /** What the programs look at to ignore hits; closed with them. */
  readonly pauseMap: PauseMap
  readonly programs: CapturePrograms
  readonly counts: SiteCounts
  readonly files: readonly TargetFile[]
  readonly processes: readonly TargetProcess[]
  readonly siteCount: number
  readonly sites: readonly NamedFile[]
  readonly warnings: readonly string[]
  readonly decoder: HitDecoder
  readonly countOnly: boolean
  readonly queueLimits: QueueLimits
  readonly log: Logger
  /** What it has in the table of counters. */
  readonly holds: ProbeHolds
  /** Events on the processes, which have been opened ahead. */
  readonly tasks: TaskEvents
  readonly onEnded: () => void
  /** Is told how far the end is. */
  readonly onEnding: ReportProgress
}

/** An attached probe; see the module's comment. Made by `tracer.attach`. */
export class Probe extends EventEmitter<ProbeEvents & NewListenerEvent> implements AsyncIterable<Hit>, Throttled {
  readonly #parts: ProbeParts
  readonly #consumer: Consumer
  readonly #tally: Tally
  readonly #watches: TargetWatches
  readonly #targets: Set<TargetProcess>
  readonly #abort = new AbortController()
  readonly #sites: ProbeSites
  readonly #names: SiteNames
  readonly #laterWarnings = new Set<string>()
  /** Whether it last came back with something left out. */
  #cameBackInPart = false
  readonly #seen = new SeenClock()
  #state: ProbeState = 'attached'
  /** Taken out for a while, since its hits cost more than they may. */
  #out = false
  #outUntilMs = 0
  #work: Promise<unknown> = Promise.resolve()
  #ending: Promise<void> | null = null

  /** @internal */
  constructor(parts: ProbeParts) {
    super()
    this.#parts = parts
    this.#targets = new Set(parts.processes)
    this.#sites = new ProbeSites(parts.sites)
    this.#names = new SiteNames(parts.sites)
    const host: WatchesHost = {
      onEnd: (target, reason) => this.#background(() => this.#endTarget(target, reason)),
      onThreadChange: (target) => this.#background(() => this.#moveThread(target)),
      onError: (error) => this.#report(error),
    }
    this.#watches = new TargetWatches(parts.native, parts.ring, host, parts.tasks)
    this.#tally = new Tally(parts.counts, parts.siteCount, parts.countOnly)
    this.#consumer = new Consumer(
      {
        emitBatch: (batch) => this.#emitBatch(batch),
        hasListeners: () => this.listenerCount('hit') + this.listenerCount('batch') > 0,
        ref: () => parts.ring.ref(),
        unref: () => parts.ring.unref(),
        abandon: () => this.detach(),
      },
      parts.queueLimits,
    )
    this.on('newListener', (event) => this.#onNewListener(event))
    parts.ring.addSink(parts.probeId, { receive: (memory, offsets) => this.#receive(memory, offsets) })
  }

  /** The sites, with the processes in which they were looked at. */
  get sites(): readonly ProbeSite[] {
    return this.#sites.all()
  }

  /** What was not as asked for and did not make attaching fail, as sentences. They are logged too. */
  get warnings(): readonly string[] {
    return [...this.#parts.warnings, ...this.#laterWarnings]
  }

  /** What the probe is doing. */
  get state(): ProbeState {
    return this.#state
  }

  /** Until when a budget keeps the probe out of its targets, as `Date.now()` tells time; `null` while it is armed or paused. It is a little later if there are hits while it is being taken out. */
  get outUntilMs(): number | null {
    return this.#out ? this.#outUntilMs : null
  }

  /** The counts of all sites together. While attached they are a moment old. */
  stats(): ProbeStats {
    return this.#withTime(this.#tally.all())
  }

  /** The counts by name and file, in the order of the sites. */
  statsByName(): NamedStats[] {
    // One time for all: it is that of one moment, as the counts are.
    return this.#tally.ofGroups(this.#names.groups, this.#seen)
  }

  /**
   * Switches the probe off until `resume()`. With `counter: 'kernel'` the registrations are closed: the sites cost the target nothing, and a counter goes down again. With `'msb'` the counters
   * are switched off by one store each, and the breakpoints stay: a program that checks its counter does not come by them any more. Hits while paused are neither
   * delivered nor lost; what was hit before is delivered. Does nothing if the probe is paused.
   * @throws {UprobeError} `ERR_UPROBE_CLOSED` after the end; `ERR_UPROBE_COUNTER_FOREIGN` or `ERR_UPROBE_COUNTER_PLACE` if a claim could not be cleared in some process, which goes on
   *   paying for the probe: it is paused all the same, and ignores the hits there
   */
  pause(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#state === 'paused') {
        // It may not have been the user who paused it before.
        this.#seen.turn('apart')
        return
      }
      this.#throwIfEnded()
      const failure = this.#out ? null : await this.#disarm('apart')
      this.#out = false
      this.#seen.turn('apart')
      this.#change('paused', { reason: 'pause', mayHaveMissed: false })
      if (failure !== null) throw failure
    })
  }

  /**
   * Switches the probe on again. Does nothing if the probe is not paused; one that is throttled comes back by itself.
   * @throws {UprobeError} as `tracer.attach`, when the kernel refuses or a counter is negative; the probe stays paused then
   */
  resume(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#state === 'attached' || this.#state === 'throttled') return
      this.#throwIfEnded()
      const asAskedFor = await this.#rearm()
      this.#change('attached', { reason: 'resume', mayHaveMissed: !asAskedFor })
    })
  }

  /**
   * Detaches: nothing is left in the target or in this process, and the counts are final when it resolves. Idempotent.
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_FOREIGN` or `ERR_UPROBE_COUNTER_PLACE` if a claim could not be cleared in some process; all else is done, and the lease stays for `repair()`
   */
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
   * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` if there are listeners, or another iterator, or the probe only counts
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<Hit> {
    this.#throwIfOnlyCounted()
    return this.#consumer.iterate()
  }

  /** @internal All is armed: takes note of what was found, and of the slots whose sites were left out. */
  start(leftOut: ReadonlySet<number>, found: readonly SiteFindings[]): void {
    this.#sites.settle(leftOut, found)
    this.#names.leaveOut(leftOut)
  }

  /** @internal The site of a slot, also while the probe is being armed. */
  siteOfSlot(slot: number): ProbeSite {
    return this.#sites.of(slot)
  }

  /** @internal Detaches when the signal is aborted. */
  detachOnAbort(signal: AbortSignal): void {
    const detach = (): void => this.#background(() => this.detach())
    signal.addEventListener('abort', detach, { once: true })
    // A signal may outlive many probes, and must not keep them.
    this.#abort.signal.addEventListener('abort', () => signal.removeEventListener('abort', detach), { once: true })
    if (signal.aborted) detach()
  }

  /** @internal Begins what is done while the kernel registers the sites: to compare names. */
  prepare(): void {
    this.#names.prepare(() => this.#ending === null)
  }

  /** @internal Watches the processes, so that their end is noticed. */
  async watchTargets(): Promise<void> {
    for (const target of this.#targets) await this.#watches.add(target)
  }

  /** @internal A paused probe goes on being hit, since the program does not check its counter: it is taken out. */
  stillHit(arming: ClaimedArming): void {
    this.#background(() =>
      this.#inTurn(async () => {
        if (this.#ending !== null || (this.#state !== 'paused' && !this.#out)) return
        await arming.takeOut()
        if (!this.#out) this.#change('paused', { reason: 'still-hit', mayHaveMissed: false })
      }),
    )
  }

  async #resume(prepare?: () => Promise<void>): Promise<readonly string[]> {
    const { arming, holds } = this.#parts
    const hadGivenWay = holds.enter()
    try {
      const { state } = this.#seen
      const warnings = await arming.resume(this.#abort.signal, prepare)
      this.#seen.turn('seen')
      await this.#moveToLivingThreads(state)
      return warnings
    } catch (error) {
      if (hadGivenWay) holds.leave()
      throw error
    }
  }

  /** Registrations that stayed in while the probe was paused may be those of a leader thread that has exited since. If that fails, the probe is paused again. */
  async #moveToLivingThreads(before: SeenState): Promise<void> {
    const { attachment } = this.#parts
    try {
      for (const target of this.#targets) await attachment.moveToLivingThread(target, this.#abort.signal)
    } catch (error) {
      const failure = await this.#disarm(before)
      if (failure !== null) this.#report(failure)
      throw error
    }
  }

  /** @internal A process was found later. */
  arrived({ pid, mayHaveMissed }: Arrival): void {
    if (this.#ending === null) this.#change(this.#state, { reason: 'arrival', pid, mayHaveMissed })
  }

  /** @internal Something failed in the background. */
  failed(error: unknown): void {
    this.#report(error)
  }

  /** @internal The counters that it has claimed, one for each process. */
  claimedCounters(): ReleasedCounter[] {
    return this.#parts.arming.claimedCounters()
  }

  /**
   * @internal Gives its claims up for another tool, and pauses. Returns whether there were any.
   * @param told - as of {@link sitOut}: one that follows another is not paused, but out until that brings it back
   */
  yield(told = true): Promise<boolean> {
    return this.#inTurn(async () => {
      const { arming, holds, ring } = this.#parts
      if (this.#ending !== null || !arming.claims) return false
      const failure = await this.#switchOff('out', () => arming.giveWay())
      holds.leave()
      await ring.drain()
      this.#out = !told
      if (told) this.#change('paused', { reason: 'yield', mayHaveMissed: false })
      if (failure !== null) throw failure
      return true
    })
  }

  /** @internal Whether its sites are armed at the moment. */
  get armed(): boolean {
    return (this.#state === 'attached' || this.#state === 'throttled') && !this.#out
  }

  /** @internal Whether it is taken out by a budget. */
  get out(): boolean {
    return this.#out
  }

  /** @internal Its hits, not the time between them, are what it sees. */
  readonly timesCalls = false

  /** @internal Until when it has to stay out. */
  staysOut(untilMs: number): void {
    this.#outUntilMs = untilMs
  }

  /** @internal Of all hits while it is taken out, the share that {@link trapped} may not know of. */
  get unseenShare(): number {
    return this.#parts.attachment.unseenShare
  }

  /** @internal How often its targets ran into a breakpoint, counted as hits or not; `null` once it ends. */
  trapped(): number | null {
    if (this.#ending !== null) return null
    return this.#tally.hits + this.#parts.pauseMap.allHits()
  }

  /** @internal Ignores hits from now on, until it is armed again: it is about to be taken out. */
  ignoreHits(): void {
    this.#parts.pauseMap.set(true)
  }

  /**
   * @internal Takes the probe out for a while, unless it is paused or ends.
   * @param told - whether it is said that the probe is throttled; not of one that follows another, which says so
   */
  sitOut(told = true): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#ending !== null || !this.armed) return
      const failure = await this.#disarm('out')
      this.#out = true
      if (told && this.#state !== 'throttled') this.#change('throttled', { reason: 'over-budget', mayHaveMissed: false })
      if (failure !== null) throw failure
    })
  }

  /**
   * @internal Arms again what {@link sitOut} took out. If it is refused, the probe is paused; but one that follows another stays out, and the other is paused.
   * @param prepare - as of `Arming.resume`, by whoever is followed
   */
  comeBack(prepare?: () => Promise<void>): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#ending !== null || !this.#out) return
      const targets = this.#targets.size
      try {
        this.#cameBackInPart = !(await this.#rearm(prepare))
        this.#out = false
      } catch (error) {
        // The end of the probe, or of a process, is told by itself, and it goes on with those that are left.
        if (this.#abort.signal.aborted || this.#targets.size < targets || isGone(error)) return
        if (prepare !== undefined) throw error
        this.#out = false
        this.#change('paused', { reason: 'refused', mayHaveMissed: true })
        throw error
      }
    })
  }

  /** @internal It has kept its budget for a while without being taken out. */
  calm(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#ending === null && this.#state === 'throttled' && !this.#out) {
        this.#change('attached', { reason: 'within-budget', mayHaveMissed: this.#cameBackInPart })
      }
    })
  }

  /** @internal Time that was to be seen so far. */
  get seenTime(): SeenTime {
    return this.#seen.time
  }

  /** @internal All sites are registered, and hits are counted. */
  seeFromNow(): void {
    this.#seen.turn('seen')
  }

  /** @internal Something is not as asked for. */
  warn(warning: string): void {
    if (this.#laterWarnings.has(warning) || this.#parts.warnings.includes(warning)) return
    this.#laterWarnings.add(warning)
    this.#parts.log.warn(warning)
  }

  /** Switches off. Returns why something could not be, or `null`: the probe is off all the same. */
  async #disarm(time: SeenState): Promise<unknown> {
    try {
      return await this.#switchOff(time, () => this.#parts.arming.pause())
    } catch (error) {
      return error
    }
  }

  /** Switches off, and counts the time as `time` from where hits are no longer counted: at once, however long the registrations take to go. */
  #switchOff<T>(time: SeenState, work: () => Promise<T>): Promise<T> {
    this.#seen.turn(time)
    return work()
  }

  /** Switches on. Returns whether all is as asked for. */
  async #rearm(prepare?: () => Promise<void>): Promise<boolean> {
    const warnings = await this.#resume(prepare)
    for (const warning of warnings) this.warn(warning)
    return warnings.length === 0
  }

  async #moveThread(target: TargetProcess): Promise<void> {
    if (!this.#targets.has(target)) return
    const { attachment, log } = this.#parts
    await this.#inTurn(async () => {
      if (this.#ending !== null) return
      let moved = false
      try {
        moved = this.armed && (await attachment.moveToLivingThread(target, this.#abort.signal))
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
    await this.#watches.remove(target)
    try {
      if (this.#targets.size === 0) {
        await this.#end('target-exited', reason, target.pid)
      } else {
        await this.#inTurn(async () => {
          if (this.#ending !== null) return
          await this.#parts.arming.endTarget(target)
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
    const { ring, probeId, arming, programs, pauseMap, counts, files, holds, onEnded } = this.#parts
    let failure: unknown = null
    this.#out = false
    try {
      try {
        const work = new SiteWork(new AbortController().signal, this.#parts.onEnding)
        failure = await this.#switchOff('apart', () => arming.disarm(work))
        await ring.drain()
      } finally {
        // Also after a failure: the map is about to be closed, and its number to be given to somebody else.
        this.#tally.finish()
      }
    } finally {
      ring.removeSink(probeId)
      for (const target of this.#targets) await this.#watches.remove(target)
      await arming.finish()
      for (const target of this.#targets) target.close()
      this.#targets.clear()
      await programs.close()
      pauseMap.close()
      counts.close()
      for (const file of files) file.close()
      holds.leave()
      onEnded()
    }
    if (failure !== null) throw failure
  }

  #receive(memory: BatchMemory, offsets: RecordOffsets): void {
    const records = this.#parts.decoder.open(memory)
    this.#tally.add(records, offsets, this.#consumer.accept(new HitBatch(records, offsets)))
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
    this.#throwIfOnlyCounted()
    if (this.#consumer.iterating) {
      throw new UprobeError(
        'ERR_UPROBE_BAD_OPTION',
        "The probe is being iterated, which takes its hits. Leave the loop first, or do not listen for 'hit' or 'batch'.",
      )
    }
    queueMicrotask(() => this.#consumer.flushToListeners())
  }

  /** Who asks for hits that will never come would wait for ever. */
  #throwIfOnlyCounted(): void {
    if (!this.#parts.countOnly) return
    throw new UprobeError(
      'ERR_UPROBE_BAD_OPTION',
      "The probe only counts (countOnly: true), so it has no hits to give. Read its counts with stats() and its end from 'state' events, or attach without countOnly.",
    )
  }

  #withTime(counted: Counted): ProbeStats {
    const { seenMs, seenFraction } = this.#seen
    return { ...counted, seenMs, seenFraction }
  }

  #change(state: ProbeState, change: Omit<ProbeStateChange, 'state'>): void {
    this.#state = state
    this.#parts.log[state === 'throttled' ? 'warn' : 'info']({ state, ...change }, 'probe state')
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
    work().catch((error: unknown) => this.#report(error))
  }

  #report(error: unknown): void {
    const failure = error instanceof Error ? error : new Error(String(error))
    this.#parts.log.error({ err: failure }, 'probe failed in the background')
    if (this.listenerCount('error') > 0) callGuarded(() => this.emit('error', failure))
  }
}

/** Whether a failure says that a process is gone. It may be told of before the watch of the process, or after that. */
function isGone(error: unknown): boolean {
  return error instanceof UprobeError && error.code === 'ERR_UPROBE_TARGET_GONE'
}
