/**
 * How much of a target's speed a budget leaves it: the same loop without a probe, with one that has no budget, and with one that has.
 */
import assert from 'node:assert/strict'
import type { Target } from '../support/target.js'

/** What the target is measured with. */
type Load = 'bare' | 'free' | 'budgeted'

/** The share of one CPU that a probe with a budget may take. */
export const PROMISE = 0.05

/** CPU time of a loop that is measured at a time, in milliseconds. */
const LOOP_MS: Readonly<Record<Load, number>> = { bare: 300, free: 300, budgeted: 1500 }
const ROUNDS = 2
/** A second's budget may be used at once, and a burst is noticed a moment later. */
const SAVED_MS = 1000
const NOTICED_MS = 100

/** The measurements of one target. */
export class SpeedTrial {
  readonly #passes = { bare: 0, free: 0, budgeted: 0 }
  readonly #spentMs = { bare: 0, free: 0, budgeted: 0 }
  #budgetedMs = 0

  /** @param command - has the target go round its loop for so many milliseconds of CPU time, and say how often it did */
  constructor(
    private readonly target: Target,
    private readonly command: string,
  ) {}

  /** Measures each load in turn, and the bare target before and behind each: a shared machine may be quicker by a quarter a second later. */
  async run(measureUnder: (load: 'free' | 'budgeted', measure: () => Promise<void>) => Promise<void>): Promise<void> {
    await this.#measure('bare')
    for (let round = 0; round < ROUNDS; round++) {
      for (const load of ['free', 'budgeted'] as const) {
        await measureUnder(load, () => this.#measure(load))
        await this.#measure('bare')
      }
    }
  }

  /** Checks that the budget kept what it promises, and that a probe without one would have left next to nothing. */
  assertKept(): void {
    const { free, budgeted } = this.left
    assert.ok(free < 0.2, `without a budget ${free} is left, so nothing is tried here`)
    // A budget is in time that passes, of which the target has a part only while others run on its processor. Twice as much as promised, for what a test cannot foresee.
    const allowedMs = 2 * PROMISE * (this.#budgetedMs + ROUNDS * SAVED_MS) + ROUNDS * NOTICED_MS
    const allowed = Math.min(allowedMs / (ROUNDS * LOOP_MS.budgeted), 0.7)
    assert.ok(budgeted >= 1 - allowed, `${budgeted} is left, and ${allowed} may be taken`)
  }

  /** The share of its CPU time that was left for the program's own work. */
  get left(): { readonly free: number; readonly budgeted: number } {
    const perMs = (load: Load): number => this.#passes[load] / this.#spentMs[load]
    return { free: perMs('free') / perMs('bare'), budgeted: perMs('budgeted') / perMs('bare') }
  }

  async #measure(load: Load): Promise<void> {
    const start = performance.now()
    this.#passes[load] += await this.target.askNumber(`${this.command} ${LOOP_MS[load]}`)
    this.#spentMs[load] += LOOP_MS[load]
    if (load === 'budgeted') this.#budgetedMs += performance.now() - start
  }
}
