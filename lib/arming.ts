/**
 * How a probe is switched on and off in its targets: with the kernel's count, or with a claim.
 *
 * Hits are counted from one moment to another, which the pause map makes: from when every registration is in until the first one is about to go. Putting them in and taking them out takes the kernel a while: a link of several sites 30 ms to go, a perf
 * event 100 ms, one after the other. For a part of it some sites are hit and others are not, or the breakpoint is in and its program is off already: a perf event loses its program when its close begins (`perf_event_free_bpf_prog` in
 * `_free_event`, kernel/events/core.c), and the consumers of a link go before it waits (`bpf_uprobe_unregister`, kernel/trace/bpf_trace.c). Of such a while nobody could say how much of it was seen.
 *
 * With the kernel's count everything hangs on the registration: it puts the breakpoint in and counts, and closing it takes both back. With a claim the counter is ours,
 * and pausing is one store: a program that checks its counter no longer comes by the breakpoint. One that does not check goes on paying for it, though its hits are
 * ignored; that is noticed, and the registration closed instead.
 */
import type { CounterClaims } from './counter/claims.js'
import type { ReleasedCounter } from './counter/control.js'
import { reached } from './counter/steps.js'
import type { Ring } from './delivery/ring.js'
import type { SiteWork } from './progress.js'
import type { Attachment, PartFailure } from './register/attachment.js'
import type { PauseMap } from './register/pause-map.js'
import type { TargetProcess } from './target/process.js'

/** Switches one probe. */
export interface Arming {
  /** Whether it holds claims, leases and guards at the moment, which keep other tracers away. */
  readonly claims: boolean
  /** The counters that are claimed, one for each process. */
  claimedCounters(): ReleasedCounter[]
  /**
   * Puts everything in; hits are ignored until it resolves. Sites that the kernel refuses are reported; any other failure throws, with everything taken back.
   * @returns the refusals, and what else is not as asked for, as sentences
   */
  arm(work: SiteWork): Promise<{ failures: readonly PartFailure[]; warnings: readonly string[] }>
  /**
   * Switches off what can be switched on again by {@link resume}. Hits are ignored from the call on.
   * @returns why something could not be switched off in a target; its hits are ignored all the same; `null` if all was
   */
  pause(): Promise<unknown>
  /**
   * Switches on again; when that fails, the probe is off as before. Hits are ignored until it resolves.
   * @param prepare - what else has to be done once everything is in, before hits are counted; if it fails, so does the whole
   * @returns what is not as asked for, as sentences
   */
  resume(signal: AbortSignal, prepare?: () => Promise<void>): Promise<readonly string[]>
  /**
   * Takes everything out of the targets. Hits are ignored from the call on. Returns why something could not be, or `null`.
   * @param work - counts the sites
   */
  disarm(work?: SiteWork): Promise<unknown>
  /** As {@link disarm}, and gives back what was held so that others keep away, until {@link resume} takes it again. */
  giveWay(): Promise<unknown>
  /** Gives back what was held so that others keep away. After {@link disarm}. */
  finish(): Promise<void>
  /** Ends what concerns one process, which has exited or called exec. */
  endTarget(target: TargetProcess): Promise<void>
}

/** The kernel counts. */
export class CountedArming implements Arming {
  readonly claims = false

  constructor(
    private readonly attachment: Attachment,
    private readonly ring: Ring,
    private readonly pauseMap: PauseMap,
  ) {}

  claimedCounters(): ReleasedCounter[] {
    return []
  }

  async arm(work: SiteWork): ReturnType<Arming['arm']> {
    this.pauseMap.set(true)
    const failures = await this.attachment.register(work)
    this.pauseMap.set(false)
    return { failures, warnings: [] }
  }

  /** What was hit before is delivered when this resolves. */
  async pause(): Promise<null> {
    await this.disarm()
    await this.ring.drain()
    return null
  }

  async resume(signal: AbortSignal, prepare?: () => Promise<void>): Promise<readonly string[]> {
    await this.attachment.registerAgain(signal)
    try {
      await prepare?.()
      this.pauseMap.set(false)
    } catch (error) {
      await this.disarm()
      throw error
    }
    return []
  }

  async disarm(work?: SiteWork): Promise<null> {
    try {
      this.pauseMap.set(true)
    } finally {
      await this.attachment.unregister(work)
    }
    return null
  }

  giveWay(): Promise<null> {
    return this.disarm()
  }

  async finish(): Promise<void> {}

  endTarget(target: TargetProcess): Promise<void> {
    return this.attachment.endTarget(target)
  }
}

/** How soon after a pause hits are looked for first, and how rarely later. */
const FIRST_LOOK_MS = 10
const RAREST_LOOK_MS = 5000
/**
 * How many hits until the first look may be of threads that had looked at the counter before it was cleared: each can be on its way to one breakpoint, and wait there for a processor. More say that nobody looks.
 */
const MOST_UNDER_WAY = 100

/** The package has claimed the counters. */
export class ClaimedArming implements Arming {
  #registered = false
  #look: NodeJS.Timeout | null = null
  #lookFailed = false

  /**
   * @param onStillHit - a paused probe goes on being hit; {@link takeOut} is wanted
   * @param onError - told what else fails; once, if nobody can see whether it does
   * @param quiet - whether no program may run any more when it is paused, so that it is taken out each time
   */
  constructor(
    private readonly attachment: Attachment,
    private readonly held: CounterClaims,
    private readonly pauseMap: PauseMap,
    private readonly onStillHit: () => void,
    private readonly onError: (error: unknown) => void,
    private readonly quiet = false,
  ) {}

  get claims(): boolean {
    return this.held.taken
  }

  claimedCounters(): ReleasedCounter[] {
    return [...this.held.claims].flatMap(({ target, file, counters }) =>
      counters.map(({ counter }) => ({ pid: target.pid, path: file.path, provider: counter.provider, name: counter.name })),
    )
  }

  async arm(work: SiteWork): ReturnType<Arming['arm']> {
    const warnings = await this.held.take(work.signal, {
      begin: (counters) => work.add('claim', counters),
      through: (counters) => work.advance(counters),
    })
    this.#registered = true
    this.pauseMap.set(true)
    const failures = await this.attachment.register(work)
    this.pauseMap.set(false)
    reached('breakpoints-in')
    return { failures, warnings }
  }

  async pause(): Promise<unknown> {
    const failure = await this.#clear()
    // Once more: hits that were under way while the bits were being cleared are none of a paused probe.
    this.#ignoreHits()
    if (this.quiet) await this.takeOut()
    else this.#lookForHits(FIRST_LOOK_MS, MOST_UNDER_WAY)
    return failure
  }

  async resume(signal: AbortSignal, prepare?: () => Promise<void>): Promise<readonly string[]> {
    this.#stopLooking()
    const { taken } = this.held
    try {
      const warnings = taken ? await this.held.set(signal) : await this.held.take(signal)
      if (!this.#registered) await this.attachment.registerAgain(signal)
      this.#registered = true
      await prepare?.()
      // Last, for all bits to be seen from one moment on: setting thousands takes seconds.
      this.pauseMap.set(false)
      return warnings
    } catch (error) {
      await this.pause()
      if (!taken) {
        // It had given way to others, and has again.
        this.held.releaseLeases()
        await this.held.finish()
      }
      throw error
    }
  }

  /** Closes the registrations of a probe that is paused and hit all the same; {@link resume} opens them again. */
  async takeOut(work?: SiteWork): Promise<void> {
    this.#stopLooking()
    this.#registered = false
    await this.attachment.unregister(work)
  }

  async disarm(work?: SiteWork): Promise<unknown> {
    work?.add('claim', this.held.counters)
    const failure = await this.#clear((counters) => work?.advance(counters))
    this.held.releaseLeases()
    await this.takeOut(work)
    reached('breakpoints-out')
    return failure
  }

  async giveWay(): Promise<unknown> {
    const failure = await this.disarm()
    await this.finish()
    return failure
  }

  finish(): Promise<void> {
    return this.held.finish()
  }

  /** Hits are ignored first, for none to be seen of the bits that are cleared last. */
  #clear(through?: (counters: number) => void): Promise<unknown> {
    this.#ignoreHits()
    return this.held.clear(through)
  }

  /** Nothing that is to be taken out stays in for its failure. */
  #ignoreHits(): void {
    try {
      this.pauseMap.set(true)
    } catch (error) {
      this.onError(error)
    }
  }

  async endTarget(target: TargetProcess): Promise<void> {
    await this.held.endTarget(target)
    await this.attachment.endTarget(target)
  }

  /**
   * Looks seldom, and seldomer as long as nothing comes: a paused probe should cost nobody anything.
   * @param most - more hits than these since the pause are of a program that does not look at its counter
   */
  #lookForHits(delayMs: number, most: number): void {
    this.#stopLooking()
    if (!this.#registered) return
    this.#look = setTimeout(() => {
      const hits = this.#hits() ?? most
      if (hits > most) this.onStillHit()
      else this.#lookForHits(Math.min(2 * delayMs, RAREST_LOOK_MS), hits)
    }, delayMs).unref()
  }

  /** Hits since the pause; `null` if nobody can see them. */
  #hits(): number | null {
    try {
      return this.pauseMap.hits()
    } catch (error) {
      if (!this.#lookFailed) this.onError(error)
      this.#lookFailed = true
      return null
    }
  }

  #stopLooking(): void {
    if (this.#look !== null) clearTimeout(this.#look)
    this.#look = null
  }
}
