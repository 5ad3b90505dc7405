/**
 * When batches are taken: at a ring of the reader, and as long as more wait, one in each turn of the event loop.
 *
 * A flood of hits must not keep the host from its work, and Node may answer a thousand rings in one turn. But a turn of the event loop, and a look for what is mostly not there, take as long as a batch of some
 * hundred hits; so where nothing waits behind a batch, the next ring is answered as well, as long as this turn is young.
 */
import { callGuarded } from './consumer.js'

/** So long after the first batch of a turn its rings are answered; what listeners do when they have returned counts. */
const TURN_MS = 1

/** That of Node, whatever tests of the host put in its place later on. */
const atEndOfTurn = setImmediate

/** Where batches come from. */
export interface PumpHost {
  /** Takes a batch and delivers it; returns whether there was one. If it throws, that batch is gone. */
  take(): boolean
  /** Whether one waits. For one that comes later there is a ring. */
  waits(): boolean
  /** Told of an error of `take`. */
  onError(error: unknown): void
}

/** See the module's comment. */
export class Pump {
  #pumping = false
  /** When the first batch of this turn was asked for; `null` if none was. */
  #turnMs: number | null = null

  /** @param nowMs - a clock */
  constructor(
    private readonly host: PumpHost,
    private readonly nowMs = () => performance.now(),
  ) {}

  /** To be called for each ring. */
  ring(): void {
    if (this.#pumping) return
    if (this.#isOver() || this.#takeOne()) this.#goOn().catch((error: unknown) => this.#report(error))
  }

  #isOver(): boolean {
    return this.#turnMs !== null && this.nowMs() - this.#turnMs > TURN_MS
  }

  /** Returns whether the next turn has to look for more. */
  #takeOne(): boolean {
    if (this.#turnMs === null) this.#beginTurn()
    try {
      if (!this.host.take()) return false
    } catch (error) {
      this.#report(error)
    }
    return this.#isOver() || this.host.waits()
  }

  #beginTurn(): void {
    this.#turnMs = this.nowMs()
    const end = atEndOfTurn(() => {
      this.#turnMs = null
    })
    // From a ring this runs at the end of this turn also without a reference, and then keeps no process alive. Behind a turn that was waited for it runs at the end of the next, which would begin only when something
    // happens.
    if (!this.#pumping) end.unref()
  }

  #report(error: unknown): void {
    callGuarded(() => this.host.onError(error))
  }

  async #goOn(): Promise<void> {
    this.#pumping = true
    try {
      do {
        await new Promise<void>((resolve) => atEndOfTurn(resolve))
      } while (this.#takeOne())
    } finally {
      this.#pumping = false
    }
  }
}
