/**
 * A first look at the sites of a probe in one process, by pages of its memory.
 *
 * Nearly always everything is as it should be, and of thousands of sites that is seen for the price of a few pages. The pages are read one after another, so a tracer that comes or goes meanwhile may be
 * seen in one and not in another; whatever does not look right here is therefore no finding, but a reason to look at that site alone (verify.ts).
 */
import type { Site } from '../register/site.js'
import { type Mapping, takesBreakpoints, takesCounters } from '../target/maps.js'
import { OffsetTable } from '../target/offset-table.js'
import { PagedMemory } from '../target/paged-memory.js'
import type { TargetProcess } from '../target/process.js'
import { counterPlaces } from './places.js'
import { BREAKPOINT_BYTES, CLAIM, type CounterSite } from './read.js'
import type { FileFacts } from './site-facts.js'

/** See the module's comment. */
export class Glimpse {
  /** Of the site that was seen armed last: the address of its instruction, and its counter. */
  address = 0
  counter: number | null = null
  // Of each its own: a page of counters between two of code would be looked for anew at each site.
  readonly #codeMemory: PagedMemory
  readonly #dataMemory: PagedMemory
  readonly #code: OffsetTable
  readonly #data: OffsetTable
  /** Where the kernel puts breakpoints, as of `armedOffsets`. */
  readonly #eligible: OffsetTable
  /** By offset of a counter that several sites share: its value, if that says exactly how many of them are armed. */
  readonly #shared = new Map<bigint, number | null>()

  constructor(
    target: Pick<TargetProcess, 'readMemory'>,
    private readonly facts: FileFacts,
    private readonly all: readonly Mapping[],
    private readonly mappings: readonly Mapping[],
  ) {
    this.#codeMemory = new PagedMemory(target)
    this.#dataMemory = new PagedMemory(target)
    this.#code = new OffsetTable(mappings.filter(({ executable }) => executable))
    this.#data = new OffsetTable(mappings.filter(takesCounters))
    this.#eligible = new OffsetTable(mappings.filter(takesBreakpoints))
  }

  /** Whether a site is armed, and its counter, if it has one, says so exactly. */
  seesArmed(site: Site): boolean {
    const { fileOffset, counterVaddr, refCtrOffset } = site
    // Once, since that takes longer than the rest of a look.
    const offset = Number(fileOffset)
    const address = this.#code.addressOf(offset)
    const original = this.facts.originals.get(fileOffset)
    if (address === null || original === undefined || this.#codeMemory.equals(address, original, BREAKPOINT_BYTES) !== false) return false
    this.address = address
    if (refCtrOffset === null) return this.#seesClaim(counterVaddr)
    this.counter =
      counterVaddr === null || this.facts.counters.isShared(counterVaddr)
        ? this.#sharedValue(refCtrOffset, counterVaddr)
        : this.#exactValue(refCtrOffset, this.#armedCount(offset, original, address))
    return this.counter !== null
  }

  /** Whether a counter that the kernel does not count on, if there is one, is claimed in every place. */
  #seesClaim(counterVaddr: bigint | null): boolean {
    const counter = counterVaddr === null ? undefined : this.facts.counters.get(counterVaddr)
    this.counter = counter === undefined ? null : CLAIM
    if (counter === undefined) return true
    const { places } = counterPlaces(this.all, this.mappings, counter)
    return places.length > 0 && places.every((place) => this.#dataMemory.u16(place.address) === CLAIM)
  }

  #sharedValue(refCtrOffset: bigint, counterVaddr: bigint | null): number | null {
    const known = this.#shared.get(refCtrOffset)
    if (known !== undefined) return known
    const sites: readonly CounterSite[] = counterVaddr === null ? [] : (this.facts.counters.get(counterVaddr)?.sites ?? [])
    let armed = 0
    for (const { fileOffset, original } of sites) armed += this.#armedCount(Number(fileOffset), original, null)
    const value = this.#exactValue(refCtrOffset, armed)
    this.#shared.set(refCtrOffset, value)
    return value
  }

  /** The value of the counter, if it is that of so many armed sites. */
  #exactValue(refCtrOffset: bigint, armed: number): number | null {
    const place = this.#data.addressOf(refCtrOffset)
    const value = place === null ? null : this.#dataMemory.u16(place)
    return value !== null && value > 0 && value < CLAIM && value === armed ? value : null
  }

  /**
   * How often the kernel has counted for a site, as of `armedOffsets`.
   * @param armedAt - an address at which it was seen armed
   */
  #armedCount(fileOffset: number, original: Uint8Array, armedAt: number | null): number {
    let armed = 0
    for (let index = 0; index < this.#eligible.length; index++) {
      const address = this.#eligible.addressIn(index, fileOffset)
      if (address === null) continue
      if (address === armedAt || this.#codeMemory.equals(address, original, BREAKPOINT_BYTES) === false) armed++
    }
    return armed
  }
}
