/**
 * All registrations of one probe: its parts, one for each file and process, and what they hold open.
 *
 * The attachment arms them, verifies them, ends one when its process is gone, and takes everything back. It knows nothing of hits.
 */
import { type FileFacts, type SiteTarget, verifySites } from '../counter/verify.js'
import type { UprobeError } from '../errors.js'
import type { Logger } from '../log.js'
import type { Native } from '../native.js'
import type { TargetFile } from '../target/file.js'
import type { TargetProcess } from '../target/process.js'
import { processesMapping } from '../target/scan.js'
import type { UprobePmu } from './pmu.js'
import type { CapturePrograms } from './programs.js'
import { registerSites, type SiteFailure } from './register.js'
import type { Site } from './site.js'

/** The sites of one file in one process, or in all. */
export interface Part {
  readonly file: TargetFile
  readonly facts: FileFacts
  /** `null` for every process that maps the file. */
  readonly target: TargetProcess | null
  readonly via: 'perf' | 'multi'
  /** Sites to register; those that fail are taken out. */
  sites: readonly Site[]
  /** Open perf events and links. */
  fds: readonly number[]
}

/** What an attachment is made of. */
export interface AttachmentParts {
  readonly native: Native
  readonly pmu: UprobePmu
  readonly programs: CapturePrograms
  readonly retprobe: boolean
  readonly parts: Part[]
  readonly log: Logger
}

/** What arming found. */
export interface ArmResult {
  readonly failures: readonly SiteFailure[]
  readonly warnings: readonly string[]
  /** By slot: the processes in which the site was looked at. */
  readonly targets: ReadonlyMap<number, readonly SiteTarget[]>
}

/** The registrations of one probe. */
export class Attachment {
  constructor(private readonly with_: AttachmentParts) {}

  /** The parts that are not ended. */
  get parts(): readonly Part[] {
    return this.with_.parts
  }

  /** Registers every part. Sites that the kernel refuses are reported and left out; any other failure throws, with everything taken back. */
  async register(signal: AbortSignal): Promise<SiteFailure[]> {
    const failures: SiteFailure[] = []
    try {
      for (const part of this.with_.parts) failures.push(...(await this.#registerPart(part, signal)))
      return failures
    } catch (error) {
      await this.unregister()
      throw error
    }
  }

  async #registerPart(part: Part, signal: AbortSignal): Promise<readonly SiteFailure[]> {
    signal.throwIfAborted()
    const { native, pmu, programs, retprobe } = this.with_
    const { file, target, sites, via } = part
    // Asked before and after, since the kernel takes a number and no pidfd.
    if (target !== null && !target.isAlive()) throw target.goneError()
    const { fds, failures } = await registerSites({ native, pmu, programs, retprobe, file, target, sites, via, signal })
    part.fds = fds
    if (target !== null && !target.isAlive()) {
      // The number may belong to another process by now, which must not keep our probe.
      part.fds = []
      await native.closeFds(fds)
      throw target.goneError()
    }
    const failed = new Set(failures.map((failure) => failure.site))
    part.sites = sites.filter((site) => !failed.has(site))
    return failures
  }

  /** Reads back every site in every process that can be looked at. */
  async verify(signal: AbortSignal): Promise<ArmResult> {
    const failures: SiteFailure[] = []
    const warnings: string[] = []
    const targets = new Map<number, SiteTarget[]>()
    for (const part of this.with_.parts) {
      const looked = part.target === null ? await processesMapping(this.with_.native, part.facts.identity, signal) : [part.target]
      try {
        for (const target of looked) {
          signal.throwIfAborted()
          const result = await verifySites(target, part.facts, part.sites)
          // A process that ended while we looked proves nothing.
          if (!target.isAlive()) continue
          failures.push(...result.failures)
          warnings.push(...result.warnings)
          for (const [slot, found] of result.sites) {
            const known = targets.get(slot)
            if (known === undefined) targets.set(slot, [found])
            else known.push(found)
          }
        }
      } finally {
        if (part.target === null) for (const target of looked) target.close()
      }
    }
    return { failures, warnings, targets }
  }

  /** Ends the parts of one process. */
  async endTarget(target: TargetProcess): Promise<void> {
    const ended = this.with_.parts.filter((part) => part.target === target)
    this.with_.parts.splice(0, Infinity, ...this.with_.parts.filter((part) => part.target !== target))
    await this.#release(ended)
  }

  /**
   * Registers the parts of one process anew on a thread that lives, after the leader thread exited: the filter of a perf event looks for the leader's address
   * space, which is gone then (`__uprobe_perf_filter`, kernel/trace/trace_uprobe.c). The new registration is in before the old one goes.
   */
  async moveToLivingThread(target: TargetProcess, signal: AbortSignal): Promise<void> {
    for (const part of this.with_.parts) {
      if (part.target !== target || part.via !== 'perf') continue
      const old = part.fds
      await this.#registerPart(part, signal)
      await this.with_.native.closeFds(old)
    }
  }

  /** Takes every registration out of the kernel; resolves when they are gone. They can be registered again. Idempotent. */
  async unregister(): Promise<void> {
    await this.#release(this.with_.parts)
  }

  async #release(parts: readonly Part[]): Promise<void> {
    const fds = parts.flatMap((part) => part.fds)
    for (const part of parts) part.fds = []
    if (fds.length > 0) await this.with_.native.closeFds(fds)
  }

  /** The error of the first failure, if any. */
  static firstError(failures: readonly SiteFailure[]): UprobeError | undefined {
    return failures[0]?.error
  }
}
