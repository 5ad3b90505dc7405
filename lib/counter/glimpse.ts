/**
 * A first look at the sites of a probe in one process, by pages of its memory.
 *
 * Nearly always everything is as it should be, and of thousands of sites that is seen for the price of a few pages. The pages are read one after another, so a tracer that comes or goes meanwhile may be
 * seen in one and not in another; whatever does not look right here is therefore no finding, but a reason to look at that site alone (verify.ts).
 */
import type { Site } from '../register/site.js'
import { counterAddress, type Mapping } from '../target/maps.js'
import { PagedMemory } from '../target/paged-memory.js'
import type { TargetProcess } from '../target/process.js'
import { counterPlaces } from './places.js'
import { BREAKPOINT_BYTES, CLAIM, type CounterSite } from './read.js'
import type { FileFacts } from './verify.js'

/** See the module's comment. */
export class Glimpse {
  readonly #memory: PagedMemory
  /** Where the kernel puts breakpoints, as of `armedOffsets`. */
  readonly #eligible: readonly Mapping[]
  /** By offset of the counter: its value, if that says exactly how many of its sites are armed. */
  readonly #exact = new Map<bigint, number | null>()

  constructor(
    target: Pick<TargetProcess, 'readMemory'>,
    private readonly facts: FileFacts,
    private readonly all: readonly Mapping[],
    private readonly mappings: readonly Mapping[],
  ) {
    this.#memory = new PagedMemory(target)
    this.#eligible = mappings.filter(({ shared, writable }) => !shared && !writable)
  }

  /** The counter of a site that is armed, and whose counter, if it has one, says so exactly; otherwise `null`. */
  armedCounter(site: Site, address: bigint): { readonly counter: number | null } | null {
    const original = this.facts.originals.get(site.fileOffset)
    if (original === undefined || this.#memory.equals(address, original, BREAKPOINT_BYTES) !== false) return null
    const counter = site.counterVaddr === null ? undefined : this.facts.counters.get(site.counterVaddr)
    if (site.refCtrOffset === null) {
      if (counter === undefined) return { counter: null }
      const values = counterPlaces(this.all, this.mappings, counter).places.map((place) => this.#memory.u16(place.address))
      return values.length > 0 && values.every((value) => value === CLAIM) ? { counter: CLAIM } : null
    }
    const value = this.#exactValue(site.refCtrOffset, counter?.sites ?? [])
    return value === null ? null : { counter: value }
  }

  #exactValue(refCtrOffset: bigint, sites: readonly CounterSite[]): number | null {
    const known = this.#exact.get(refCtrOffset)
    if (known !== undefined) return known
    const place = counterAddress(this.mappings, refCtrOffset)
    const value = place === null ? null : this.#memory.u16(place)
    const exact = value !== null && value > 0 && value < CLAIM && value === this.#armed(sites) ? value : null
    this.#exact.set(refCtrOffset, exact)
    return exact
  }

  /** How often the kernel has counted for these sites, as of `armedOffsets`. */
  #armed(sites: readonly CounterSite[]): number {
    let armed = 0
    for (const { fileOffset, original } of sites) {
      for (const { start, end, fileOffset: first } of this.#eligible) {
        if (fileOffset < first || fileOffset - first >= end - start) continue
        if (this.#memory.equals(start + fileOffset - first, original, BREAKPOINT_BYTES) === false) armed++
      }
    }
    return armed
  }
}
