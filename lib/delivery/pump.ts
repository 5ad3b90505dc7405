/**
 * When batches are taken: at a ring of the reader, and as long as more wait, one in each turn of the event loop.
 *
 * A flood of hits must not keep the host from its work, and Node may call for many rings in one turn. But a turn of the event loop, and a look for what is mostly not there, take as long as a batch of some hundred
 * hits; so where nothing waits behind a batch, the next ring is waited for, as long as this turn is young.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'

/** Batches that are taken at rings of one turn may take so long together. */
const TURN_MS = 1
/** Node calls for the rings of one turn one after another, so where this has passed between two of them there was a turn. */
const BETWEEN_TURNS_MS = 0.05

/** Where batches come from. */
export interface PumpHost {
  /** Takes a batch and delivers it; returns whether there was one. */
  take(): boolean
  /** Whether one waits. For one that comes later there is a ring. */
  waits(): boolean
  /** Told of an error of `take`. */
  onError(error: unknown): void
}

/** See the module's comment. */
export class Pump {
  #pumping = false
  /** When the turn began, or some time later. */
  #turnMs = -Infinity
  /** When the last batch was delivered. */
  #deliveredMs = -Infinity

  /** @param nowMs - a clock */
  constructor(
    private readonly host: PumpHost,
    private readonly nowMs = () => performance.now(),
  ) {}

  /** To be called for each ring. */
  ring(): void {
    if (this.#pumping) return
    const nowMs = this.nowMs()
    if (nowMs - this.#deliveredMs > BETWEEN_TURNS_MS) this.#turnMs = nowMs
    try {
      if (this.#takeOne()) this.#goOn().catch(this.host.onError)
    } catch (error) {
      this.host.onError(error)
    }
  }

  /** Returns whether another turn is due. */
  #takeOne(): boolean {
    if (!this.host.take()) return false
    this.#deliveredMs = this.nowMs()
    return this.#deliveredMs - this.#turnMs > TURN_MS || this.host.waits()
  }

  async #goOn(): Promise<void> {
    this.#pumping = true
    try {
      do {
        await nextTurn()
        this.#turnMs = this.nowMs()
      } while (this.#takeOne())
    } finally {
      this.#pumping = false
    }
  }
}
