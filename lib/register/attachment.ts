/**
 * All registrations of one probe: its parts, one for each file and process, and what they hold open.
 *
 * The attachment arms them, verifies them, ends one when its process is gone, and takes everything back. It knows nothing of hits.
 */
import type { SeeLate } from '../counter/claims.js'
import { refuseNegative } from '../counter/negative.js'
import type { FileFacts } from '../counter/site-facts.js'
import type { SiteFindings } from '../counter/site-findings.js'
import { verifySites } from '../counter/verify.js'
import { escapeForDisplay } from '../log.js'
import type { Native } from '../native.js'
import { SiteWork } from '../progress.js'
import type { TargetFile } from '../target/file.js'
import type { TargetProcess } from '../target/process.js'
import { processesMapping } from '../target/scan.js'
import { closeRegistrations } from './close.js'
import { checkEvents } from './many-events.js'
import type { UprobePmu } from './pmu.js'
import type { CapturePrograms } from './programs.js'
import { type Registration, registerSites, type SiteFailure } from './register.js'
import type { Site } from './site.js'

/** The sites of one file in one process, or in all. */
export interface Part {
  readonly file: TargetFile
  readonly facts: FileFacts
  /** `null` for every process that maps the file. */
  readonly target: TargetProcess | null
  /** How the sites are registered; once the leader thread has exited, only `perf` is possible. */
  via: 'perf' | 'multi'
  /** Sites to register. */
  sites: readonly Site[]
  /** Open perf events and links. */
  fds: readonly number[]
  /** The thread that perf events are open on; `null` if nothing was registered yet, or for every process. */
  tid: number | null
}

/** What an attachment is made of. */
export interface AttachmentParts {
  readonly native: Native
  readonly pmu: UprobePmu
  readonly programs: CapturePrograms
  readonly retprobe: boolean
  readonly parts: Part[]
  readonly seeLate: SeeLate
  /** Is told what is not as asked for, as a sentence. */
  onWarning(warning: string): void
}

/** A site that could not be registered in one part of the probe. */
export interface PartFailure extends SiteFailure {
  readonly part: Part
}

/** What arming found. */
export interface ArmResult {
  readonly failures: readonly SiteFailure[]
  readonly warnings: readonly string[]
  /** What was found in each process, for the sites of one file each. */
  readonly found: readonly SiteFindings[]
}

/** What is to be said of a process that was named and does not map the file, where nothing is ever hit until it does; `null` if it maps any of the sites. */
function describeUnmapped({ file, target, sites }: Part, found: SiteFindings): string | null {
  if (target === null || sites.some(({ slot }) => found.get(slot)?.state !== 'not-mapped')) return null
  const does = `process ${target.pid} does not map ${escapeForDisplay(file.path)} now; its sites are armed when it does`
  // The kernel does not raise a counter that is claimed (it was not told of it), and there was none to claim.
  const claimed = sites.some(({ refCtrOffset, counterVaddr }) => refCtrOffset === null && counterVaddr !== null)
  return claimed ? `${does}, but counters are claimed only at an attach: attach again then` : does
}

/** The registrations of one probe. */
export class Attachment {
  constructor(private readonly with_: AttachmentParts) {}

  /** The parts that are not ended. */
  get parts(): readonly Part[] {
    return this.with_.parts
  }

  /**
   * The share of all hits, while everything is being closed, that no program may see although the breakpoint is in: a perf event loses its program some time before its breakpoint goes (`_free_event`, kernel/events/core.c). That is 40 of 108 ms (measured; half, to be on the safe side), and they are closed one after the other.
   */
  get unseenShare(): number {
    const events = this.with_.parts.reduce((sum, { via, sites }) => sum + (via === 'perf' ? sites.length : 0), 0)
    return events === 0 ? 0 : 0.5 / events
  }

  /** Registers every part. Sites that the kernel refuses are reported; any other failure throws, with everything taken back. */
  async register(work: SiteWork): Promise<PartFailure[]> {
    const failures: PartFailure[] = []
    work.begin(
      'register',
      this.with_.parts.reduce((sum, { sites }) => sum + sites.length, 0),
    )
    try {
      for (const part of this.with_.parts) {
        const registration = await this.#registerPart(part, work)
        part.fds = registration.fds
        for (const failure of registration.failures) failures.push({ ...failure, part })
      }
      work.end()
      return failures
    } catch (error) {
      await this.unregister()
      throw error
    }
  }

  /**
   * Registers every part again, or nothing. In processes that are named the counters are looked at before, as they were at the first time.
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_NEGATIVE`, and why the kernel refuses a site
   */
  async registerAgain(signal: AbortSignal): Promise<void> {
    const { parts } = this.with_
    const work = SiteWork.quietly(signal)
    // What could not be closed would be forgotten, and stay.
    if (parts.some(({ fds }) => fds.length > 0)) await this.unregister()
    await refuseNegative(parts, work)
    const [first] = await this.register(work)
    if (first === undefined) return
    await this.unregister()
    throw first.error
  }

  /**
   * Leaves out what was refused, so that it is not asked for again.
   * @returns the slots of the sites that are left in no part
   */
  leaveOut(failures: readonly PartFailure[]): ReadonlySet<number> {
    const { parts } = this.with_
    const leftOut = new Set(failures.map(({ site }) => site.slot))
    if (leftOut.size === 0) return leftOut
    for (const part of parts) {
      const refused = new Set(failures.filter((failure) => failure.part === part).map(({ site }) => site))
      if (refused.size > 0) part.sites = part.sites.filter((site) => !refused.has(site))
      for (const { slot } of part.sites) leftOut.delete(slot)
    }
    return leftOut
  }

  /** Opens the registrations of a part, beside those that it has. */
  async #registerPart(part: Part, work: SiteWork): Promise<Registration> {
    work.signal.throwIfAborted()
    const { native, pmu, programs, retprobe } = this.with_
    const { file, target, sites } = part
    if (target !== null) {
      // Asked before and after, since the kernel takes a number and no pidfd.
      if (!target.isAlive()) throw target.goneError()
      target.refreshThread()
      // A link is made for the leader's address space, which is gone when the leader has exited; nothing would be armed, without an error.
      if (target.leaderExited && part.via !== 'perf') this.#takePerf(part)
    }
    const tid = target?.tid ?? null
    const registration = await registerSites({ native, pmu, programs, retprobe, file, target, sites, via: part.via, work })
    if (target === null || target.isAlive()) {
      part.tid = tid
      return registration
    }
    // The number may belong to another process by now, which must not keep our probe.
    await closeRegistrations(native, registration.fds)
    throw target.goneError()
  }

  /**
   * From now on the sites of a part are registered one by one.
   * @throws {UprobeError} `ERR_UPROBE_TOO_MANY_SITES`; the part is as before, so that the next attempt is refused too
   */
  #takePerf(part: Part): void {
    const { parts, onWarning } = this.with_
    const warnings = checkEvents(parts.map((one) => (one === part ? { via: 'perf', sites: one.sites } : one)))
    part.via = 'perf'
    for (const warning of warnings) onWarning(warning)
  }

  /** Reads back every site in every process that can be looked at. */
  async verify(work: SiteWork): Promise<ArmResult> {
    const failures: SiteFailure[] = []
    const warnings: string[] = []
    const found: SiteFindings[] = []
    // In how many processes a file is mapped is known only when all have been looked through.
    work.add(
      'verify',
      this.with_.parts.reduce((sum, { target, sites }) => sum + (target === null ? 0 : sites.length), 0),
    )
    for (const part of this.with_.parts) {
      const before = found.length
      const looked = part.target === null ? processesMapping(this.with_.native, part.facts.identity, work.signal) : [part.target]
      for await (const target of looked) {
        work.signal.throwIfAborted()
        target.refreshThread()
        if (part.target === null) work.add('verify', part.sites.length)
        const result = await verifySites(target, part.facts, part.sites, work)
        // A process that ended while we looked proves nothing, nor does one that became another program.
        if (!target.isAlive() || target.addressSpaceGone()) continue
        for (const failure of result.failures) failures.push(failure)
        for (const warning of result.warnings) warnings.push(warning)
        const unmapped = part.target === null ? null : describeUnmapped(part, result.sites)
        if (unmapped !== null) warnings.push(unmapped)
        found.push(result.sites)
      }
      if (part.target === null && found.length === before) {
        warnings.push(
          `no process that may be looked at maps ${escapeForDisplay(part.file.path)} by now; its sites are armed as soon as one does`,
        )
      }
    }
    work.end()
    return { failures, warnings, found }
  }

  /** Ends the parts of one process. */
  async endTarget(target: TargetProcess): Promise<void> {
    const ended = this.with_.parts.filter((part) => part.target === target)
    this.with_.parts.splice(0, Infinity, ...this.with_.parts.filter((part) => part.target !== target))
    await this.#release(ended)
  }

  /**
   * Registers the parts of one process anew on a thread that lives, if the one they are registered on has exited: the filter of a perf event looks for that
   * thread's address space, which is gone then (`__uprobe_perf_filter`, kernel/trace/trace_uprobe.c). The new registration is in before the old one goes.
   * @returns whether anything was moved
   */
  async moveToLivingThread(target: TargetProcess, signal: AbortSignal): Promise<boolean> {
    const left = this.with_.parts.filter((part) => part.target === target && part.via === 'perf' && part.tid !== target.tid)
    if (left.length === 0) return false
    const old: number[] = []
    try {
      await this.with_.seeLate(target.pid, () => this.#registerAnew(left, old, signal))
    } finally {
      await closeRegistrations(this.with_.native, old)
    }
    return true
  }

  /** @param old - gets what was open before */
  async #registerAnew(parts: readonly Part[], old: number[], signal: AbortSignal): Promise<void> {
    for (const part of parts) {
      // The counters are not looked at: the breakpoint is in already, so the kernel counts nothing.
      const { fds, failures } = await this.#registerPart(part, SiteWork.quietly(signal))
      old.push(...part.fds)
      part.fds = fds
      const [first] = failures
      if (first !== undefined) throw first.error
    }
  }

  /**
   * Takes every registration out of the kernel; resolves when they are gone. They can be registered again. Idempotent.
   * @param work - counts the sites
   */
  async unregister(work?: SiteWork): Promise<void> {
    await this.#release(this.with_.parts, work)
  }

  async #release(parts: readonly Part[], work?: SiteWork): Promise<void> {
    const links: number[] = []
    const events: number[] = []
    let sites = 0
    for (const part of parts) {
      ;(part.via === 'multi' ? links : events).push(...part.fds)
      if (part.via === 'multi' && part.fds.length > 0) sites += part.sites.length
      part.fds = []
    }
    work?.add('unregister', sites + events.length)
    try {
      for (const target of new Set(parts.map((part) => part.target))) await target?.programMapped()
    } finally {
      // Whatever failed before: nobody else knows them any more.
      try {
        await closeRegistrations(this.with_.native, links)
        work?.advance(sites)
      } finally {
        await closeRegistrations(this.with_.native, events, work === undefined ? undefined : (count) => work.advance(count))
      }
    }
    work?.end()
  }
}
