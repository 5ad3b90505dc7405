/**
 * Looking at the target after a registration: is each site armed, and was each counter raised?
 *
 * The kernel can accept a probe and not install it: where the text is anonymous, shared or on huge pages, and in mappings that come later, whose install
 * error it ignores. And it raises a counter only where it finds it in a private, writable mapping of the same file (`valid_ref_ctr_vma`,
 * kernel/events/uprobes.c). Neither is reported, so both are read back.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { SiteWork } from '../progress.js'
import { describeSite, type Site } from '../register/site.js'
import { codeAddress, mappingsOf } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import { Glimpse } from './glimpse.js'
import { counterPlaces } from './places.js'
import { CLAIM, inspectCounter, isArmed, readCounter } from './read.js'
import type { ArmedState, FileFacts } from './site-facts.js'
import { SiteFindings } from './site-findings.js'

/** What was found in one process. */
export interface Verification {
  readonly sites: SiteFindings
  readonly failures: ReadonlyArray<{ readonly site: Site; readonly error: UprobeError }>
  readonly warnings: readonly string[]
}

/** A process that is looked at. */
type Looked = Pick<TargetProcess, 'pid' | 'procDirectory' | 'maps' | 'readMemory'>

/**
 * Reads back the sites of one file in one process.
 * @param sites - in the order of their slots
 * @param work - leaves the event loop its turn; the sites are counted
 */
export async function verifySites(target: Looked, facts: FileFacts, sites: readonly Site[], work: SiteWork): Promise<Verification> {
  const found = new SiteFindings(target.pid, { first: sites[0]?.slot ?? 0, last: sites.at(-1)?.slot ?? -1 })
  const failures: Array<{ site: Site; error: UprobeError }> = []
  const warnings: string[] = []
  const all = await target.maps(true)
  const mappings = mappingsOf(target.procDirectory, all, facts.identity)
  const readings = new Map<bigint, ReturnType<typeof inspectCounter>>()
  const path = escapeForDisplay(facts.path)
  const glimpse = new Glimpse(target, facts, all, mappings)
  const lookClosely = (site: Site): void => {
    const address = codeAddress(mappings, site.fileOffset)
    const where = describeSite(site, path)
    const note = (state: ArmedState, counter: number | null = null): void => {
      found.note(site.slot, { pid: target.pid, state, address, counter })
    }
    const fail = (
      code: 'ERR_UPROBE_NOT_ARMED' | 'ERR_UPROBE_COUNTER_UNREACHABLE' | 'ERR_UPROBE_COUNTER_NEGATIVE' | 'ERR_UPROBE_COUNTER_NOT_RAISED',
      why: string,
      counter: number | null = null,
    ): void => {
      note('not-armed', counter)
      failures.push({
        site,
        error: new UprobeError(code, `${where} in process ${target.pid}: ${why}`, { site: where, path, pid: target.pid }),
      })
    }
    if (address === null) {
      note('not-mapped')
      return
    }
    const original = facts.originals.get(site.fileOffset)
    const armed = original === undefined ? null : isArmed(target, mappings, site.fileOffset, original)
    if (armed === null) {
      note('unverified')
      return
    }
    if (!armed) {
      fail(
        'ERR_UPROBE_NOT_ARMED',
        'the kernel accepted the probe, but the breakpoint is not there. Text on huge pages, or in a shared, writable or anonymous mapping, cannot be probed.',
      )
      return
    }
    if (site.refCtrOffset === null) {
      const claimed = site.counterVaddr === null ? undefined : facts.counters.get(site.counterVaddr)
      const values =
        claimed === undefined ? [] : counterPlaces(all, mappings, claimed).places.map((place) => readCounter(target, place.address))
      const off = values.find((value) => value !== null && (value & CLAIM) === 0)
      if (off === undefined) note('armed', values[0] ?? null)
      else fail('ERR_UPROBE_COUNTER_NOT_RAISED', `its counter was claimed and reads ${off}. Another tool has written it.`, off)
      return
    }
    let reading = readings.get(site.refCtrOffset)
    if (reading === undefined) {
      const sites = site.counterVaddr === null ? undefined : facts.counters.get(site.counterVaddr)?.sites
      reading = inspectCounter(target, mappings, site.refCtrOffset, sites ?? [])
      readings.set(site.refCtrOffset, reading)
      if (reading.value !== null && (reading.value & CLAIM) === 0 && reading.value > reading.armedSites) {
        warnings.push(
          `${where} in process ${target.pid}: the counter reads ${reading.value} and ${reading.armedSites} of its sites are armed, so another tool ` +
            'counts by hand or left a count behind; the probe will stay switched on after detach',
        )
      }
    }
    if (reading.address === null) {
      fail('ERR_UPROBE_COUNTER_UNREACHABLE', 'its counter lies where the kernel never finds it, so the probe is not switched on.')
    } else if (reading.value === null) {
      note('unverified')
    } else if ((reading.value & CLAIM) !== 0) {
      // The kernel counts nothing where a breakpoint is in already, and so it refuses nothing either; but it will not take the breakpoint out.
      fail(
        'ERR_UPROBE_COUNTER_NEGATIVE',
        `its counter reads 0x${reading.value.toString(16)}, which the kernel takes for negative, and a breakpoint was left in it. \`uprobe repair ${target.pid}\` says what can be done.`,
        reading.value,
      )
    } else if (reading.value < reading.armedSites) {
      fail(
        'ERR_UPROBE_COUNTER_NOT_RAISED',
        `its counter reads ${reading.value}, and ${reading.armedSites} of its sites are armed. Another tool may have written it; detach that tool and attach again.`,
        reading.value,
      )
    } else {
      note('armed', reading.value)
    }
  }
  await work.each(sites, (site) => {
    work.count()
    if (glimpse.seesArmed(site)) found.armed(site.slot, glimpse.address, glimpse.counter)
    else lookClosely(site)
    return undefined
  })
  return { sites: found, failures, warnings }
}
