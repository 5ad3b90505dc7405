/**
 * Standard output, as a program that may be slower than us or may leave.
 *
 * Node buffers without a bound what a stream does not take. So whoever prints asks after each line whether the reader keeps up, and waits for
 * `ready()` if not. Meanwhile hits stay in the probe's bounded queue, where a loss is counted, instead of growing our memory.
 *
 * A reader that leaves early (`uprobe trace … | head`) makes the write fail with EPIPE. That is a wish to stop, not an error: `gone` becomes true,
 * later lines are discarded, and the command detaches and ends with success.
 */
import type { Writable } from 'node:stream'
import { isSystemCallError } from '../errors.js'

export class Output {
  readonly #stream: Writable
  readonly #left = new AbortController()
  #error: Error | undefined

  constructor(stream: Writable) {
    this.#stream = stream
    stream.on('error', (error: Error) => {
      if (!(isSystemCallError(error) && error.code === 'EPIPE')) this.#error ??= error
      this.#left.abort()
    })
  }

  /** Aborts when nobody reads any more. */
  get left(): AbortSignal {
    return this.#left.signal
  }

  /** Whether nobody reads any more; lines are then discarded. */
  get gone(): boolean {
    return this.#left.signal.aborted
  }

  /** Whether lines wait for a reader that does not keep up. */
  get blocked(): boolean {
    return this.#stream.writableNeedDrain && !this.gone
  }

  /** Writes one line. Answers false if the reader does not keep up: wait for `ready()` before the next one. */
  line(text: string): boolean {
    if (this.gone) return true
    return this.#stream.write(`${text}\n`)
  }

  /** Resolves when the reader has caught up, or is gone. */
  ready(): Promise<void> {
    if (!this.blocked) return Promise.resolve()
    return new Promise((resolve) => {
      const settle = (): void => {
        this.#stream.off('drain', settle)
        this.left.removeEventListener('abort', settle)
        resolve()
      }
      this.#stream.once('drain', settle)
      this.left.addEventListener('abort', settle, { once: true })
    })
  }

  /** Writes lines at the pace of the reader; stops when it is gone. */
  async lines(texts: Iterable<string>): Promise<void> {
    for (const text of texts) {
      if (this.gone) return
      if (!this.line(text)) await this.ready()
    }
  }

  /** Gives up on a reader that does not read: what waits is dropped. */
  abandon(): void {
    this.#left.abort()
    this.#stream.destroy()
  }

  /** Throws what made a write fail, such as a full disk; a reader that left is no failure. */
  check(): void {
    if (this.#error !== undefined) throw this.#error
  }
}
