/**
 * When batches are taken: at a ring of the reader, and as long as more wait, one in each turn of the event loop.
 *
 * A flood of hits must not keep the host from its work, and Node may answer a thousand rings in one turn. But a turn of the event loop, and a look for what is mostly not there, take as long as a batch of some
 * hundred hits; so where nothing waits behind a batch, the next ring is answered as well, as long as this turn is young.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'

/** Rings of one turn are answered for so long, with all that listeners have left for when they have returned. */
const TURN_MS = 1

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
    if (this.#isOver() || this.#takeOne()) void this.#goOn()
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
      this.host.onError(error)
    }
    return this.#isOver() || this.host.waits()
  }

  #beginTurn(): void {
    this.#turnMs = this.nowMs()
    // Before what waits for the next turn goes on, since that asks later. Without a reference it runs at the end of this turn, and keeps no process alive.
    setImmediate(() => {
      this.#turnMs = null
    }).unref()
  }

  async #goOn(): Promise<void> {
    this.#pumping = true
    try {
      do {
        await nextTurn()
      } while (this.#takeOne())
    } finally {
      this.#pumping = false
    }
  }
}
