/**
 * Work over thousands of sites: it leaves the event loop its turn, ends when it is aborted, and says how far it is.
 *
 * A loop asks after some sites whether it is time to {@link SiteWork.rest}. Then, and at the beginning and the end of each step, whoever wants to know is told; so a short attach tells
 * little, and a long one about once a turn.
 */
import { TimeSlice } from './elf/time-slice.js'

/**
 * What is being done with the sites:
 * - `check`: whether each may be probed;
 * - `claim`: the counters are claimed, or given back (`counter: 'msb'`); counters are counted then, not sites;
 * - `register`: the kernel is told of them. Through a uprobe_multi link this is one call, which goes from 0 to all;
 * - `verify`: each is read back;
 * - `unregister`: the kernel takes them out again.
 */
export type ProgressStep = 'check' | 'claim' | 'register' | 'verify' | 'unregister'

/** A `'progress'` event of a `Tracer`. */
export interface Progress {
  readonly action: 'attach' | 'detach'
  /** The specification, as it was given. */
  readonly spec: string
  readonly step: ProgressStep
  /** Sites that are through this step. In several processes, a site counts once in each. */
  readonly done: number
  readonly total: number
}

/** How far a step is. */
export type ReportProgress = (step: ProgressStep, done: number, total: number) => void

/** The clock is read once in so many sites. */
const SITES_A_LOOK = 32

/** See the module's comment. */
export class SiteWork {
  readonly #slice = new TimeSlice()
  #step: ProgressStep | null = null
  #done = 0
  #total = 0
  #told = -1
  #untilLook = SITES_A_LOOK

  /**
   * @param signal - ends the work
   * @param report - is told how far it is
   */
  constructor(
    readonly signal: AbortSignal,
    private readonly report: ReportProgress,
  ) {}

  /** Work of which nobody is told. */
  static quietly(signal: AbortSignal): SiteWork {
    return new SiteWork(signal, () => undefined)
  }

  /** Begins a step; one that is under way is through. */
  begin(step: ProgressStep, total: number): void {
    this.end()
    this.#step = step
    this.#done = 0
    this.#total = total
    this.#told = -1
    this.#tell()
  }

  /** More is to be done in the step than was known. */
  extend(sites: number): void {
    this.#total += sites
  }

  /** Begins a step with the first that is to be done in it, or extends it. Where there is nothing to do nobody is told: of nothing there is no percentage. */
  add(step: ProgressStep, sites: number): void {
    if (sites === 0) return
    if (this.#step === step) this.extend(sites)
    else this.begin(step, sites)
  }

  /**
   * Takes a step with each of some things, and rests whenever it is due. A step that has to be waited for returns a promise; of thousands few do. (`for … of` in an async function makes an
   * object at each turn, which the collector has to clear away while the event loop stands still.)
   */
  async each<T extends object>(things: readonly T[], step: (thing: T) => Promise<unknown> | undefined): Promise<void> {
    for (let index = 0; index < things.length; ) {
      if (this.#untilLook === 0) {
        this.#untilLook = SITES_A_LOOK
        if (this.#slice.isOver) await this.rest()
      }
      const end = Math.min(index + this.#untilLook, things.length)
      this.#untilLook -= end - index
      for (; index < end; index++) {
        const thing = things[index]
        const waiting = thing === undefined ? undefined : step(thing)
        if (waiting !== undefined) await waiting
      }
    }
  }

  /** To be waited for before what takes long with thousands of sites and is not divided: it begins within a slice of time, and counts for what follows in this turn. */
  async beforeLongStep(): Promise<void> {
    if (this.#slice.isOver) await this.rest()
  }

  /** Counts a site. */
  count(): void {
    this.#done++
  }

  /** Counts sites that went through at once, and tells. */
  advance(sites: number): void {
    this.#done += sites
    this.#tell()
  }

  /** Tells how far it is, and gives the event loop a turn. Throws the reason of the signal if it is aborted. */
  async rest(): Promise<void> {
    this.#tell()
    await this.#slice.rest()
    this.signal.throwIfAborted()
  }

  /** The step is through. */
  end(): void {
    this.#done = this.#total
    this.#tell()
    this.#step = null
  }

  /** Unless nothing has changed. */
  #tell(): void {
    if (this.#step === null || this.#told === this.#done) return
    this.#told = this.#done
    this.report(this.#step, this.#done, this.#total)
  }
}
