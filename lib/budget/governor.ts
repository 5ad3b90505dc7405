/**
 * Keeps the budgets of one tracer's probes.
 *
 * It reads the counts of the kernel every 50 ms, of new probes after 1, 2, 4 ms and so on, and only of probes with a budget that are not out. A probe whose hits cost more than its budget has allowed so far is taken out of its targets until the time that
 * has passed pays for them, and then armed again. When the budget that all share is used up, the probe that costs most is taken out first, then the next, until those that are left take at most half of it;
 * so what is seldom hit stays seen.
 *
 * Everything happens on the event loop of this process. While it is blocked nobody looks, and targets pay for all hits; they are made up for afterwards.
 */
import { Bucket } from './bucket.js'
import { CHECK_MS, Member, type Throttled } from './member.js'
import { type Budget, msPerHit } from './options.js'

/** Of the common budget, what the probes that stay armed may take while it is used up. */
const LEFT_FOR_OTHERS = 0.5
/** Reading the counts of many sites takes long; it may take one part in so many of the time. */
const READING_SHARE = 20
/** But it is not put off for longer, in milliseconds: a reading may have taken long only because others had the processor, and bursts go on meanwhile. */
const LONGEST_PAUSE_MS = 500

/** The budgets of one tracer. */
export class Governor {
  readonly #members = new Set<Member>()
  readonly #bucket: Bucket | null
  #timer: NodeJS.Timeout | null = null
  #lastMs = performance.now()
  /** When the timer is due. */
  #dueAtMs = 0

  /** @param common - of all probes together; `null` if only some have a budget of their own */
  constructor(private readonly common: Budget | null) {
    this.#bucket = common === null ? null : new Bucket()
  }

  /**
   * Takes a probe into its care, until the probe ends.
   * @param own - the probe's own budget
   * @param hitCostNs - CPU time that a hit costs the target
   * @param armedMs - how long it has been armed; the hits of this time have to be paid for, too
   */
  add(probe: Throttled, own: Budget | null, hitCostNs: number, armedMs: number): void {
    const commonPriceMs = this.common === null ? 0 : msPerHit(this.common, hitCostNs)
    // What passed before is not the new one's.
    this.#measure()
    const member = new Member(probe, own === null ? null : msPerHit(own, hitCostNs), commonPriceMs)
    const hits = member.measure(this.#lastMs, armedMs, 0)
    if (hits === null) return
    this.#members.add(member)
    this.#bucket?.pass(0, hits * commonPriceMs)
    // A timer that is due sooner is left alone, or attach after attach would put it off for ever.
    if (this.#timer === null || this.#dueAtMs > performance.now() + member.dueMs(this.#lastMs, 0)) this.#plan(0)
  }

  /** Ends the timer. */
  close(): void {
    this.#members.clear()
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
  }

  #check(): void {
    const startMs = performance.now()
    this.#measure()
    const readingMs = performance.now() - startMs
    this.#choose()
    for (const member of this.#members) member.decide(this.#lastMs, () => this.#check(), this.#bucket?.debtMs ?? 0)
    this.#plan(readingMs)
  }

  #measure(): void {
    const nowMs = performance.now()
    const elapsedMs = nowMs - this.#lastMs
    this.#lastMs = nowMs
    const commonDebtMs = this.#bucket?.debtMs ?? 0
    let priceMs = 0
    for (const member of this.#members) {
      const hits = member.measure(nowMs, elapsedMs, commonDebtMs)
      if (hits === null) this.#members.delete(member)
      else priceMs += hits * member.commonPriceMs
    }
    this.#bucket?.pass(elapsedMs, priceMs)
  }

  /** Decides which probes the common budget wants out. */
  #choose(): void {
    if (this.#bucket === null) return
    if (this.#bucket.debtMs === 0) {
      for (const member of this.#members) member.outForAll = false
      return
    }
    const byUse = [...this.#members].sort((a, b) => b.commonUse - a.commonUse)
    let use = byUse.reduce((sum, member) => sum + member.commonUse, 0)
    for (const member of byUse) {
      if (use <= LEFT_FOR_OTHERS) return
      use -= member.commonUse
      member.outForAll = true
    }
  }

  #plan(readingMs: number): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    if (this.#members.size === 0) return
    // However long those that are out have to wait: another may be attached or resumed meanwhile, and the hits of a switch are to be looked at, too.
    let dueMs = CHECK_MS
    for (const member of this.#members) dueMs = Math.min(dueMs, member.dueMs(this.#lastMs, this.#bucket?.debtMs ?? 0))
    const restMs = Math.min(READING_SHARE * readingMs, LONGEST_PAUSE_MS)
    const inMs = Math.max(dueMs, restMs)
    this.#dueAtMs = performance.now() + inMs
    this.#timer = setTimeout(() => this.#check(), inMs).unref()
  }
}
