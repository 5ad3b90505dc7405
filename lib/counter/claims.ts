/**
 * The claims of one probe: on every counter of its sites, in every process it is for.
 *
 * Taking: guard all sites of the counters, so that the kernel cannot begin to count; read that nobody has counted; write the lease; set the bits; and only then does the probe's
 * breakpoint go in. Giving back: clear the bits, unless another claim covers the counter; the breakpoint comes out; look for children that inherited a bit; then lease and guards go.
 * Whoever is killed between two steps leaves a lease from which the next agent finds what to clear.
 *
 * A probe for every process learns of new ones from the kernel (newcomers.ts) and claims their counters: of a process that maps the file anew as soon as it is seen, since its probes are off until the bit is set,
 * which is reported; of a child of a claimed process a little later, since it was born with the bit, so that nothing is missed. What a child that has ended may have given to its own is found by the claim of its parent.
 *
 * Whoever switches the probe waits for none of that (turns.ts).
 */
import { existsSync } from 'node:fs'
import type { Ring } from '../delivery/ring.js'
import { UprobeError } from '../errors.js'
import type { Logger } from '../log.js'
import type { Native } from '../native.js'
import type { TargetFile } from '../target/file.js'
import { Newcomers } from '../target/newcomers.js'
import { parentOf, TargetProcess } from '../target/process.js'
import { processesMapping } from '../target/scan.js'
import { FoundProcesses } from './found.js'
import { Guard } from './guard.js'
import { clearInherited, type EndedClaim } from './inherited.js'
import { type ClaimContext, ProcessClaim } from './process-claim.js'
import type { FileCounter } from './read.js'
import { reached } from './steps.js'
import { Turns } from './turns.js'

/**
 * A process is told of when it maps the code; the loader maps the data after it, and may write over its end (`.bss`). So it is looked at again, after so many milliseconds each.
 */
const LOOKS_MS = [20, 200]

/**
 * A child is born with the bit as its parent has it, misses nothing, and is found by its parent's lease. So it is looked at only when it is so many milliseconds old, or when bits are to be set or cleared: a server
 * that forks a process for each request, which lives for some of them, must not cost a look each.
 */
const CHILD_LOOK_MS = 100

/**
 * A probe that is off leaves a child alone for so many milliseconds more where others hold the counters of its parent: one of them may be for every process, and have claimed the child by then. Sooner the bit would
 * seem to be nobody's, and be cleared.
 */
const OTHERS_LOOK_MS = 500

/** Children are taken to be born with the bits as they are so long after all were set or cleared: the kernel tells of a birth a little later. */
const SETTLED_MS = 50

/** The children of one that was told of are, too, if it is named within two seconds (native/sideband.cc). */
const FORKS_REMEMBERED_MS = 1000

/** How long the ends of processes are gathered before all others are walked through for inherited bits: a shell that forks and ends a child for each command must not cost a walk each. */
const SWEEP_MS = 1000

/** The counters of one file that are to be claimed. */
export interface ClaimRequest {
  readonly file: TargetFile
  readonly counters: readonly FileCounter[]
  /** `null` for every process that maps the file. */
  readonly processes: readonly TargetProcess[] | null
}

/** A process that came later. */
export interface Arrival {
  readonly pid: number
  /** Whether it ran without its counters for a while, so that hits may be missing. */
  readonly mayHaveMissed: boolean
}

/** Is told how far the claiming of many counters is; that of a few is not worth telling. */
export interface ClaimWatch {
  /** The bits of so many counters are about to be set. */
  begin(counters: number): void
  /** So many more are. */
  through(counters: number): void
}

/** Does what makes hits in a process seen that were not until then, for whoever has to know from when on they are. */
export type SeeLate = (pid: number, work: () => Promise<void>) => Promise<void>

/** What claims need of their probe. */
export interface ClaimsHost {
  readonly native: Native
  readonly ring: Ring
  readonly log: Logger
  context(): Promise<ClaimContext>
  /** A process came later and has its claim. */
  onArrival(arrival: Arrival): void
  /** Has the bits set in a process that came later and ran without them. */
  readonly seeLate: SeeLate
  onError(error: unknown): void
}

/** See the module's comment. */
export class CounterClaims {
  #context: ClaimContext | null = null
  #guards: Guard[] = []
  readonly #claims = new Set<ProcessClaim>()
  readonly #found: FoundProcesses
  /** When claims were made on children that had the bit. */
  readonly #inheritedAtMs = new WeakMap<ProcessClaim, number>()
  /** Claims that are to be cleared a little later, since others may want their bits. */
  readonly #clearedLate = new Set<ProcessClaim>()
  /** Claims whose bits are clear or gone, and that are covered by no other, whose children are not looked for yet. */
  readonly #ended: ProcessClaim[] = []
  readonly #newcomers: Newcomers[] = []
  readonly #timers = new Set<NodeJS.Timeout>()
  /** Children that are not looked at yet, each as what looks at it. */
  readonly #young = new Map<NodeJS.Timeout, () => Promise<void>>()
  #walkWaits = false
  #taken = false
  /** Whether the bits are to be set. While that is about to be done, what is found is claimed, and set with the others. */
  #aim: 'off' | 'turning-on' | 'on' = 'off'
  /** When the bits were set or cleared last; never, while that is under way. */
  #switchedAtMs = Number.POSITIVE_INFINITY
  readonly #turns = new Turns()

  constructor(
    private readonly host: ClaimsHost,
    private readonly requests: readonly ClaimRequest[],
  ) {
    this.#found = new FoundProcesses(host.native, host.ring, (error) => host.onError(error))
  }

  /** Whether guards and leases are held; the bits may be cleared all the same, while the probe is paused. */
  get taken(): boolean {
    return this.#taken
  }

  /** How many counters are claimed, each once in a mapping of it. */
  get counters(): number {
    return [...this.#claims].reduce((sum, { counters }) => sum + counters.length, 0)
  }

  /** The claims, for whoever shows them. */
  get claims(): ReadonlySet<ProcessClaim> {
    return this.#claims
  }

  /**
   * Takes every claim, or none.
   * @param watch - is told how far it is
   * @returns what is not as asked for in single processes of a probe for every process, as sentences
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_BUSY`, `ERR_UPROBE_COUNTER_FOREIGN`, `ERR_UPROBE_COUNTER_PLACE`, `ERR_UPROBE_LEASE`, …; nothing is held then
   */
  take(signal: AbortSignal, watch?: ClaimWatch): Promise<string[]> {
    return this.#turns.command(() => this.#take(signal, watch))
  }

  /** Sets the bits of what is taken, all or none. Returns and throws as {@link take}. */
  set(signal?: AbortSignal): Promise<string[]> {
    return this.#turns.command(async () => {
      this.#aim = 'turning-on'
      this.#switchedAtMs = Number.POSITIVE_INFINITY
      for (const look of this.#takeYoung()) await look().catch((error: unknown) => this.host.onError(error))
      const warnings: string[] = []
      await this.#set(warnings, signal)
      return warnings
    })
  }

  /**
   * Clears the bits, except where another claim covers a counter. What fails in one process does not keep the others from being cleared.
   * @param through - is told of how many counters that was done
   * @returns why one could not be cleared: `ERR_UPROBE_COUNTER_FOREIGN`, `ERR_UPROBE_COUNTER_PLACE`; `null` if all were
   */
  clear(through?: ClaimWatch['through']): Promise<unknown> {
    return this.#turns.command(() => this.#clear(through))
  }

  /** The claims are given back for good: what follows is only cleaning up, also if somebody else has to do it. */
  releaseLeases(): void {
    for (const claim of this.#claims) if (!claim.active) claim.releaseLease()
    reached('lease-released')
  }

  /** After the breakpoints are out: clears what children inherited, and gives leases and guards back. Idempotent. */
  finish(): Promise<void> {
    return this.#turns.command(() => this.#finish())
  }

  /** A process has exited or called exec: its counters are gone, but its children may have inherited claims. */
  endTarget(target: TargetProcess): Promise<void> {
    return this.#turns.command(() => this.#endTarget(target))
  }

  async #take(signal: AbortSignal, watch?: ClaimWatch): Promise<string[]> {
    if (this.#taken) return []
    const warnings: string[] = []
    this.#taken = true
    this.#aim = 'turning-on'
    this.#switchedAtMs = Number.POSITIVE_INFINITY
    try {
      const context = await this.host.context()
      this.#context = context
      for (const { file, counters } of this.requests) {
        signal.throwIfAborted()
        this.#guards.push(await Guard.take(context.native, file, counters))
      }
      reached('guards-in')
      for (const request of this.requests) await this.#openAll(request, warnings, signal)
      reached('counters-read')
      reached('lease-about-to-be-written')
      for (const claim of this.#claims) await claim.writeLease()
      reached('lease-written')
      watch?.begin(this.counters)
      await this.#set(warnings, signal, watch?.through)
      return warnings
    } catch (error) {
      this.#reportIfAny(await this.#clear())
      await this.#finish()
      throw error
    }
  }

  /** @param warnings - for what fails in single processes of a probe for every process; otherwise it throws */
  async #set(warnings: string[], signal?: AbortSignal, through?: ClaimWatch['through']): Promise<void> {
    this.#aim = 'on'
    this.#switchedAtMs = Number.POSITIVE_INFINITY
    reached('counter-about-to-be-set')
    try {
      for (const claim of this.#claims) {
        signal?.throwIfAborted()
        const inherited = this.#isInherited(claim)
        try {
          if (!claim.trySet(inherited)) await claim.set(inherited, signal, through)
        } catch (error) {
          if (!this.#found.has(claim.target) || !(error instanceof UprobeError)) throw error
          await this.#clearOne(claim)
          // One that is gone is told of by its watch.
          if (error.code !== 'ERR_UPROBE_TARGET_GONE') warnings.push(`left out: ${error.message}`)
        }
      }
    } catch (error) {
      this.#reportIfAny(await this.#clear())
      throw error
    }
    this.#switchedAtMs = performance.now()
    reached('counter-set')
  }

  async #clear(through?: ClaimWatch['through']): Promise<unknown> {
    this.#aim = 'off'
    this.#switchedAtMs = Number.POSITIVE_INFINITY
    reached('counter-about-to-be-cleared')
    let failure: unknown = null
    for (const claim of this.#claims) {
      try {
        if (this.#isYoung(claim) && (await this.#othersMayHold(claim.target.pid))) this.#clearedLate.add(claim)
        else if (!claim.tryClear()) await claim.clear(through)
      } catch (error) {
        if (failure !== null) this.host.onError(error)
        failure ??= error
      }
    }
    this.#switchedAtMs = performance.now()
    reached('counter-cleared')
    for (const look of this.#takeYoung()) this.#later(look)
    for (const claim of this.#clearedLate) this.#lookWhenOlder(OTHERS_LOOK_MS, () => this.#clearLate(claim))
    return failure
  }

  /** Whether a claim is on a child so young that others, who hold its parent's counters, may not have claimed it yet. A little later they have, and are not harmed when it is cleared. */
  #isYoung(claim: ProcessClaim): boolean {
    const madeAtMs = this.#inheritedAtMs.get(claim)
    return madeAtMs !== undefined && performance.now() - madeAtMs < OTHERS_LOOK_MS
  }

  async #clearLate(claim: ProcessClaim): Promise<void> {
    if (this.#aim === 'off') await this.#clearOne(claim)
    else this.#clearedLate.delete(claim)
  }

  #reportIfAny(failure: unknown): void {
    if (failure !== null) this.host.onError(failure)
  }

  async #finish(): Promise<void> {
    for (const newcomers of this.#newcomers.splice(0)) newcomers.close()
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers.clear()
    this.#takeYoung()
    for (const claim of this.#clearedLate) await this.#clearOne(claim)
    await this.#end([...this.#claims, ...this.#ended.splice(0)])
    reached('lease-removed')
    await this.#found.clear()
    for (const guard of this.#guards.splice(0)) await guard.release()
    reached('guards-out')
    this.#taken = false
  }

  async #endTarget(target: TargetProcess): Promise<void> {
    const ended = [...this.#claims].filter((claim) => claim.target === target)
    for (const claim of ended) await this.#clearOne(claim)
    await this.#end(ended)
  }

  async #clearOne(claim: ProcessClaim): Promise<void> {
    this.#clearedLate.delete(claim)
    try {
      await claim.clear()
    } catch (error) {
      this.host.onError(error)
    }
  }

  /** After the bits of these claims are clear: looks for children that have inherited them, and gives the leases back, but for those of which something is left. */
  async #end(ended: readonly ProcessClaim[], signal?: AbortSignal): Promise<void> {
    for (const claim of ended) this.#claims.delete(claim)
    let unfinished: ReadonlySet<ProcessClaim> = new Set(ended)
    try {
      unfinished = this.#context === null ? new Set() : await this.#clearInherited(this.#context, ended, signal)
    } catch (error) {
      if (signal?.aborted) {
        this.#endLater(ended)
        return
      }
      this.host.onError(error)
    }
    for (const claim of ended) claim.close(unfinished.has(claim))
  }

  /** The same, for many at once, as far as nobody waits for something else. */
  #endLater(ended: readonly ProcessClaim[]): void {
    if (this.#ended.length === 0) this.#after(SWEEP_MS, (signal) => this.#end(this.#ended.splice(0), signal))
    this.#ended.push(...ended)
  }

  /** Returns the claims that children may still have, or of those that have the same children the eldest. */
  async #clearInherited(
    { native, owner, active }: ClaimContext,
    ended: readonly ProcessClaim[],
    signal?: AbortSignal,
  ): Promise<ReadonlySet<ProcessClaim>> {
    const unfinished = new Set<ProcessClaim>()
    const claims = new Map<EndedClaim, ProcessClaim>(
      ended.map((claim) => {
        const { target, space, file, counters, sinceTicks } = claim
        const places = counters.map(({ place: { address }, counter }) => ({
          address,
          vaddr: counter.vaddr,
          refCtrOffset: counter.refCtrOffset,
        }))
        return [{ file: file.identity, places, space, pid: target.isAlive() ? target.pid : null, sinceTicks }, claim]
      }),
    )
    await clearInherited({ native, locks: owner.locks, isOurs: (key) => active.has(key), dryRun: false }, [...claims.keys()], {
      onFailure: (ended, error) => {
        const claim = claims.get(ended)
        if (claim !== undefined) unfinished.add(claim)
        this.host.onError(error)
      },
      signal,
    })
    return unfinished
  }

  /** Whether a process was forked from one that has a claim, and may have been born with the bit. */
  #isInherited(claim: ProcessClaim): boolean {
    return [...this.#claims, ...this.#ended].some(
      (other) => other.target !== claim.target && other.space.fingerprint === claim.space.fingerprint,
    )
  }

  async #openAll(request: ClaimRequest, warnings: string[], signal: AbortSignal): Promise<void> {
    const { file, processes } = request
    const context = this.#opened()
    if (processes !== null) {
      for (const target of processes) {
        signal.throwIfAborted()
        await this.#open(request, target)
      }
      return
    }
    // Those that come while we walk are told of, and wait their turn.
    const told = new Set<number>()
    let walking = true
    this.#newcomers.push(
      Newcomers.start(
        context.native,
        this.host.ring,
        [{ identity: file.identity, path: file.path }],
        (pid, how) => {
          if (walking && how === 'fork') told.add(pid)
          this.#onNewcomer(request, pid, how)
        },
        () => this.#walkLater(request),
      ),
    )
    // A process may fork between being listed and being watched for it, so it takes a look at which nothing new is found. But where a server forks all the time, something always is; what the kernel told of, and will
    // tell of the children of, does not count.
    let untold: boolean
    do {
      const before = new Set(this.#found.pids)
      const startMs = performance.now()
      for await (const { pid } of processesMapping(context.native, file.identity, signal)) {
        try {
          await this.#find(request, pid)
        } catch (error) {
          if (!(error instanceof UprobeError)) throw error
          const warning = `left out: ${error.message}`
          if (error.code !== 'ERR_UPROBE_TARGET_GONE' && !warnings.includes(warning)) warnings.push(warning)
        }
      }
      this.#watchForks()
      const remembered = performance.now() - startMs < FORKS_REMEMBERED_MS
      untold = this.#found.pids.some((pid) => !before.has(pid) && !(remembered && told.has(pid)))
    } while (untold)
    walking = false
    told.clear()
  }

  async #open(request: ClaimRequest, target: TargetProcess): Promise<ProcessClaim | null> {
    const claim = await ProcessClaim.open(this.#opened(), target, request.file, request.counters)
    if (claim === null) return null
    this.#claims.add(claim)
    await claim.read()
    return claim
  }

  /** Takes a process into the claims of a probe for every process; `null` if it has no counters of its own, or has its claim. */
  async #find(request: ClaimRequest, pid: number): Promise<ProcessClaim | null> {
    const { native } = this.#opened()
    const known = this.#found.get(pid)
    if (known !== undefined) {
      const claim = [...this.#claims].find(({ target }) => target === known)
      if (claim !== undefined && (await claim.isIntact(request.counters))) return null
      await this.#forget(request, pid)
    }
    if (this.#found.sharesMemory(native, pid)) return null
    const target = TargetProcess.open(native, pid)
    try {
      const claim = await this.#open(request, target)
      if (claim === null) target.close()
      else await this.#found.add(target, () => this.#later(() => this.#forget(request, pid, target)))
      return claim
    } catch (error) {
      for (const claim of this.#claims) {
        if (claim.target !== target) continue
        this.#claims.delete(claim)
        claim.close()
      }
      target.close()
      throw error
    }
  }

  #onNewcomer(request: ClaimRequest, pid: number, how: 'fork' | 'map'): void {
    const look = (): Promise<void> => (how === 'map' ? this.#arrive(request, pid, how) : this.#lookAtChild(request, pid))
    if (how === 'map' || performance.now() - this.#switchedAtMs < SETTLED_MS) this.#later(look)
    else this.#lookWhenOlder(CHILD_LOOK_MS, look)
  }

  #lookWhenOlder(delayMs: number, look: () => Promise<void>): void {
    const timer = setTimeout(() => {
      this.#young.delete(timer)
      this.#later(look)
    }, delayMs).unref()
    this.#young.set(timer, look)
  }

  /** @param waits - whether others may be given their time */
  async #lookAtChild(request: ClaimRequest, pid: number, waits = true): Promise<void> {
    // Most have ended when they are looked at, and an error for each would cost more than the question.
    if (!this.#taken || !existsSync(`/proc/${pid}`)) return
    if (waits && this.#aim === 'off' && (await this.#othersMayHold(pid))) {
      this.#lookWhenOlder(OTHERS_LOOK_MS, () => this.#lookAtChild(request, pid, false))
    } else {
      await this.#arrive(request, pid, 'fork')
    }
  }

  /** Whether a child, while our bits are clear, may have been born with those of others: if they hold the counters of its parent, or of any process if that is not known. */
  async #othersMayHold(pid: number): Promise<boolean> {
    const parent = this.#found.get(parentOf(pid) ?? 0)
    const all = [...this.#claims]
    for (const claim of parent === undefined ? all : all.filter(({ target }) => target === parent)) {
      if (await claim.isHeldByOthers()) return true
    }
    return false
  }

  /** The children that are not looked at yet, for whoever looks at them now. */
  #takeYoung(): Array<() => Promise<void>> {
    const looks = [...this.#young.values()]
    for (const timer of this.#young.keys()) clearTimeout(timer)
    this.#young.clear()
    return looks
  }

  /**
   * A process came to map the file, or was born of one that has a claim.
   * @param look - how often it was looked at before
   * @param failures - the looks just before this one at which its counters could not be claimed. One such look may have come in the middle of a load, also the last one after an earlier load.
   */
  async #arrive(request: ClaimRequest, pid: number, how: 'fork' | 'map', look = 0, failures = 0): Promise<void> {
    if (!this.#taken) return
    let failed = false
    try {
      await this.#claimArrival(request, pid)
    } catch (error) {
      if (!(error instanceof UprobeError)) throw error
      if (error.code === 'ERR_UPROBE_TARGET_GONE') return
      if (error.code !== 'ERR_UPROBE_COUNTER_PLACE' || how === 'fork' || failures === LOOKS_MS.length) throw error
      failed = true
    }
    const looks = failed ? failures : look
    const delay = how === 'map' ? LOOKS_MS[looks] : undefined
    if (delay !== undefined) this.#after(delay, () => this.#arrive(request, pid, how, looks + 1, failed ? failures + 1 : 0))
  }

  async #claimArrival(request: ClaimRequest, pid: number): Promise<void> {
    const claim = await this.#find(request, pid)
    if (claim === null) return
    let missedNothing: boolean
    try {
      const inherited = this.#isInherited(claim)
      missedNothing = (await claim.read()) && inherited
      await claim.writeLease()
      const set = (): Promise<void> => claim.set(inherited)
      if (this.#aim === 'on' || (this.#aim === 'off' && inherited)) await (missedNothing ? set() : this.host.seeLate(pid, set))
      // A child that was born while the bits were being cleared, or that has one of a claim on its parent alone, has it all the same.
      if (this.#aim === 'off') await claim.clear()
      else if (missedNothing) this.#inheritedAtMs.set(claim, performance.now())
    } catch (error) {
      await this.#forget(request, pid)
      throw error
    }
    this.#watchForks()
    this.host.onArrival({ pid, mayHaveMissed: this.#aim === 'on' && !missedNothing })
  }

  #walkLater(request: ClaimRequest): void {
    if (!this.#walkWaits) this.#later((signal) => this.#walk(request, signal))
    this.#walkWaits = true
  }

  /** The kernel could not tell of everything. */
  async #walk(request: ClaimRequest, signal: AbortSignal): Promise<void> {
    this.#walkWaits = false
    if (!this.#taken) return
    this.host.log.warn('the kernel told of more new processes than could be taken in; all processes are looked through')
    for await (const { pid } of processesMapping(this.#opened().native, request.file.identity)) {
      try {
        await this.#arrive(request, pid, 'map', LOOKS_MS.length - 1)
      } catch (error) {
        this.host.onError(error)
      }
      if (signal.aborted) {
        this.#walkLater(request)
        return
      }
    }
  }

  /**
   * A process that was found has ended, or what was claimed in it is gone. Whoever has inherited from it is also found by the claim on its parent, as long as there is one; else its children
   * are looked for a little later, for many processes at once.
   */
  async #forget(request: ClaimRequest, pid: number, ended?: TargetProcess): Promise<void> {
    const target = this.#found.get(pid)
    // After an exec there may be a claim on the new program already.
    if (target === undefined || (ended !== undefined && ended !== target)) return
    for (const claim of this.#claims) {
      if (claim.target !== target) continue
      await this.#clearOne(claim)
      this.#claims.delete(claim)
      if ([...this.#claims, ...this.#ended].some((other) => other.covers(claim))) claim.close()
      else this.#endLater([claim])
    }
    for (const sharer of (await this.#found.remove(pid)) ?? []) this.#later(() => this.#arrive(request, sharer, 'map'))
    this.#watchForks()
  }

  #watchForks(): void {
    for (const newcomers of this.#newcomers) newcomers.watchForksOf(this.#found.pids)
  }

  #opened(): ClaimContext {
    if (this.#context === null) throw new Error('claims are used before they are taken')
    return this.#context
  }

  #after(delayMs: number, work: (signal: AbortSignal) => Promise<void>): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      this.#later(work)
    }, delayMs)
    timer.unref()
    this.#timers.add(timer)
  }

  #later(work: (signal: AbortSignal) => Promise<void>): void {
    this.#turns.chore(work).catch((error: unknown) => this.host.onError(error))
  }
}
