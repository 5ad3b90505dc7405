/**
 * The account of a budget, kept in time: each hit has to be paid for with the time in which the budget allows for one, and time comes in by passing.
 *
 * What is saved is bounded, so that a quiet hour does not pay for a loud minute; debts are not, or the average would not hold.
 */

/** What can be saved, in milliseconds: a second's budget may be used at once. */
const MOST_SAVED_MS = 1000

/** One account. It begins with all that can be saved. */
export class Bucket {
  #balanceMs = MOST_SAVED_MS

  /** Milliseconds that must pass without a hit until the budget is kept again; 0 if it is. */
  get debtMs(): number {
    return Math.max(0, -this.#balanceMs)
  }

  /**
   * Lets time pass.
   * @param elapsedMs - since the last call
   * @param priceMs - what the hits of this time have to be paid for with
   */
  pass(elapsedMs: number, priceMs: number): void {
    this.#balanceMs = Math.min(MOST_SAVED_MS, this.#balanceMs + elapsedMs - priceMs)
  }
}
