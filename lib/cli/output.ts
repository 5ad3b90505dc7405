/**
 * Standard output, as a program that may be slower than us or may leave.
 *
 * Node buffers without a bound what a stream does not take. So whoever prints asks after each line whether the reader keeps up, and waits for
 * `ready()` if not. Meanwhile hits stay in the probe's bounded queue, where a loss is counted, instead of growing our memory.
 *
 * A reader that leaves early (`uprobe trace … | head`) makes the write fail with EPIPE. That is a wish to stop, not an error: `gone` becomes true,
 * later lines are discarded, and the command detaches and ends with success.
 */
import { writeSync } from 'node:fs'
import type { Writable } from 'node:stream'
import { isSystemCallError } from '../errors.js'

/** A pipe whose reader left says EPIPE, a socket that it left unread bytes in says ECONNRESET; a parent that runs on Node gives us sockets. */
const READER_LEFT = new Set(['EPIPE', 'ECONNRESET'])

/** Characters that go into one write, which costs as much as forming some ten lines. */
const CHUNK_LENGTH = 16_384

export class Output {
  readonly #stream: Writable
  readonly #left = new AbortController()
  #error: Error | undefined

  constructor(stream: Writable) {
    this.#stream = stream
    stream.on('error', () => this.#left.abort())
  }

  readonly #onWritten = (error: Error | null | undefined): void => {
    if (error && !(isSystemCallError(error) && READER_LEFT.has(error.code))) this.#error ??= error
  }

  /** Aborts when nobody reads any more. */
  get left(): AbortSignal {
    return this.#left.signal
  }

  /** Whether nobody reads any more; lines are then discarded. */
  get gone(): boolean {
    return this.#left.signal.aborted
  }

  /** Whether there are lines that the reader has yet to take. */
  get waiting(): boolean {
    return this.#stream.writableLength > 0 && !this.gone
  }

  /** Writes one line. Answers false if the reader does not keep up: wait for `ready()` before the next one. */
  line(text: string): boolean {
    if (this.gone) return true
    return this.#stream.write(`${text}\n`, this.#onWritten)
  }

  /** Resolves when the reader has caught up, or is gone. */
  ready(): Promise<void> {
    if (!this.#stream.writableNeedDrain || this.gone) return Promise.resolve()
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

  /** Writes lines at the pace of the reader, until it has taken all that was ever written, or is gone. */
  async lines(texts: Iterable<string>): Promise<void> {
    let gathered: string[] = []
    let length = 0
    for (const text of texts) {
      gathered.push(text)
      length += text.length
      if (length < CHUNK_LENGTH) continue
      if (this.gone) return
      if (!this.line(gathered.join('\n'))) await this.ready()
      gathered = []
      length = 0
    }
    if (gathered.length > 0) this.line(gathered.join('\n'))
    // A write that fails says so later; callbacks come in the order of the writes.
    if (!this.gone) await new Promise<void>((resolve) => this.#stream.write('', () => resolve()))
  }

  /** Throws what made a write fail, such as a full disk; a reader that left is no failure. */
  check(): void {
    if (this.#error !== undefined) throw this.#error
  }
}

const STANDARD_OUTPUT = 1
/** How long to wait for a reader who does not keep up. */
const RETRY_MS = 5

/**
 * Writes texts, each with a newline, to standard output, to which nobody else writes, at the pace of the reader; one that leaves is no failure. It does without Node's streams, whose loading takes
 * longer than most of what is written here. A write waits for the reader, unless somebody made our end a non-blocking one.
 * @throws what makes a write fail, such as a full disk
 */
export async function printTexts(texts: Iterable<string>): Promise<void> {
  for (const text of texts) {
    // Given as a string, it is encoded on the way.
    let left: string | Buffer = `${text}\n`
    while (left.length > 0) {
      try {
        const written: number = typeof left === 'string' ? writeSync(STANDARD_OUTPUT, left) : writeSync(STANDARD_OUTPUT, left)
        left = written === Buffer.byteLength(left) ? '' : bytesOf(left).subarray(written)
      } catch (error) {
        if (!isSystemCallError(error)) throw error
        if (READER_LEFT.has(error.code)) return
        if (error.code !== 'EAGAIN') throw error
        await new Promise<void>((resolve) => setTimeout(resolve, RETRY_MS))
      }
    }
  }
}

function bytesOf(text: string | Buffer): Buffer {
  return typeof text === 'string' ? Buffer.from(text) : text
}
