/**
 * Counters that the kernel takes for negative, on which nothing may be registered.
 *
 * The kernel refuses such a registration by itself, with one exception: where a breakpoint was left in, it has none to write, does not look at the counter, and accepts. When the registration goes, it
 * cannot count down, and leaks a uprobe (`update_ref_ctr` and `uprobe_write_opcode`, kernel/events/uprobes.c). So a process that is named is looked at before sites are registered in it, also
 * each time they are registered again: another tool may have set the bit in between.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { SiteWork } from '../progress.js'
import { describeSite, type Site } from '../register/site.js'
import { codeAddress, counterAddress, type FileIdentity, type Mapping, mappingsByFile } from '../target/maps.js'
import { PagedMemory } from '../target/paged-memory.js'
import type { TargetProcess } from '../target/process.js'
import { CLAIM, isArmed, readCounterOf } from './read.js'
import type { FileFacts } from './site-facts.js'

/** A process, and where it maps the file of the counters. */
export interface CounterView {
  readonly target: TargetProcess
  readonly memory: PagedMemory
  readonly mappings: readonly Mapping[]
}

/** The counter, if the kernel takes it for negative; otherwise `null`. {@link CLAIM} may be a claim, which is guarded: the kernel then refuses before it looks. */
export function readNegative({ target, memory, mappings }: CounterView, refCtrOffset: bigint): number | null {
  const address = counterAddress(mappings, refCtrOffset)
  const glimpse = address === null ? null : memory.u16(address)
  if (glimpse === null || glimpse < CLAIM) return null
  const value = readCounterOf(target, mappings, refCtrOffset)
  return value !== null && value >= CLAIM ? value : null
}

/** Sites of one file, to be registered again. */
interface Part {
  /** `null` for every process: these are not looked through. */
  readonly target: TargetProcess | null
  readonly facts: FileFacts
  readonly sites: readonly Site[]
}

/**
 * Looks at the counters of sites before they are registered again, in the processes that are named.
 * @param work - leaves the event loop its turn; the sites are not counted
 * @throws {UprobeError} `ERR_UPROBE_COUNTER_NEGATIVE`
 */
export async function refuseNegative(parts: readonly Part[], work: SiteWork): Promise<void> {
  const looks = new Map<TargetProcess, { memory: PagedMemory; ofFile: (identity: FileIdentity) => Mapping[] }>()
  for (const { target, facts, sites } of parts) {
    if (target === null || sites.every(({ refCtrOffset }) => refCtrOffset === null)) continue
    let look = looks.get(target)
    if (look === undefined) {
      // The map of a leader thread that has exited is empty.
      target.refreshThread()
      look = { memory: new PagedMemory(target), ofFile: mappingsByFile(target.procDirectory, await target.maps()) }
      looks.set(target, look)
    }
    const view = { target, memory: look.memory, mappings: look.ofFile(facts.identity) }
    await work.each(sites, (site) => {
      const value = site.refCtrOffset === null ? null : readNegative(view, site.refCtrOffset)
      if (value === null || codeAddress(view.mappings, site.fileOffset) === null) return undefined
      // A counter that reads as a claimed one may be that, and the kernel says so better; but over a breakpoint that was left in it would accept, and cannot be asked without a leak.
      if (value === CLAIM && !mayBeArmed(view, facts, site)) return undefined
      throw negativeCounter(describeSite(site, escapeForDisplay(facts.path)), target.pid, value)
    })
  }
}

function mayBeArmed({ target, mappings }: CounterView, { originals }: FileFacts, { fileOffset }: Site): boolean {
  const original = originals.get(fileOffset)
  return original === undefined || isArmed(target, mappings, fileOffset, original) !== false
}

/** What to say of a counter that the kernel takes for negative. */
export function negativeMessage(where: string, pid: number, value: number): string {
  return (
    `${where}: its counter reads 0x${value.toString(16)} in process ${pid}. The kernel takes that as negative and refuses to count. ` +
    `Another tool set the most significant bit, or subtracted too much${value === CLAIM ? ', or an agent of this package has claimed it: `uprobe counters` tells' : ''}. ` +
    `\`uprobe repair ${pid}\` says what can be done.`
  )
}

/** A counter that the kernel could not count on. */
export function negativeCounter(where: string, pid: number, value: number): UprobeError {
  return new UprobeError('ERR_UPROBE_COUNTER_NEGATIVE', negativeMessage(where, pid, value), { site: where, pid })
}
