/**
 * Counters that the kernel takes for negative, on which nothing may be registered.
 *
 * The kernel refuses such a registration by itself, with one exception: where a breakpoint was left in, it has none to write, does not look at the counter, and accepts. When the registration goes, it
 * cannot count down, and leaks a uprobe (`update_ref_ctr` and `uprobe_write_opcode`, kernel/events/uprobes.c). So a process is looked at before sites are registered in it, also
 * each time they are registered again: another tool may have set the bit in between.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { SiteWork } from '../progress.js'
import { describeSite, type Site } from '../register/site.js'
import { codeAddress, counterAddress, type Mapping, mappingsOf } from '../target/maps.js'
import { PagedMemory } from '../target/paged-memory.js'
import type { TargetProcess } from '../target/process.js'
import { CLAIM, readCounterOf } from './read.js'
import type { FileFacts } from './verify.js'

/** A process, and where it maps the file of the counters. */
export interface CounterView {
  readonly target: TargetProcess
  readonly memory: PagedMemory
  readonly mappings: readonly Mapping[]
}

/** The counter, if the kernel takes it for negative and it is no claim; otherwise `null`. Claims are guarded: the kernel refuses before it looks. */
export function readNegative({ target, memory, mappings }: CounterView, refCtrOffset: bigint): number | null {
  const address = counterAddress(mappings, refCtrOffset)
  const glimpse = address === null ? null : memory.u16(address)
  if (glimpse === null || glimpse <= CLAIM) return null
  const value = readCounterOf(target, mappings, refCtrOffset)
  return value !== null && value > CLAIM ? value : null
}

/**
 * Looks at the counters of sites of one file before they are registered again in a process.
 * @param work - leaves the event loop its turn; the sites are not counted
 * @throws {UprobeError} `ERR_UPROBE_COUNTER_NEGATIVE`
 */
export async function refuseNegative(target: TargetProcess, facts: FileFacts, sites: readonly Site[], work: SiteWork): Promise<void> {
  if (sites.every(({ refCtrOffset }) => refCtrOffset === null)) return
  // The map of a leader thread that has exited is empty.
  target.refreshThread()
  const mappings = mappingsOf(target.procDirectory, await target.maps(), facts.identity)
  const view = { target, memory: new PagedMemory(target), mappings }
  await work.each(sites, (site) => {
    if (site.refCtrOffset === null || codeAddress(mappings, site.fileOffset) === null) return undefined
    const value = readNegative(view, site.refCtrOffset)
    if (value !== null) throw negativeCounter(describeSite(site, escapeForDisplay(facts.path)), target.pid, value)
    return undefined
  })
}

/** What to say of a counter that the kernel takes for negative. */
export function negativeMessage(where: string, pid: number, value: number): string {
  return (
    `${where}: its counter reads 0x${value.toString(16)} in process ${pid}. The kernel takes that as negative and refuses to count. ` +
    `Another tool set the most significant bit, or subtracted too much. \`uprobe repair ${pid}\` says what can be done.`
  )
}

/** A counter that the kernel could not count on. */
export function negativeCounter(where: string, pid: number, value: number): UprobeError {
  return new UprobeError('ERR_UPROBE_COUNTER_NEGATIVE', negativeMessage(where, pid, value), { site: where, pid })
}
