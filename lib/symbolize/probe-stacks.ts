/**
 * The stacks of one probe, and the way to their symbols.
 */
import { readlinkSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import type { Hit, HitStacks, Stack } from '../capture/hit.js'
import type { StackProgram } from '../capture/stack-code.js'
import type { Ring } from '../delivery/ring.js'
import { StackTable } from '../delivery/stack-table.js'
import { follow } from '../follow.js'
import type { Native } from '../native.js'
import type { StackFrame } from './frame.js'
import { symbolizer } from './symbolizer.js'

/** Inode of the initial pid namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h), whose numbers hits carry. */
const INITIAL_PID_NAMESPACE = 'pid:[4026531836]'

/** A process whose stacks keep coming is looked at again so often, in milliseconds: it may call exec. */
const LOOK_AGAIN_MS = 500
/** Longest wait for the mappings of the targets. */
const MAX_SEE_MS = 10_000
/** Of how many processes is remembered when they were looked at. */
const MAX_LOOKED_AT = 4096

/** Receives stacks from the attach on until `close`, and explains them also afterwards. */
export class ProbeStacks implements HitStacks {
  /** Whether numbers of processes in records are those of our /proc. */
  readonly #seesProcesses = readlinkSync('/proc/self/ns/pid') === INITIAL_PID_NAMESPACE
  readonly #lookedAtMs = new Map<number, number>()
  #closed = false

  private constructor(
    private readonly ring: Ring,
    private readonly atSites: boolean,
    private readonly table: StackTable,
    private readonly leave: () => void,
  ) {}

  /**
   * Begins to receive.
   * @param atSites - whether the first address of each stack is that of the site
   * @param depth - most addresses of a stack
   * @throws {UprobeError} as `createLargeMap`, and `ERR_UPROBE_LIMIT` if no thread can be started
   */
  static async open(native: Native, ring: Ring, atSites: boolean, depth: number): Promise<ProbeStacks> {
    const sinkId = ring.newProbeId()
    const leave = symbolizer.use()
    try {
      const table = await StackTable.open(native, sinkId, depth, ({ pid }) => stacks.#see(pid))
      const stacks = new ProbeStacks(ring, atSites, table, leave)
      ring.addSink(sinkId, table)
      return stacks
    } catch (error) {
      leave()
      throw error
    }
  }

  /** What the capture programs need. */
  get program(): StackProgram {
    return this.table.program
  }

  at(view: DataView, at: number): Stack | null {
    return this.table.at(view, at)
  }

  symbolize({ pid, addresses }: Stack, { timestamp, site }: Pick<Hit, 'timestamp' | 'site'>): Promise<readonly StackFrame[]> {
    return symbolizer.symbolize({
      pid: this.#seesProcesses ? pid : null,
      timeNs: timestamp,
      addresses,
      site: this.atSites ? { path: site.path, fileOffset: site.fileOffset } : null,
    })
  }

  /**
   * Has the mappings of the target read before its first hit, since it may exit right after it. A file that it maps may be on a file system that does not answer; the attach does not wait for that.
   * @throws {UprobeError} `ERR_UPROBE_LIMIT` if there is no descriptor or memory left for it
   */
  async seeTargets(pids: readonly number[], signal: AbortSignal): Promise<void> {
    const enough = new AbortController()
    const unfollow = follow(signal, enough)
    try {
      await Promise.race([
        Promise.all(pids.map((pid) => symbolizer.see(pid, true))),
        setTimeout(MAX_SEE_MS, undefined, { signal: enough.signal }),
      ])
    } catch (error) {
      signal.throwIfAborted()
      throw error
    } finally {
      unfollow()
      enough.abort()
    }
  }

  /** No more stacks come. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.ring.removeSink(this.table.program.sinkId)
    this.table.close()
    this.leave()
  }

  #see(pid: number): void {
    const nowMs = performance.now()
    if (!this.#seesProcesses || nowMs - (this.#lookedAtMs.get(pid) ?? -LOOK_AGAIN_MS) < LOOK_AGAIN_MS) return
    if (this.#lookedAtMs.size >= MAX_LOOKED_AT) this.#lookedAtMs.clear()
    this.#lookedAtMs.set(pid, nowMs)
    // If the thread ends meanwhile, whoever asks for frames is told.
    symbolizer.see(pid, false).catch(() => undefined)
  }
}
