/**
 * The table of shared counters: who in this process holds which counter, and how.
 *
 * A counter is identified by its file and its place in it; sites that were inlined, probes of several names, and probes of several tracers may share one. The
 * kernel's own rule is that a site has one counter offset, whoever asks (`alloc_uprobe`, kernel/events/uprobes.c), so a counter is either counted by
 * the kernel or claimed, for all tracers of the process alike.
 */
import { UprobeError } from '../errors.js'
import { type FileIdentity, identityKey } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import type { FileCounter } from './read.js'

/** How a counter is held: the kernel counts, or the package has claimed it by the most significant bit. */
export type CounterMode = 'kernel' | 'msb'

/** A site of a probe that holds a counter. */
export interface HeldSite {
  /** Full name of the probe, such as `usdt:postgresql:query__start`. */
  readonly probe: string
  /** Where it is in the file. */
  readonly fileOffset: bigint
}

/** A probe that holds a counter in some processes. */
export interface CounterHolder {
  /** Whose probe it is. */
  readonly tracer: object
  /** The sites of its file that share the counter. */
  readonly sites: readonly HeldSite[]
  /** Whether its registrations and bits are in at the moment. */
  isActive(): boolean
  /** Calls back for each process that it holds the counter in, one after another. */
  processes(): AsyncIterable<TargetProcess>
}

/** One counter, and its holders. */
export interface TableEntry {
  readonly identity: FileIdentity
  readonly path: string
  readonly counter: FileCounter
  readonly mode: CounterMode
  readonly holders: ReadonlySet<CounterHolder>
}

interface Entry extends TableEntry {
  readonly holders: Set<CounterHolder>
}

/** See the module's comment. */
export class CounterTable {
  readonly #entries = new Map<string, Entry>()

  /**
   * Notes that a probe holds a counter.
   * @returns takes it back; idempotent
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_MODE` if others hold it in the other mode
   */
  hold(identity: FileIdentity, path: string, counter: FileCounter, mode: CounterMode, holder: CounterHolder): () => void {
    const key = `${identityKey(identity)}:${counter.vaddr}`
    const entry = this.#entries.get(key) ?? { identity, path, counter, mode, holders: new Set() }
    if (entry.mode !== mode) {
      const names = [...new Set([...entry.holders].flatMap(({ sites }) => sites.map(({ probe }) => probe)))].join(', ')
      throw new UprobeError(
        'ERR_UPROBE_COUNTER_MODE',
        `The counter is held with counter: '${entry.mode}' by ${names}, and can be held in one way at a time. Use '${entry.mode}' here too, or detach the other probe first.`,
      )
    }
    this.#entries.set(key, entry)
    entry.holders.add(holder)
    return () => {
      entry.holders.delete(holder)
      if (entry.holders.size === 0 && this.#entries.get(key) === entry) this.#entries.delete(key)
    }
  }

  /** The counters that a tracer's probes hold, with all their holders. */
  heldBy(tracer: object): readonly TableEntry[] {
    return [...this.#entries.values()].filter(({ holders }) => [...holders].some((holder) => holder.tracer === tracer))
  }
}

/** A counter that a probe holds. */
export interface HeldByProbe {
  readonly identity: FileIdentity
  readonly path: string
  readonly counter: FileCounter
  readonly holder: CounterHolder
}

/** The entries of one probe in the table. One that gives way takes them out, so that the counters are free for either mode. */
export class ProbeHolds {
  #releases: Array<() => void> = []

  constructor(
    private readonly table: CounterTable,
    private readonly mode: CounterMode,
    private readonly held: readonly HeldByProbe[],
  ) {}

  /**
   * Enters all, or none.
   * @returns whether they were out
   * @throws {UprobeError} as {@link CounterTable.hold}
   */
  enter(): boolean {
    if (this.#releases.length > 0) return false
    try {
      for (const { identity, path, counter, holder } of this.held) {
        this.#releases.push(this.table.hold(identity, path, counter, this.mode, holder))
      }
    } catch (error) {
      this.leave()
      throw error
    }
    return true
  }

  /** Takes them out. Idempotent. */
  leave(): void {
    for (const release of this.#releases.splice(0)) release()
  }
}

/** The table of this process; a Worker has its own. */
export const counterTable = new CounterTable()
