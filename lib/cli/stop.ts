/**
 * The wish to stop, wherever it comes from: a signal, the end of `-d`, the last hit of `-n`, a reader of standard output that left.
 *
 * It is an AbortSignal, which the library takes as the wish to detach. The signals stay caught until the process ends, so that a second one,
 * of an impatient user or a process manager, cannot cut detaching or the closing counts short. If by then nothing but a reader of standard output that does not
 * read is waited for, the second signal means not to wait for it.
 */
import { warn } from './failure.js'
import type { Output } from './output.js'

/** Why a command stops. */
export type StopReason = 'signal' | 'duration' | 'enough' | 'reader-left'

/** SIGHUP is the terminal that was closed: without us, nobody would take a claim out of the target. */
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

export class Stop {
  readonly #controller = new AbortController()
  readonly #output: Output
  readonly #json: boolean
  #timer: NodeJS.Timeout | undefined
  #reason: StopReason | undefined
  #detached = false

  /** @param json - the form of what is said on standard error */
  constructor(output: Output, json: boolean) {
    this.#output = output
    this.#json = json
    for (const signal of SIGNALS) process.on(signal, this.#onSignal)
    output.left.addEventListener('abort', this.#onReaderLeft, { once: true })
  }

  readonly #onSignal = (): void => {
    if (this.#detached && this.#output.waiting) this.#abandonOutput()
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

  /** Forgets what could still ask for the stop, but for the signals. */
  dispose(): void {
    clearTimeout(this.#timer)
    this.#output.left.removeEventListener('abort', this.#onReaderLeft)
  }

  /** Ends the process: Node cannot take back what it has handed to a pipe, and would wait until it is read. */
  #abandonOutput(): never {
    warn('Standard output is not being read. What waited there is dropped, the closing counts with it.', this.#json)
    process.exit()
  }
}
