/**
 * Refuses a latency that begins and ends at the same site.
 *
 * Both programs would run at one and the same hit, and what is between them is some hundred nanoseconds of their own. The time from one hit to the next is not measured that way, nor could it be: which of two programs at a site the kernel runs first depends on
 * its version and on how they are registered (`consumer_add`, kernel/events/uprobes.c).
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import { describeSite, type Site } from '../register/site.js'
import type { FileSites } from '../spec/prepare-sites.js'
import { identityKey } from '../target/maps.js'

/** The files of a probe, with what is needed to tell its sites from others. */
export type SitesOfFile = Pick<FileSites, 'facts'> & { readonly sites: readonly Pick<Site, 'probe' | 'fileOffset'>[] }

/**
 * Throws if a site of one probe is a site of the other. Not to be asked of a function's entry and its return, which are named by the same offset and are two places.
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`
 */
export function refuseCommonSites(from: readonly SitesOfFile[], to: readonly SitesOfFile[]): void {
  const beginnings = new Map<string, Set<bigint>>()
  for (const { facts, sites } of from) beginnings.set(identityKey(facts.identity), new Set(sites.map(({ fileOffset }) => fileOffset)))
  for (const { facts, sites } of to) {
    const known = beginnings.get(identityKey(facts.identity))
    const common = known && sites.find(({ fileOffset }) => known.has(fileOffset))
    if (common === undefined) continue
    throw new UprobeError(
      'ERR_UPROBE_BAD_OPTION',
      `Option to: the latency would begin and end at the same site, ${describeSite(common, escapeForDisplay(facts.path))}, so that what is measured would be the time between two programs at one hit. ` +
        'Name a probe that is hit later, or patterns without a common site. The time from one hit to the next is not measured: trace the probe, and subtract hit.timestamp.',
    )
  }
}
