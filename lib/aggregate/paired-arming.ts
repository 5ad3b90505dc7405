/**
 * How the two probes of a latency are switched together, so that no beginning ever meets the end of another.
 *
 * An end finds its beginning among those that are kept: the youngest of its thread, the one at its place on the stack, the one with its argument. That is right only if every beginning between the two was seen. Where beginnings are missed while
 * ends are seen, the end of an inner call takes what an outer one has begun; where ends are missed, what has begun stays, and a later end takes it. Closing registrations, one after the other, does both for a while. So this is done instead:
 *
 *     taking out     where it begins, hits are marked from now on: kept as beginnings whose latency nobody wants, as those that a filter rejects. So whatever has begun before still meets its own end
 *                    that is waited for, as long as anything can end, but not long
 *                    where it ends, hits are ignored; then where it begins, too
 *                    both are taken out of the targets, and no program runs any more
 *                    what is kept is forgotten, and counted as cut off (pair.ts)
 *     arming again   both are put in, and ignore hits: first where it ends, for whoever runs into the other one to find it (the kernel adds to the front of its list: consumer_add, kernel/events/uprobes.c)
 *                    where it ends, hits are seen; then where it begins, too
 *
 * A thread comes by its beginnings and ends one after the other, so for it each of these switches lies between two of them. By an argument, another thread may end what this one has begun; it does so later, and so sees every
 * switch that this one has seen. Between the last step and the first of the next time, then, every beginning and every end is seen, and nothing is kept from before. An end that finds something finds what it would find if
 * nobody ever took the probes out; what all others end has begun before, and they find nothing. This holds for calls of a function and for pairs by thread or by argument, however they are nested. (Calls that are left by
 * longjmp are noticed as ever, by where the next ones are on the stack: stack-code.ts.)
 *
 * Which returns the kernel tells of, of calls that began while the return probe was out, depends on its version and on the way of registration: all through a link, and before Linux 6.13 through a perf event, too, if something else had the
 * kernel watch the call; else none (`handle_uretprobe_chain`, kernel/events/uprobes.c). They find nothing either way.
 *
 * The same is done for a pause, for another tool that asks for a counter of either, at the end, and at the attach, where what arms a probe sees to it (lib/arming.ts).
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Arming } from '../arming.js'
import type { ReleasedCounter } from '../counter/control.js'
import { UprobeError } from '../errors.js'
import type { SiteWork } from '../progress.js'
import type { PauseMap } from '../register/pause-map.js'
import type { TargetProcess } from '../target/process.js'
import type { Pair } from './pair.js'

/** What has begun is waited for at most half as long as beginnings were counted, since meanwhile hits cost as much; and no longer than this, in milliseconds. */
const SHARE_OF_SEEN = 0.5
const LONGEST_WAIT_MS = 50
/** Between two looks at what is still open; a look that takes long is not taken more often than every other moment. */
const LOOK_MS = 1

/** The arming of the probe at which latencies begin. It switches the one at which they end, too. */
export class PairedArming implements Arming {
  /** Since when beginnings are counted; `null` while they are not. */
  #liveSinceMs: number | null = null
  /** Whether something may be kept from before. */
  #uncut = false

  /**
   * @param own - switches the probe at which latencies begin
   * @param pauseMap - what its programs look at
   */
  constructor(
    private readonly own: Arming,
    private readonly pauseMap: PauseMap,
    private readonly pair: Pair,
  ) {}

  get claims(): boolean {
    return this.own.claims
  }

  claimedCounters(): ReleasedCounter[] {
    return [...this.own.claimedCounters(), ...this.pair.end.claimedCounters()]
  }

  async arm(work: SiteWork): ReturnType<Arming['arm']> {
    // Where it ends, hits are seen by now. Here none is until all sites are in, as of any probe.
    const result = await this.own.arm(work)
    this.pair.bothSeen()
    this.#liveSinceMs = performance.now()
    return result
  }

  async pause(): Promise<unknown> {
    const failure = await this.#takeOut(() => this.own.pause())
    this.#uncut = true
    await this.#cut()
    return failure
  }

  /** Both go, whichever of them is in the way of others: one alone measures nothing. */
  async giveWay(): Promise<unknown> {
    const failure = await this.#takeOut(() => this.own.giveWay())
    this.#uncut = true
    const results = [await outcome(() => this.#cut()), await outcome(() => this.pair.end.yield(false))]
    return failure ?? firstFailure(results)
  }

  async resume(signal: AbortSignal): Promise<readonly string[]> {
    if (this.#uncut) await this.#cut()
    const { end } = this.pair
    const [endIn, bothIn] = [new Turnstile(), new Turnstile()]
    const endBack = end.comeBack(async () => {
      endIn.open()
      await bothIn.passed
    })
    try {
      // It may also fail, or have no reason to come back.
      await Promise.race([endIn.passed, endBack])
      const warnings = await this.own.resume(signal, async () => {
        bothIn.open()
        await endBack
        if (!end.armed) throw end.out ? notYetError() : endedError()
      })
      this.#liveSinceMs = performance.now()
      return warnings
    } catch (error) {
      bothIn.fail(error)
      await endBack.catch(() => undefined)
      if (end.armed) await end.sitOut(false).catch(() => undefined)
      throw error
    }
  }

  disarm(work?: SiteWork): Promise<unknown> {
    return this.#takeOut(() => this.own.disarm(work))
  }

  finish(): Promise<void> {
    return this.own.finish()
  }

  endTarget(target: TargetProcess): Promise<void> {
    return this.own.endTarget(target)
  }

  /** For how long ends are waited for, when beginnings were counted for so long; both in milliseconds. */
  patienceMs(seenMs: number): number {
    return Math.min(LONGEST_WAIT_MS, SHARE_OF_SEEN * seenMs)
  }

  /** Takes both out, whatever fails. Returns the first failure, or `null`. */
  async #takeOut(takeOwn: () => Promise<unknown>): Promise<unknown> {
    const { end } = this.pair
    const results = [await outcome(() => this.#waitForEnds()), await outcome(() => this.pair.endsIgnored())]
    // At once: its own turn may have to wait for something else that is done with it, and beginnings must not be missed while ends are seen.
    results.push(await outcome(() => end.ignoreHits()))
    const [own, others] = await Promise.all([outcome(takeOwn), outcome(() => end.sitOut(false))])
    results.push(await outcome(() => this.pair.bothOut()))
    return firstFailure([own, others, ...results]) ?? (own.status === 'fulfilled' ? own.value : null)
  }

  /** From now on nothing begins; waits for the ends of what has. */
  async #waitForEnds(): Promise<void> {
    if (this.#liveSinceMs === null) return
    const startMs = performance.now()
    const longestMs = this.patienceMs(startMs - this.#liveSinceMs)
    this.#liveSinceMs = null
    this.pauseMap.mark()
    for (let nowMs = startMs; nowMs - startMs < longestMs; ) {
      const { open } = this.pair
      if (open <= 0) return
      await delay(Math.max(LOOK_MS, performance.now() - nowMs))
      nowMs = performance.now()
    }
  }

  async #cut(): Promise<void> {
    await this.pair.cut()
    this.#uncut = false
  }
}

/** How some work ends, also if it fails at once. */
async function outcome<T>(work: () => T): Promise<PromiseSettledResult<Awaited<T>>> {
  const [result] = await Promise.allSettled([(async () => await work())()])
  return result
}

function firstFailure(results: ReadonlyArray<PromiseSettledResult<unknown>>): unknown {
  for (const result of results) if (result.status === 'rejected') return result.reason
  return null
}

/** What somebody waits for until another opens it. Nobody need wait. */
class Turnstile {
  open: () => void = () => undefined
  fail: (reason: unknown) => void = () => undefined
  readonly passed = new Promise<void>((resolve, reject) => {
    this.open = resolve
    this.fail = reject
  })

  constructor() {
    this.passed.catch(() => undefined)
  }
}

/** Of what is tried again, as where a process has ended in the middle of it. */
function notYetError(): UprobeError {
  return new UprobeError('ERR_UPROBE_TARGET_GONE', 'Where the latency ends cannot be armed again yet, since a process of it has ended.')
}

function endedError(): UprobeError {
  return new UprobeError(
    'ERR_UPROBE_CLOSED',
    'The probe at which the latency ends has ended, so its beginnings are of no use. Detach the aggregation, and start another.',
  )
}
