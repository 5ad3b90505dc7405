/**
 * What should be: processes, counters, the kernel's registrations and claims, as simple sets. The rules are those of docs/counters.md, written down a second time and
 * without any of the package's code.
 */

/** The counters of the target program test/targets/usdt.c that take part, and how many sites share each. */
export const SITES = { gated: 1, shared: 3 } as const
export type Counter = keyof typeof SITES
export const COUNTERS = Object.keys(SITES) as Counter[]

export const CLAIMED = 0x8000

/** Two tracers of this process, and one in a process that is killed now and then. */
export type Agent = 'first' | 'second' | 'mortal'

/** A probe of this package. `scope` is a process, or `null` for every process. */
export interface ModelProbe {
  readonly id: string
  readonly agent: Agent
  readonly counter: Counter
  readonly mode: 'kernel' | 'msb'
  readonly scope: number | null
  /** When it was attached, by the model's clock. */
  readonly since: number
  state: 'attached' | 'paused'
}

/** A registration of another tool, at one site. */
export interface ModelForeign {
  readonly id: string
  readonly counter: Counter
  readonly site: number
  readonly scope: number | null
}

export interface ModelProcess {
  /** Set for a child that was forked and waits. */
  readonly parent: number | null
  /** By the model's clock. */
  readonly born: number
  readonly leaks: Record<Counter, number>
  /** Counters whose bit is set although no living claim covers the process: inherited, or left by a dead agent. */
  readonly bits: Set<Counter>
}

/** What a killed agent left: claims on a counter in some processes. */
interface Orphan {
  readonly counter: Counter
  readonly processes: readonly number[]
  /** When the claim was made. */
  readonly since: number
}

export class Model {
  readonly processes = new Map<number, ModelProcess>()
  readonly probes = new Map<string, ModelProbe>()
  readonly foreign = new Map<string, ModelForeign>()
  orphans: Orphan[] = []
  #next = 0
  #clock = 0

  /** Later than all before. */
  now(): number {
    return this.#clock++
  }

  newId(): string {
    return String(this.#next++)
  }

  addProcess(id: number, parent: number | null = null): ModelProcess {
    const of = parent === null ? undefined : this.processes.get(parent)
    const added: ModelProcess = { parent, born: this.now(), leaks: { gated: 0, shared: 0, ...of?.leaks }, bits: new Set() }
    this.processes.set(id, added)
    return added
  }

  /** Processes that are not children, in their order. */
  get targets(): number[] {
    return [...this.processes].filter(([, { parent }]) => parent === null).map(([id]) => id)
  }

  childOf(id: number): number | undefined {
    return [...this.processes].find(([, { parent }]) => parent === id)?.[0]
  }

  /** Probes that are switched on in a process. */
  covering(id: number, counter: Counter): ModelProbe[] {
    return [...this.probes.values()].filter(
      (probe) => probe.counter === counter && probe.state === 'attached' && (probe.scope === null || probe.scope === id),
    )
  }

  isClaimed(id: number, counter: Counter): boolean {
    return this.covering(id, counter).some(({ mode }) => mode === 'msb')
  }

  /** The value that a counter must have. */
  expected(id: number, counter: Counter): number {
    const { bits, leaks } = this.process(id)
    if (bits.has(counter) || this.isClaimed(id, counter)) return CLAIMED
    const foreign = [...this.foreign.values()].filter((one) => one.counter === counter && (one.scope === null || one.scope === id))
    const sites = this.covering(id, counter).length > 0 ? SITES[counter] : new Set(foreign.map(({ site }) => site)).size
    return sites + leaks[counter]
  }

  /** Claims that are held, paused or not: they keep kernel tracers away everywhere. */
  claims(counter: Counter): ModelProbe[] {
    return [...this.probes.values()].filter((probe) => probe.counter === counter && probe.mode === 'msb')
  }

  /** Whether there are claims for every process and all are paused: they clear what a new child inherited of a claim on its parent alone. */
  isKeptOff(counter: Counter): boolean {
    const everywhere = this.claimsEverywhere().filter((probe) => probe.counter === counter)
    return everywhere.length > 0 && everywhere.every(({ state }) => state === 'paused')
  }

  /** Claims for every process, paused or not. */
  claimsEverywhere(): ModelProbe[] {
    return [...this.probes.values()].filter(({ mode, scope }) => mode === 'msb' && scope === null)
  }

  /** Whether a claim that was paused clears children only when others that are switched on have had their time to claim them. */
  leavesChildren({ mode, scope, counter }: ModelProbe): boolean {
    const hasChildren = [...this.processes.values()].some(({ parent }) => parent !== null)
    return mode === 'msb' && scope === null && hasChildren && this.claims(counter).some(({ state }) => state === 'attached')
  }

  /** Registrations that the kernel counts, whoever made them. */
  isCounted(counter: Counter): boolean {
    const ours = [...this.probes.values()].some((p) => p.counter === counter && p.mode === 'kernel' && p.state === 'attached')
    return ours || [...this.foreign.values()].some((one) => one.counter === counter)
  }

  hasBits(counter: Counter, scope: number | null): boolean {
    return [...this.processes].some(([id, { bits }]) => (scope === null || scope === id) && bits.has(counter))
  }

  hasLeaks(counter: Counter, scope: number | null): boolean {
    return [...this.processes].some(([id, { leaks }]) => (scope === null || scope === id) && leaks[counter] > 0)
  }

  /** A bit goes where no living claim keeps it. */
  clearBit(id: number, counter: Counter): void {
    if (!this.isClaimed(id, counter)) this.processes.get(id)?.bits.delete(counter)
  }

  /** The end of a claim clears what a child inherited of it; a child that was there before the claim has its bit from another. */
  clearInherited(parent: number, counter: Counter, since: number): void {
    const child = this.childOf(parent)
    if (child !== undefined && this.process(child).born > since) this.clearBit(child, counter)
  }

  /**
   * A probe is paused, or about to be detached. A claim that is switched off clears the bit in its processes, whoever set it, unless a living claim keeps it; if it is for every
   * process, in children too, which have claims of their own.
   */
  switchOff(probe: ModelProbe): void {
    const { state, mode, scope, counter } = probe
    probe.state = 'paused'
    if (state === 'paused' || mode === 'kernel') return
    for (const id of scope === null ? this.processes.keys() : [scope]) this.clearBit(id, counter)
  }

  /**
   * The next agent that attaches, or a repair, clears what dead ones left, and what children inherited from it.
   * @param only - a repair sees to the claims on one process, and to its children
   */
  recover(only: number | null = null): void {
    for (const { counter, processes, since } of this.orphans) {
      for (const id of processes) {
        if (only !== null && id !== only) continue
        this.clearBit(id, counter)
        this.clearInherited(id, counter, since)
      }
    }
    this.orphans = this.orphans.flatMap((orphan) => {
      const processes = only === null ? [] : orphan.processes.filter((id) => id !== only)
      return processes.length === 0 ? [] : [{ ...orphan, processes }]
    })
  }

  /** Every probe and every other tool is gone. */
  clearAll(): void {
    this.probes.clear()
    this.foreign.clear()
    this.orphans = []
    for (const { bits } of this.processes.values()) bits.clear()
  }

  removeProcess(id: number): void {
    this.processes.delete(id)
    for (const [key, probe] of this.probes) if (probe.scope === id) this.probes.delete(key)
  }

  process(id: number): ModelProcess {
    const found = this.processes.get(id)
    if (found === undefined) throw new Error(`the model has no process ${id}`)
    return found
  }
}
