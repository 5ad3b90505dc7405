/**
 * The sites of a probe, as a program sees them.
 *
 * Of thousands few may ever be looked at, so each is made when it is asked for, and kept: a site is the same object in every hit. Who asks for all of them does not wait for a promise, and the first time V8
 * has no optimized code; so they are made in one loop, with little made or called for each that does not stay.
 */

import type { SiteTarget } from './counter/site-facts.js'
import type { SiteFindings } from './counter/site-findings.js'
import type { ProbeSite } from './probe-site.js'
import type { Site } from './register/site.js'

/** The sites of one file. Their slots follow each other, and those of the last file. */
export interface SitesOfFile {
  /** The path is the file's, as the target knows it. */
  readonly facts: { readonly path: string }
  readonly sites: readonly Pick<Site, 'slot' | 'probe' | 'fileOffset' | 'counterOffset' | 'args'>[]
}

type MadeSite = ProbeSite & { readonly targets: SiteTarget[] }

/** See the module's comment. */
export class ProbeSites {
  /** By slot, as far as somebody has asked for them. */
  readonly #made: Array<MadeSite | undefined> = []
  #leftOut: ReadonlySet<number> = new Set()
  #found: readonly SiteFindings[] = []

  constructor(private readonly files: readonly SitesOfFile[]) {}

  /** Takes note of what was found, and of the slots whose sites were left out. Sites that were made before, since hits showed them, learn of it. */
  settle(leftOut: ReadonlySet<number>, found: readonly SiteFindings[]): void {
    this.#leftOut = leftOut
    this.#found = found
    this.#made.forEach((site, slot) => {
      site?.targets.push(...this.#targetsOf(slot))
    })
  }

  /** All that were not left out. */
  all(): ProbeSite[] {
    const leftOut = this.#leftOut
    const some = leftOut.size > 0
    const all: ProbeSite[] = []
    for (const file of this.files) {
      const { sites } = file
      for (let index = 0; index < sites.length; index++) {
        const site = sites[index]
        if (site === undefined || (some && leftOut.has(site.slot))) continue
        all.push(this.#made[site.slot] ?? this.#make(file, site))
      }
    }
    return all
  }

  /** The site of a slot. */
  of(slot: number): ProbeSite {
    const made = this.#made[slot]
    if (made !== undefined) return made
    for (const file of this.files) {
      const site = file.sites[slot - (file.sites[0]?.slot ?? slot + 1)]
      if (site !== undefined) return this.#make(file, site)
    }
    throw new RangeError(`there is no slot ${slot}`)
  }

  #make({ facts: { path } }: SitesOfFile, site: SitesOfFile['sites'][number]): MadeSite {
    const { slot, probe, fileOffset, counterOffset, args } = site
    const made = { probe, path, fileOffset, refCtrOffset: counterOffset, args, targets: this.#targetsOf(slot) }
    this.#made[slot] = made
    return made
  }

  /** The processes in which a site was looked at. */
  #targetsOf(slot: number): SiteTarget[] {
    const found = this.#found
    if (found.length === 1) {
      const target = found[0]?.get(slot)
      // Written as it is: an array that grows has room for sixteen more.
      return target === undefined ? [] : [target]
    }
    return found.flatMap((findings) => findings.get(slot) ?? [])
  }
}
