/** A hit as one line: JSON, or columns for people. */
import type { Hit, StackFrame } from '../index.js'
import { escapeForDisplay } from '../log.js'
import { displayArg, hex, jsonLine } from './text.js'

const NS_PER_MS = 1_000_000n

export class HitFormat {
  readonly #json: boolean
  /** Wall clock minus CLOCK_MONOTONIC, in milliseconds; hits carry the latter. */
  readonly #epochMs = Date.now() - Number(process.hrtime.bigint() / NS_PER_MS)

  constructor(json: boolean) {
    this.#json = json
  }

  line(hit: Hit): string {
    return this.#json ? jsonLine(hit) : this.#columns(hit)
  }

  /** A hit with its stack: below it a line a frame, or in JSON the frames instead of the addresses. */
  lineWithStack(hit: Hit, frames: readonly StackFrame[]): string {
    if (!this.#json) return [this.#columns(hit), ...frames.map(displayFrame)].join('\n')
    const { stack } = hit
    return jsonLine({ ...hit.toJSON(), stack: stack !== null && 'unavailable' in stack ? stack : frames.map(frameJson) })
  }

  /** As in `14:03:22.118  postgres 4242/4242     usdt:postgresql:query__start  "select 1"`. */
  #columns(hit: Hit): string {
    const task = `${escapeForDisplay(hit.comm)} ${hit.pid}/${hit.tid}`
    return `${this.#clock(hit.timestamp)}  ${task.padEnd(24)}  ${escapeForDisplay(hit.probe)}  ${hit.args.map(displayArg).join(', ')}`.trimEnd()
  }

  /** Local time of day with milliseconds. */
  #clock(timestampNs: bigint): string {
    const date = new Date(this.#epochMs + Number(timestampNs / NS_PER_MS))
    const two = (value: number): string => String(value).padStart(2, '0')
    return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, '0')}`
  }
}

/** As in `    malloc+0x1c (/lib/libc.so.6)`; without a name `    0x2724a (/lib/libc.so.6)`, by the offset in the file, or `    0x7f…`. */
function displayFrame({ address, symbol, offset, module, fileOffset }: StackFrame): string {
  const place = symbol === null ? hex(fileOffset ?? address) : `${escapeForDisplay(symbol)}+${hex(offset ?? 0n)}`
  return `    ${place}${module === null ? '' : ` (${escapeForDisplay(module)})`}`
}

function frameJson({ address, symbol, offset, module, fileOffset, buildId }: StackFrame): object {
  return { address: hex(address), symbol, offset: hex(offset), module, fileOffset: hex(fileOffset), buildId }
}
