/**
 * `repair()`: finds what others left behind in counters, and puts it right if it is told to.
 */
import { readdirSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Logger as PinoLogger } from 'pino'
import { inspectProcess } from './counter/inspect.js'
import { KnownOwners } from './counter/known-owners.js'
import { defaultLeaseDirectory, hiddenLeases, LeaseDirectory } from './counter/lease-directory.js'
import { type Recovered, recoverOrphans } from './counter/recover.js'
import { audit, isRepairable, leftOrphan, type RepairEntry, repairCounter, whyDebugged } from './counter/repair.js'
import { UprobeError } from './errors.js'
import { childLogger, type Logger, processForDisplay } from './log.js'
import { loadNative, type Native } from './native.js'
import { TargetProcess } from './target/process.js'

/** Options of {@link repair}. */
export interface RepairOptions {
  /** The process; default: every process. */
  pid?: number | undefined
  /** Only say what would be done. Default: true. */
  dryRun?: boolean | undefined
  /** Directory of the leases; default: that of the tracer. */
  leaseDir?: string | undefined
  /**
   * Called for what could not be looked at where every process was to be: `ERR_UPROBE_TARGET_DENIED` for each process that may not be, and `ERR_UPROBE_LEASE` where the leases of root's agents may not
   * be read, so that their claims look like those of nobody. What is wrong there is in no entry.
   */
  onUnseen?: ((error: UprobeError) => void) | undefined
  /** A pino logger; each change is logged with what it was, what it is, and who asked for it. Default: no logging. */
  logger?: PinoLogger | false | undefined
}

/**
 * Looks for claims of dead agents, claims of nobody, counts that leaked, negative counters and breakpoints that nobody holds, and says what would be done about each; with
 * `dryRun: false` does it, and reads back. docs/counters.md explains the states and the arithmetic.
 *
 * @returns an entry for each thing that is wrong; none if nothing is
 * @throws {UprobeError} `ERR_UPROBE_TARGET_GONE`, `ERR_UPROBE_TARGET_DENIED`, `ERR_UPROBE_LEASE`, `ERR_UPROBE_BAD_OPTION`
 */
export async function repair(options: RepairOptions = {}): Promise<RepairEntry[]> {
  const { pid, dryRun = true, leaseDir } = options
  if (pid !== undefined && (!Number.isInteger(pid) || pid < 1))
    throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'Option pid: give a positive pid.')
  const native = loadNative()
  const log = childLogger(options.logger ?? false, 'repair')
  const directory = LeaseDirectory.open(native, leaseDir ?? defaultLeaseDirectory(), 'ignore')
  try {
    const recovered = directory === null ? [] : await recoverOrphans(native, directory, log, { pid, dryRun, check: refuseDebugged })
    const entries = recovered.flatMap((one) => toEntries(one, dryRun))
    if (!dryRun) for (const entry of entries) audit(log, entry)
    const known = new Set(entries.map(placeOf))
    const walk: Walk = { owners: new KnownOwners(native, directory), directory, dryRun, log, isKnown: (entry) => known.has(placeOf(entry)) }
    if (pid !== undefined) {
      entries.push(...(await repairProcess(walk, TargetProcess.open(native, pid))))
      return entries
    }
    const hidden = hiddenLeases(leaseDir)
    if (hidden !== null) options.onUnseen?.(hidden)
    for (const target of everyProcess(native)) {
      try {
        entries.push(...(await repairProcess(walk, target)))
      } catch (error) {
        if (!isPassed(error)) throw error
        if (error.code === 'ERR_UPROBE_TARGET_DENIED' && !target.isKernelThread) options.onUnseen?.(error)
      }
      await nextTurn()
    }
    return entries
  } finally {
    directory?.close()
  }
}

/** What the repair of each process needs. */
interface Walk {
  readonly owners: KnownOwners
  readonly directory: LeaseDirectory | null
  readonly dryRun: boolean
  readonly log: Logger
  /** Whether there is an entry for this place already: in a dry run the bits of dead agents are still there. */
  isKnown(place: Pick<RepairEntry, 'pid' | 'address'>): boolean
}

function placeOf({ pid, address }: Pick<RepairEntry, 'pid' | 'address'>): string {
  return `${pid} ${address}`
}

/** A debugger may count by hand, and store what it remembers: what belongs to its process is left. */
function refuseDebugged(target: TargetProcess): void {
  const why = whyDebugged(target)
  if (why !== null) throw new UprobeError('ERR_UPROBE_TARGET_DENIED', `Process ${target.pid} was left: ${why}.`, { pid: target.pid })
}

async function repairProcess({ owners, directory, dryRun, log, isKnown }: Walk, target: TargetProcess): Promise<RepairEntry[]> {
  try {
    const entries: RepairEntry[] = []
    await inspectProcess(owners, target, async (inspected) => {
      const context = { native: owners.native, owners, target, dryRun, log, directory }
      for (const one of inspected) {
        if (isRepairable(one.state)) entries.push(await repairCounter(context, one))
        else if (one.state === 'orphan-claim' && !isKnown({ pid: target.pid, address: one.address })) entries.push(leftOrphan(context, one))
      }
    })
    return entries
  } finally {
    target.close()
  }
}

/** What became of a dead agent's lease, an entry for each bit. */
function toEntries({ lease, cleared }: Recovered, dryRun: boolean): RepairEntry[] {
  if (lease === null) return []
  return cleared.map(({ pid, address, before, after }) => {
    const counter = lease.counters.find((one) => one.address === address)
    return {
      pid,
      path: lease.file.path,
      provider: counter?.provider ?? '',
      name: counter?.name ?? '',
      address,
      problem: 'orphan-claim' as const,
      before,
      after,
      applied: !dryRun,
      note: `${dryRun ? 'would clear' : 'cleared'} the claim of ${processForDisplay(lease.owner)}, which is dead`,
    }
  })
}

function* everyProcess(native: Native): Generator<TargetProcess> {
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      yield TargetProcess.open(native, Number(name))
    } catch (error) {
      if (!isPassed(error)) throw error
    }
  }
}

/** A process that ended, or that may not be looked at, is passed over when all are looked at. */
function isPassed(error: unknown): error is UprobeError {
  return error instanceof UprobeError && (error.code === 'ERR_UPROBE_TARGET_GONE' || error.code === 'ERR_UPROBE_TARGET_DENIED')
}
