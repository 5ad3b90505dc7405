/**
 * A tracer: the probes of one agent, and the ring that all of them share.
 *
 * Nothing happens before the first `attach`: no addon is loaded, no thread started, nothing asked of the kernel. `close` detaches every probe and ends the reading thread; a
 * tracer that is dropped without it, or killed, leaves nothing in any target either, since the kernel takes back what its descriptors held.
 */
import { EventEmitter } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import { aggregate } from './aggregate/aggregate.js'
import type { Aggregation } from './aggregate/aggregation.js'
import { type AggregateOptions, type AggregateSpec, checkAggregateOptions, hitsThatCostAsMuch } from './aggregate/options.js'
import { attach, type MakeTaker } from './attach.js'
import { Governor } from './budget/governor.js'
import { type HitCost, type HitKind, hitCost } from './budget/hit-cost.js'
import type { Throttled } from './budget/member.js'
import type { ReleasedCounter } from './counter/control.js'
import { type HeldCounter, heldCounters } from './counter/held.js'
import { counterTable } from './counter/table.js'
import { TracerClaims } from './counter/tracer-claims.js'
import { callGuarded } from './delivery/consumer.js'
import { Ring } from './delivery/ring.js'
import { UprobeError } from './errors.js'
import { follow } from './follow.js'
import { childLogger, type Logger } from './log.js'
import { loadNative, type Native } from './native.js'
import {
  type AttachOptions,
  type AttachSettings,
  checkAttachOptions,
  checkTracerOptions,
  type TracerOptions,
  type TracerSettings,
} from './options.js'
import type { Probe } from './probe.js'
import type { Progress } from './progress.js'
import { parseSpec } from './spec/spec.js'

type Attached = Probe | Aggregation

/** How long an attach that is under way is waited for by whoever asks to give way, and does not wait for ever himself. */
const ATTACH_PATIENCE_MS = 10_000

/** Events of a {@link Tracer}, and what their listeners get. */
export interface TracerEvents {
  /** How far an attach or detach of a probe is. */
  progress: [progress: Progress]
}

/** Attaches probes, and owns what they share. */
export class Tracer extends EventEmitter<TracerEvents> {
  readonly #settings: TracerSettings
  readonly #log: Logger
  readonly #probes = new Set<Probe>()
  /** Those that aggregations are made of. */
  readonly #aggregating = new WeakSet<Probe>()
  readonly #aggregations = new Set<Aggregation>()
  readonly #attaching = new Set<Promise<unknown>>()
  readonly #closing = new AbortController()
  readonly #claims: TracerClaims
  readonly #governor: Governor
  /** Made on first use. */
  #ring: Promise<Ring> | null = null
  #closed: Promise<void> | null = null

  /**
   * @param options - see {@link TracerOptions}
   * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`
   */
  constructor(options: TracerOptions = {}) {
    super()
    this.#settings = checkTracerOptions(options)
    this.#log = childLogger(this.#settings.logger, 'tracer')
    this.#governor = new Governor(this.#settings.budget)
    this.#claims = new TracerClaims(this.#settings.leaseDir, this.#log, (pid) => this.#giveWay(pid))
  }

  /** The probes that are attached or paused. */
  get probes(): readonly Probe[] {
    return [...this.#probes].filter((probe) => !this.#aggregating.has(probe))
  }

  /** The aggregations that are attached. */
  get aggregations(): readonly Aggregation[] {
    return [...this.#aggregations]
  }

  /**
   * Attaches a probe. When the promise resolves, every site is armed in every process that was looked at, and its counter is raised; what could not be
   * looked at is marked in `probe.sites[].targets`.
   *
   * @param spec - `usdt:[PATH:]PROVIDER:NAME`, `uprobe:[PATH:]SYMBOL[+OFFSET]`, `uprobe:PATH:0xOFFSET` or `uretprobe:[PATH:]SYMBOL`; names take `*` and `?`
   * @param options - the target and what to capture, see {@link AttachOptions}
   * @throws {UprobeError} with a code that docs/errors.md explains; nothing is left behind then
   * @throws the signal's reason, when `options.signal` is aborted
   */
  async attach(spec: string, options: AttachOptions = {}): Promise<Probe> {
    this.#throwIfClosed()
    const settings = checkAttachOptions(options)
    const { strings, stringLimit, stack, countOnly } = settings
    const cost = this.#hitCost(settings, () => [{ probe: parseSpec(spec).kind, strings: strings.length, stringLimit, stack, countOnly }])
    const probe = await this.#attach(spec, settings, cost, null)
    await this.#govern(probe, probe, settings, cost)
    return probe
  }

  /**
   * Adds hits up in the kernel instead of delivering them: counts, sums, extremes and histograms of arguments, or of the time between two probes, by groups. When the promise
   * resolves, every site is armed, as with {@link attach}.
   *
   * @param spec - a probe as for {@link attach}; for a latency a function (`uprobe:[PATH:]SYMBOL`), whose calls are timed, or two probes `{ from, to, match }`
   * @param options - the target, what is measured and by what it is grouped, see {@link AggregateOptions}
   * @throws {UprobeError} as {@link attach}
   * @throws the signal's reason, when `options.signal` is aborted
   */
  async aggregate(spec: AggregateSpec, options: AggregateOptions = {}): Promise<Aggregation> {
    this.#throwIfClosed()
    const settings = checkAggregateOptions(spec, options)
    const cost = this.#hitCost(settings.attach, () => hitsThatCostAsMuch(settings))
    const work = aggregate(
      { native: loadNative(), log: this.#log, onEnded: (ended) => this.#aggregations.delete(ended) },
      settings,
      async (part, partSettings, makeTaker) => {
        const probe = await this.#attach(part, partSettings, cost, makeTaker)
        this.#aggregating.add(probe)
        return probe
      },
    )
    // It has maps to close when the attach of its probe has failed.
    this.#attaching.add(work)
    try {
      const aggregation = await work
      if (!aggregation.ended) this.#aggregations.add(aggregation)
      await this.#govern(aggregation.throttled, aggregation, settings.attach, cost)
      return aggregation
    } finally {
      this.#attaching.delete(work)
    }
  }

  /** @param cost - what a hit costs, which is waited for when the processes are open; `null` if no budget may take the probe out */
  async #attach(spec: string, settings: AttachSettings, cost: Promise<HitCost> | null, makeTaker: MakeTaker | null): Promise<Probe> {
    const native = loadNative()
    settings.signal?.throwIfAborted()
    const stop = new AbortController()
    const signals = settings.signal === null ? [this.#closing.signal] : [settings.signal, this.#closing.signal]
    const ends = signals.map((signal) => follow(signal, stop))
    const unfollow = (): void => {
      for (const end of ends) end()
    }
    // Also if it fails before it asks: what measures the cost is not to outlive the tracer.
    const work = attach(
      {
        native,
        log: this.#log,
        ring: () => this.#openRing(),
        tracer: this,
        hitCost: cost,
        recover: () => this.#claims.recover(),
        claimContext: () => this.#claims.context(),
        onProgress: (progress) => callGuarded(() => this.emit('progress', progress)),
        onEnded: (probe) => {
          unfollow()
          this.#probes.delete(probe)
        },
      },
      spec,
      { ...settings, signal: stop.signal },
      makeTaker,
    ).finally(() => cost)
    this.#attaching.add(work)
    try {
      const probe = await work
      if (probe.state === 'attached') this.#probes.add(probe)
      // What it is a part of ends it, in the right order.
      if (makeTaker !== null) unfollow()
      return probe
    } catch (error) {
      unfollow()
      throw error
    } finally {
      this.#attaching.delete(work)
    }
  }

  /**
   * What a hit will cost its target; `null` if there is no budget.
   * @param kinds - of several kinds of hits, each is taken to cost what the dearest does
   */
  #hitCost({ budget, signal }: AttachSettings, kinds: () => readonly HitKind[]): Promise<HitCost> | null {
    const budgets = [budget, this.#settings.budget].filter((given) => given !== null)
    if (budgets.length === 0) return null
    signal?.throwIfAborted()
    const hits = kinds()
    // Only a bound in time needs to know.
    if (budgets.every(({ cpuPercent }) => cpuPercent === undefined)) return Promise.resolve({ ns: 0, guessed: null })
    return dearest(loadNative(), hits, () => {
      const { leaseDir } = this.#settings
      return new Tracer(leaseDir === null ? {} : { leaseDir })
    })
  }

  /** Has the budgets kept. A probe, or an aggregation, whose budget nobody would keep is detached. */
  async #govern(
    throttled: Throttled,
    whole: Pick<Probe, 'warn' | 'detach'> & { stats(): { readonly seenMs: number } },
    { budget }: AttachSettings,
    cost: Promise<HitCost> | null,
  ): Promise<void> {
    if (cost === null) return
    const { ns, guessed } = await cost
    try {
      if (guessed !== null) {
        this.#log.debug({ err: guessed }, 'what a hit costs could not be measured')
        whole.warn(
          `what a hit costs could not be measured (${guessed.message}); ${ns} ns are assumed, so less may be seen than the budget allows`,
        )
      }
      this.#governor.add(throttled, budget, ns, whole.stats().seenMs)
    } catch (error) {
      await whole.detach()
      throw error
    }
  }

  /**
   * The counters that the probes of this tracer hold: who shares each, in which mode and in which processes, and whether its value there is what it should be.
   * @throws {UprobeError} `ERR_UPROBE_TARGET_DENIED`
   */
  counters(): Promise<HeldCounter[]> {
    return heldCounters(counterTable, this)
  }

  /**
   * Gives way to another tool: clears the claims of `counter: 'msb'`, and closes the registrations and guards that keep kernel tracers away. The probes and aggregations are paused, a latency as a whole;
   * `resume()` tries to take the counters again. Probes with `counter: 'kernel'` share their counters with everybody and go on.
   * @param pid - only probes for this process, or for every process; default: all
   * @returns what was given up, an entry for each counter in each process
   */
  async yield(pid?: number): Promise<ReleasedCounter[]> {
    return this.#giveWay(pid ?? null)
  }

  /** Detaches every probe and every aggregation, ends attaches that are under way, and stops the reading thread. Idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  /** Closes the tracer; for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(): Promise<void> {
    this.#closing.abort(closedError())
    await Promise.allSettled(this.#attaching)
    // Those of aggregations are not detached by themselves: the two of a latency have an order.
    const results = await Promise.allSettled([...this.#aggregations, ...this.probes].map((each) => each.detach()))
    this.#governor.close()
    await this.#claims.close()
    // Whoever asked for it has come to an end, and been told if it could not be made.
    const ring = await this.#ring?.catch(() => null)
    await ring?.close()
    for (const result of results) if (result.status === 'rejected') throw result.reason
  }

  async #giveWay(pid: number | null): Promise<ReleasedCounter[]> {
    // One that is being attached has its claims already, and cannot give them up before it is.
    await Promise.race([Promise.allSettled(this.#attaching), delay(ATTACH_PATIENCE_MS, undefined, { ref: false })])
    // One that takes longer gives way as soon as it can, and nobody waits for that.
    for (const late of this.#attaching) {
      late
        .then((one) =>
          this.#yieldAll(
            this.#givers.filter((giver) => giver === one),
            pid,
          ),
        )
        .catch((err: unknown) => this.#log.error({ err }, 'what was being attached did not give way'))
    }
    return this.#yieldAll(this.#givers, pid)
  }

  /** What has claims to give up. Probes of aggregations do not by themselves: the two of a latency have an order. */
  get #givers(): Attached[] {
    return [...this.#aggregations, ...this.probes]
  }

  async #yieldAll(attached: readonly Attached[], pid: number | null): Promise<ReleasedCounter[]> {
    const released: ReleasedCounter[] = []
    const failures: unknown[] = []
    for (const one of attached) {
      const held = one.claimedCounters()
      if (pid !== null && !held.some((counter) => counter.pid === pid)) continue
      try {
        if (await one.yield()) released.push(...held)
      } catch (error) {
        failures.push(error)
      }
    }
    if (released.length > 0) this.#log.warn({ pid, counters: released.length }, 'gave way: claims released')
    if (failures.length > 0) throw failures[0]
    return released
  }

  /** One for all, also for those that ask while it is being made. If that fails, the next one to ask tries again. */
  #openRing(): Promise<Ring> {
    this.#throwIfClosed()
    this.#ring ??= Ring.open(loadNative(), this.#settings, this.#log).catch((error: unknown) => {
      this.#ring = null
      throw error
    })
    return this.#ring
  }

  #throwIfClosed(): void {
    if (this.#closed !== null) throw closedError()
  }
}

/** Measured one after the other: a measurement takes what is traced for it as being alone. */
async function dearest(native: Native, hits: readonly HitKind[], newTracer: () => Tracer): Promise<HitCost> {
  let most: HitCost = { ns: 0, guessed: null }
  for (const hit of hits) {
    const cost = await hitCost(native, hit, newTracer)
    if (cost.ns > most.ns) most = cost
  }
  return most
}

function closedError(): UprobeError {
  return new UprobeError('ERR_UPROBE_CLOSED', 'The tracer is closed. Make a new one.')
}
