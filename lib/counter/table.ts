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
import type { CounterMap, FileCounter } from './read.js'

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

/** A probe that holds counters of one file. */
export interface FileHolder extends Omit<CounterHolder, 'sites'> {
  readonly identity: FileIdentity
  readonly path: string
  readonly mode: CounterMode
  /** By their virtual address in the file. */
  readonly counters: CounterMap
  /** Its sites in the file. */
  readonly sites: ReadonlyArray<HeldSite & { readonly counterVaddr: bigint | null }>
}

/** One counter, and its holders. */
export interface TableEntry {
  readonly identity: FileIdentity
  readonly path: string
  readonly counter: FileCounter
  readonly mode: CounterMode
  readonly holders: ReadonlySet<CounterHolder>
}

/** See the module's comment. A probe is entered once for each of its files, whose counters are told apart when somebody asks: it may have thousands, and few ask. */
export class CounterTable {
  readonly #files = new Map<string, Set<FileHolder>>()

  /**
   * Notes that a probe holds counters.
   * @returns takes it back; idempotent
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_MODE` if others hold one of them in the other mode
   */
  hold(holder: FileHolder): () => void {
    const key = identityKey(holder.identity)
    const holders = this.#files.get(key) ?? new Set<FileHolder>()
    for (const other of holders) if (other.mode !== holder.mode) refuseShared(holder, other)
    this.#files.set(key, holders)
    holders.add(holder)
    return () => {
      holders.delete(holder)
      if (holders.size === 0 && this.#files.get(key) === holders) this.#files.delete(key)
    }
  }

  /** The counters that a tracer's probes hold, with all their holders. */
  heldBy(tracer: object): readonly TableEntry[] {
    return [...this.#files.values()].flatMap((holders) => entriesOf(holders)).filter((entry) => holds(entry, tracer))
  }
}

function holds({ holders }: TableEntry, tracer: object): boolean {
  return [...holders].some((holder) => holder.tracer === tracer)
}

/** The counters of one file, in the order in which they came to be held. */
function entriesOf(fileHolders: ReadonlySet<FileHolder>): TableEntry[] {
  const entries = new Map<bigint, TableEntry & { readonly holders: Set<CounterHolder> }>()
  for (const { identity, path, mode, counters, sites, tracer, isActive, processes } of fileHolders) {
    const sitesOf = new Map<bigint | null, HeldSite[]>([...counters.keys()].map((vaddr) => [vaddr, []]))
    for (const { counterVaddr, probe, fileOffset } of sites) sitesOf.get(counterVaddr)?.push({ probe, fileOffset })
    for (const counter of counters.values()) {
      const { vaddr } = counter
      const entry = entries.get(vaddr) ?? { identity, path, counter, mode, holders: new Set() }
      entries.set(vaddr, entry)
      entry.holders.add({ tracer, sites: sitesOf.get(vaddr) ?? [], isActive, processes })
    }
  }
  return [...entries.values()]
}

/** Throws if two holders of different modes share a counter. */
function refuseShared(holder: FileHolder, other: FileHolder): void {
  const shared = [...holder.counters.keys()].find((vaddr) => other.counters.has(vaddr))
  if (shared === undefined) return
  const names = [...new Set(other.sites.filter(({ counterVaddr }) => counterVaddr === shared).map(({ probe }) => probe))].join(', ')
  throw new UprobeError(
    'ERR_UPROBE_COUNTER_MODE',
    `The counter is held with counter: '${other.mode}' by ${names}, and can be held in one way at a time. Use '${other.mode}' here too, or detach the other probe first.`,
  )
}

/** The entries of one probe in the table. One that gives way takes them out, so that the counters are free for either mode. */
export class ProbeHolds {
  #releases: Array<() => void> = []

  constructor(
    private readonly table: CounterTable,
    private readonly held: readonly FileHolder[],
  ) {}

  /**
   * Enters all, or none.
   * @returns whether they were out
   * @throws {UprobeError} as {@link CounterTable.hold}
   */
  enter(): boolean {
    if (this.#releases.length > 0) return false
    try {
      for (const holder of this.held) this.#releases.push(this.table.hold(holder))
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
