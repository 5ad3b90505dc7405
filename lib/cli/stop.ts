/**
 * The wish to stop, wherever it comes from: a signal, the end of `-d`, the last hit of `-n`, a reader of standard output that left.
 *
 * It is an AbortSignal, which the library takes as the wish to detach. SIGINT and SIGTERM stay caught until the command is through, so that a second one,
 * of an impatient user or a process manager, cannot end the process half-way through detaching. If by then only a reader of the output that does not
 * read is waited for, the second signal means not to wait for it.
 */
import type { Output } from './output.js'

/** Why a command stops. */
export type StopReason = 'signal' | 'duration' | 'enough' | 'reader-left'

const SIGNALS = ['SIGINT', 'SIGTERM'] as const

export class Stop {
  readonly #controller = new AbortController()
  readonly #output: Output
  #timer: NodeJS.Timeout | undefined
  #reason: StopReason | undefined
  #detached = false

  constructor(output: Output) {
    this.#output = output
    for (const signal of SIGNALS) process.on(signal, this.#onSignal)
    output.left.addEventListener('abort', this.#onReaderLeft, { once: true })
  }

  readonly #onSignal = (): void => {
    if (this.#detached && this.#output.blocked) this.#output.abandon()
    this.request('signal')
  }

  readonly #onReaderLeft = (): void => this.request('reader-left')

  /** Aborts when the command shall stop. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Why, once it was asked for; the first reason counts. */
  get reason(): StopReason | undefined {
    return this.#reason
  }

  request(reason: StopReason): void {
    if (this.#reason !== undefined) return
    this.#reason = reason
    this.#controller.abort()
  }

  /** Asks for the stop after a while. */
  after(durationMs: number): void {
    this.#timer = setTimeout(() => this.request('duration'), durationMs)
  }

  /** Says that nothing is attached any more. */
  detached(): void {
    this.#detached = true
  }

  /** Gives the signals back. */
  dispose(): void {
    clearTimeout(this.#timer)
    for (const signal of SIGNALS) process.off(signal, this.#onSignal)
    this.#output.left.removeEventListener('abort', this.#onReaderLeft)
  }
}
