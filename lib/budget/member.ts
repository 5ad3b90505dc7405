/**
 * A probe that has to keep a budget: what its hits cost, and whether it is taken out of its targets for a while.
 *
 * A hit costs the target as soon as there is a breakpoint, whatever becomes of it; so a budget is kept by taking the breakpoint out for a part of the time, and nothing else.
 */
import { Bucket } from './bucket.js'

/** A probe, as its budget sees it. */
export interface Throttled {
  /** Its sites are armed. */
  readonly armed: boolean
  /** It is taken out, and {@link comeBack} is wanted. */
  readonly out: boolean
  /** Of all hits while it is taken out, the share that {@link trapped} may not know of. */
  readonly unseenShare: number
  /** Whether what it sees takes time, as calls do, so that a moment for which it is armed has to last. */
  readonly timesCalls: boolean
  /** How often its targets ran into a breakpoint so far, counted as hits or not; `null` once it ends. */
  trapped(): number | null
  /** Takes the probe out, unless it is paused or ends. */
  sitOut(): Promise<void>
  /** Arms it again, unless it is paused or ends meanwhile, or a target does. */
  comeBack(): Promise<void>
  /** It keeps its budget without being taken out. */
  calm(): Promise<void>
  /** Is told when it will have paid for its hits, as `Date.now()` tells time: before it is taken out, and as more becomes known. */
  staysOut(untilMs: number): void
  failed(error: unknown): void
}

/** How often the cost is looked at, in milliseconds: a burst is noticed after this time. */
export const CHECK_MS = 50
/** But one that has just been attached, or armed by the user, after this time first, and then twice as much each time: what is hit a million times a second would use up a minute's budget by the first look. */
const FIRST_LOOK_MS = 1
/** The shortest time for which it is worth while to arm a probe. */
const SHORTEST_MS = 10
/** A probe that is over its budget is armed for a moment once in about this time, or more seldom if a moment's hits have to be paid for longer. */
const CYCLE_MS = 500
/** No longer than this at a time, even where switching takes longer. */
const LONGEST_MS = 100
/** A probe that was armed for so long keeps its budget by itself. */
const CALM_MS = 2000
/** Switching should not be most of what is done; it is not where a moment has to be paid for so many times longer than a switch takes. */
const SWITCHES_PAID = 10
/** After a switch that did not come about. */
const RETRY_MS = 200

/** A switch that is under way, or done and not yet paid for. */
interface Switch {
  readonly sinceMs: number
  /** Whether the probe comes back. */
  readonly on: boolean
  done: boolean
}

/** One probe in the care of a governor. */
export class Member {
  /** Whether the common budget wants it out. */
  outForAll = false
  readonly #own: Bucket | null
  #trapped = 0
  /** Hits a millisecond while it is armed; `null` until that is known. */
  #rate: number | null = null
  #lookMs = FIRST_LOOK_MS
  /** It was taken out, and is not known to keep its budget by itself. */
  #throttled = false
  /** What fails at the moment, and was said: not in each cycle. */
  readonly #failing = new Set<'counts' | 'out' | 'back'>()
  #switch: Switch | null = null
  #armedSinceMs = 0
  #lastSwitchMs = 0
  #notBeforeMs = 0

  /**
   * @param ownPriceMs - what a hit has to be paid for with from its own budget; `null` if it has none
   * @param commonPriceMs - and from the common one
   */
  constructor(
    private readonly probe: Throttled,
    private readonly ownPriceMs: number | null,
    readonly commonPriceMs: number,
  ) {
    this.#own = ownPriceMs === null ? null : new Bucket()
  }

  /** The share of the common budget that it takes at the moment. */
  get commonUse(): number {
    return this.probe.armed ? (this.#rate ?? 0) * this.commonPriceMs : 0
  }

  /**
   * Pays for its hits since the last time, the first time for all that it had, and returns how many they were; `null` once it ends.
   * @param elapsedMs - since the last time; the first time, for how long it was armed before
   * @param commonDebtMs - what the common budget owes
   */
  measure(nowMs: number, elapsedMs: number, commonDebtMs: number): number | null {
    // One that stays out is looked at when it is about to come back.
    if (this.#switch === null && this.probe.out && this.#debtMs(commonDebtMs) > elapsedMs) {
      this.#own?.pass(elapsedMs, 0)
      return 0
    }
    const trapped = this.#read()
    if (trapped === null) return null
    let hits = trapped - this.#trapped
    this.#trapped = trapped
    if (this.#switch !== null) {
      // As if it had been hit as before. Nothing like that for the way back: what it was hit long ago says nothing, and would take it out again at once.
      if (!this.#switch.on) hits += (this.#rate ?? 0) * elapsedMs * this.probe.unseenShare
      if (this.#switch.done) this.#settle(this.#switch, nowMs)
    } else if (this.probe.armed && elapsedMs > 0) {
      const rate = hits / elapsedMs
      this.#rate = this.#rate === null ? rate : this.#rate + (rate - this.#rate) * Math.min(1, elapsedMs / CHECK_MS)
      this.#lookMs = Math.min(2 * this.#lookMs, CHECK_MS)
    } else if (!this.probe.armed && !this.probe.out) {
      this.#lookMs = FIRST_LOOK_MS
    }
    this.#own?.pass(elapsedMs, hits * (this.ownPriceMs ?? 0))
    return hits
  }

  /**
   * Takes the probe out or arms it again, as its budgets want it.
   * @param onSwitched - called when that is done, for what was hit meanwhile to be measured
   * @param commonDebtMs - what the common budget owes
   */
  decide(nowMs: number, onSwitched: () => void, commonDebtMs = 0): void {
    const debtMs = this.#debtMs(commonDebtMs)
    if (debtMs > 0) this.probe.staysOut(Date.now() + debtMs)
    if (this.#switch !== null || nowMs < this.#notBeforeMs) return
    // The moment for which it was armed is not cut short because another probe is looked at.
    if (this.#throttled && this.probe.armed && this.#windowLeftMs(nowMs) > 0) return
    const over = this.outForAll || (this.#own?.debtMs ?? 0) > 0
    if (this.probe.armed && over) {
      this.#throttled = true
      this.#begin(nowMs, false, this.probe.sitOut(), onSwitched)
    } else if (this.probe.out && !over) {
      this.#begin(nowMs, true, this.probe.comeBack(), onSwitched)
    } else if (this.probe.armed && this.#throttled && nowMs - this.#armedSinceMs >= CALM_MS) {
      this.#throttled = false
      this.probe.calm().catch((error: unknown) => this.probe.failed(error))
    }
  }

  /** When it should be looked at next, in milliseconds from now. */
  dueMs(nowMs: number, commonDebtMs: number): number {
    if (this.#switch !== null) return Number.POSITIVE_INFINITY
    if (!this.probe.out) {
      if (!this.#throttled || !this.probe.armed) return this.#lookMs
      const leftMs = this.#windowLeftMs(nowMs)
      return leftMs > 0 ? leftMs : this.#windowMs()
    }
    return Math.max(this.#debtMs(commonDebtMs), this.#notBeforeMs - nowMs, SHORTEST_MS)
  }

  /** How long it has to stay out. */
  #debtMs(commonDebtMs: number): number {
    return Math.max(this.#own?.debtMs ?? 0, this.outForAll ? commonDebtMs : 0)
  }

  #windowLeftMs(nowMs: number): number {
    return this.#armedSinceMs + this.#windowMs() - nowMs
  }

  /** Counts that cannot be read are paid for as soon as they can: they add up. */
  #read(): number | null {
    try {
      const trapped = this.probe.trapped()
      this.#failing.delete('counts')
      return trapped
    } catch (error) {
      this.#fail('counts', error)
      return this.#trapped
    }
  }

  #fail(what: 'counts' | 'out' | 'back', error: unknown): void {
    if (!this.#failing.has(what)) this.probe.failed(error)
    this.#failing.add(what)
  }

  /** How long it should be armed at a time. */
  #windowMs(): number {
    const use = (this.#rate ?? 0) * Math.max(this.ownPriceMs ?? 0, this.commonPriceMs)
    const windowMs = Math.min(CHECK_MS, Math.max(SHORTEST_MS, CYCLE_MS / use))
    const switchMs = Math.min(LONGEST_MS, this.#lastSwitchMs)
    return Math.max(windowMs, this.probe.timesCalls ? switchMs : Math.min(1, SWITCHES_PAID / use) * switchMs)
  }

  #begin(sinceMs: number, on: boolean, work: Promise<void>, onSwitched: () => void): void {
    const begun: Switch = { sinceMs, on, done: false }
    this.#switch = begun
    const way = on ? 'back' : 'out'
    work
      .then(
        () => this.#failing.delete(way),
        (error: unknown) => this.#fail(way, error),
      )
      .finally(() => {
        begun.done = true
        onSwitched()
      })
  }

  #settle({ sinceMs, on }: Switch, nowMs: number): void {
    this.#switch = null
    this.#lastSwitchMs = nowMs - sinceMs
    if (this.probe.armed) this.#armedSinceMs = nowMs
    // A target that is just ending, a failure: no reason to try without pause.
    if (on ? this.probe.out : this.probe.armed) this.#notBeforeMs = nowMs + RETRY_MS
  }
}
