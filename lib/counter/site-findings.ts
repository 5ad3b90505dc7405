/**
 * What was found of the sites of a probe in one process, by slot.
 *
 * Nearly all of thousands of sites are armed, and few are ever looked at, so only the numbers are kept of these, and an object is made for whoever asks.
 */
import type { SiteTarget } from './site-facts.js'

/** No finding, and no counter. */
const NOTHING = -2
const NO_COUNTER = -1

/** See the module's comment. */
export class SiteFindings {
  readonly #firstSlot: number
  readonly #addresses: Float64Array
  readonly #counters: Int32Array
  readonly #others = new Map<number, SiteTarget>()
  #anyArmed = false

  /** @param slots - of the sites, in ascending order */
  constructor(
    private readonly pid: number,
    slots: { readonly first: number; readonly last: number },
  ) {
    const count = slots.last - slots.first + 1
    this.#firstSlot = slots.first
    this.#addresses = new Float64Array(count)
    this.#counters = new Int32Array(count).fill(NOTHING)
  }

  /** Whether any site is armed. */
  get anyArmed(): boolean {
    return this.#anyArmed
  }

  /**
   * Notes that a site is armed.
   * @param address - of its instruction, if a number holds it
   */
  armed(slot: number, address: number, counter: number | null): void {
    const index = slot - this.#firstSlot
    this.#addresses[index] = address
    this.#counters[index] = counter ?? NO_COUNTER
    this.#anyArmed = true
  }

  /** Notes what else there is. */
  note(slot: number, found: SiteTarget): void {
    this.#others.set(slot, found)
    if (found.state === 'armed') this.#anyArmed = true
  }

  /** What was found of a site. */
  get(slot: number): SiteTarget | undefined {
    const index = slot - this.#firstSlot
    const counter = this.#counters[index] ?? NOTHING
    const address = this.#addresses[index]
    if (counter === NOTHING || address === undefined) return this.#others.get(slot)
    return { pid: this.pid, state: 'armed', address: BigInt(address), counter: counter === NO_COUNTER ? null : counter }
  }
}
