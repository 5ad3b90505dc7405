/**
 * /tmp/perf-PID.map: what a JIT compiler says of the code that it made, a line each: start, size, name (tools/perf/Documentation/jit-interface.txt). V8 writes it with --perf-basic-prof.
 *
 * Anybody can put such a file there, and we are root. So it is believed only if it is a regular file with one name, no symbolic link, and belongs to the user of the process or to root, as perf has it; it is
 * looked for in the root of the process, under the number that the process has in its own pid namespace; and what is read of it is bounded. It is opened when the process is seen, or later, so
 * that it can be read when the process is gone, and read on when it has grown.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { loadNative } from '../native.js'
import { readTextOrNull } from '../read-text.js'
import { saysAbsent } from '../shortage.js'
import { Mounts } from '../target/mounts.js'

/** What is read of one file: a Node.js server that has run for days has some ten megabytes. */
const MAX_BYTES = 128 * 1024 * 1024
const MAX_ENTRIES = 2 ** 20
/** Longest line; longer ones are left out. */
const MAX_LINE_BYTES = 4096
const PIECE_BYTES = 1024 * 1024
/** Entries that begin before an address and may still cover it. */
const MAX_LOOK_BACK = 64
/** How much of what was read before must still be there for what follows it to be believed. */
const TAIL_BYTES = 256

interface Entry {
  readonly start: number
  readonly size: number
  readonly name: string
  /** The later one is right where two overlap: code was moved, or its memory used again. */
  readonly sequence: number
}

/** Compiled code at an address. */
export interface CompiledCode {
  readonly name: string
  readonly start: bigint
}

/** The map of one process. */
export class PerfMap {
  #fd: number | null = null
  #read = 0
  /** The end of what was read. */
  #tail = Buffer.alloc(0)
  /** Somebody else has written the file anew. */
  #overwritten = false
  /** The beginning of a line whose end is yet to be written. */
  #rest = Buffer.alloc(0)
  #skipping = false
  #sequence = 0
  readonly #entries = new Map<number, Entry>()
  #sorted: Entry[] | null = []

  private constructor(
    private readonly directory: string,
    private readonly name: string,
    private readonly uids: ReadonlySet<number>,
    private readonly isStill: () => boolean,
    private readonly mayHang: boolean,
  ) {
    this.#open()
  }

  /**
   * @param procDirectory - /proc/PID of the process, which is there
   * @param isStill - whether the process is there and runs the program that the map is wanted of
   */
  static of(procDirectory: string, isStill: () => boolean): PerfMap {
    const status = readTextOrNull(`${procDirectory}/status`) ?? ''
    const numbers = (field: string): number[] => (new RegExp(`^${field}:\\s+(.*)$`, 'm').exec(status)?.[1] ?? '').split(/\s+/).map(Number)
    // Of a thread that stands in for its leader the map is the leader's. The innermost namespace is the last.
    const pid = numbers('NStgid').at(-1) ?? 0
    const mayHang = Mounts.of(procDirectory).mayHangPath('own', '/tmp')
    return new PerfMap(`${procDirectory}/root`, `perf-${pid}.map`, new Set([0, ...numbers('Uid')]), isStill, mayHang)
  }

  /** What was compiled to an address. */
  find(address: bigint): CompiledCode | null {
    this.#catchUp()
    const found = this.#search(Number(address))
    return found === null ? null : { name: found.name, start: BigInt(found.start) }
  }

  /** Closes the file. Idempotent. */
  close(): void {
    if (this.#fd !== null) closeSync(this.#fd)
    this.#fd = null
  }

  #open(): void {
    if (this.mayHang) return
    try {
      const native = loadNative()
      // Links of the container's root stay in it; the file itself must be none.
      const tmp = native.openInRoot(this.directory, '/tmp')
      try {
        const fd = openSync(
          `/proc/self/fd/${tmp}/${this.name}`,
          constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY,
        )
        const stat = fstatSync(fd)
        if (stat.isFile() && stat.nlink === 1 && this.uids.has(stat.uid) && this.isStill()) this.#fd = fd
        else closeSync(fd)
      } finally {
        native.closeFd(tmp)
      }
    } catch (error) {
      // There is none, or it is a link.
      if (!saysAbsent(error)) throw error
    }
  }

  /** Reads what was written since. */
  #catchUp(): void {
    if (this.#overwritten) return
    if (this.#fd === null) this.#open()
    if (this.#fd === null) return
    const piece = Buffer.allocUnsafe(PIECE_BYTES)
    while (this.#read < MAX_BYTES && this.#entries.size < MAX_ENTRIES) {
      const bytes = readSync(this.#fd, piece, 0, PIECE_BYTES, this.#read)
      if (bytes === 0) return
      if (!this.#isOwn(this.#fd)) {
        this.#overwritten = true
        return
      }
      this.#read += bytes
      this.#tail = Buffer.concat([this.#tail, piece.subarray(0, bytes)]).subarray(-TAIL_BYTES)
      this.#take(Buffer.concat([this.#rest, piece.subarray(0, bytes)]))
    }
  }

  /**
   * Whether what was read just now is of the program that the map is wanted of. The next one of this number, after an exec or when the number is handed out again, writes its map into the same
   * file, from the beginning. What it leaves does not look like what was there, since addresses are random; where nothing was read yet, the process must be there.
   */
  #isOwn(fd: number): boolean {
    if (this.#tail.length === 0) return this.isStill()
    const now = Buffer.alloc(this.#tail.length)
    return readSync(fd, now, 0, now.length, this.#read - now.length) === now.length && now.equals(this.#tail)
  }

  #take(text: Buffer): void {
    let from = 0
    for (let end = text.indexOf(10); end >= 0; end = text.indexOf(10, from)) {
      if (!this.#skipping && end - from <= MAX_LINE_BYTES) this.#line(text.toString('utf8', from, end))
      this.#skipping = false
      from = end + 1
    }
    this.#skipping ||= text.length - from > MAX_LINE_BYTES
    this.#rest = this.#skipping ? Buffer.alloc(0) : Buffer.from(text.subarray(from))
  }

  #line(line: string): void {
    const [, start = '', size = '', name = ''] = /^(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) (.+)$/.exec(line) ?? []
    const entry = { start: Number.parseInt(start, 16), size: Number.parseInt(size, 16), name, sequence: this.#sequence++ }
    if (name === '' || entry.start + entry.size > Number.MAX_SAFE_INTEGER || entry.size === 0) return
    this.#entries.set(entry.start, entry)
    this.#sorted = null
  }

  #search(address: number): Entry | null {
    this.#sorted ??= [...this.#entries.values()].sort((a, b) => a.start - b.start)
    const sorted = this.#sorted
    let low = 0
    let high = sorted.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((sorted[middle]?.start ?? 0) <= address) low = middle + 1
      else high = middle
    }
    let best: Entry | null = null
    for (let place = low - 1; place >= 0 && place > low - 1 - MAX_LOOK_BACK; place--) {
      const entry = sorted[place]
      if (entry !== undefined && address - entry.start < entry.size && (best === null || entry.sequence > best.sequence)) best = entry
    }
    return best
  }
}
