/**
 * Clearing what dead agents left.
 *
 * A lease whose owner's lock is free names a process, an address space, and addresses. Only if that very space still exists, and no living agent is present at a counter, is its bit
 * cleared; then those of the children that were born under it; then the lease goes. Nothing else is ever written: a lease that cannot be understood says nothing about anybody's
 * memory.
 */
import { closeSync, lstatSync, readlinkSync, unlinkSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { TimeSlice } from '../elf/time-slice.js'
import { ENOENT } from '../errno.js'
import { errnoOf, isSystemCallError } from '../errors.js'
import type { Logger } from '../log.js'
import type { Native } from '../native.js'
import { readTextOrNull } from '../read-text.js'
import type { TargetProcess } from '../target/process.js'
import { type ClearedBit, clearUnowned, type UnownedBits } from './cells.js'
import { CounterLocks } from './counter-locks.js'
import { isOfOneProcess, openIfThere } from './gone.js'
import { clearInherited, type EndedClaim } from './inherited.js'
import type { LeaseRecord } from './lease.js'
import { type LeaseDirectory, type LeaseEntry, type LeaseFile, leaseError } from './lease-directory.js'
import { BOOT_ID, innermostPid, readSpace, sameSpace } from './space.js'

/** What became of one lease of a dead owner. */
export interface Recovered {
  readonly name: string
  /** `null` if it could not be understood. */
  readonly lease: LeaseRecord | null
  /** The bits that were cleared, or would be. */
  readonly cleared: readonly ClearedBit[]
  /**
   * - `cleared`: there were bits;
   * - `nothing-left`: the process or its program is gone, or the bits are clear, or a living agent has them;
   * - `unreachable`: the process is in a pid namespace that cannot be seen from here, or may not be written by us, or the lease is of a newer version of this package; the lease stays;
   * - `corrupt`: the lease cannot be understood, and was removed.
   */
  readonly outcome: 'cleared' | 'nothing-left' | 'unreachable' | 'corrupt'
}

/** Options of {@link recoverOrphans}. */
export interface RecoverOptions {
  /** Only leases on this process, as we see it. */
  readonly pid?: number | undefined
  /** Say what would be done, and do nothing. */
  readonly dryRun?: boolean | undefined
  /** Throws an `UprobeError` if a process must not be touched; the lease stays then. */
  readonly check?: UnownedBits['check']
}

/** Inode of the initial pid namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h), from which every process is seen. */
const INITIAL_PID_NAMESPACE = '4026531836'

/** How long to wait for another agent that is recovering. One that takes longer is stopped, or debugged. */
const PATIENCE_MS = 5000
/** How many of the bits of a lease are told of one by one: it may have thousands. */
const BITS_TOLD = 64
/** A file that is being written is there for some microseconds before it has its name. */
const UNFINISHED_MS = 60_000

/**
 * Clears what dead agents left, and removes their leases.
 * @throws {UprobeError} `ERR_UPROBE_LEASE`, `ERR_UPROBE_LIMIT`; what concerns one process only does not keep the leases on others from being seen to
 */
export async function recoverOrphans(
  native: Native,
  directory: LeaseDirectory,
  log: Logger,
  options: RecoverOptions = {},
): Promise<Recovered[]> {
  if (!hasOrphans(directory)) return []
  const locksFd = openLocks(directory)
  try {
    const locks = new CounterLocks(native, locksFd)
    const bits: UnownedBits = { native, locks, isOurs: () => false, dryRun: options.dryRun ?? false, check: options.check }
    const recovered = await locks.recovering(PATIENCE_MS, () => recoverAll(bits, directory, log, options))
    if (recovered === null)
      throw leaseError(directory.path, 'is being looked through by another agent, which does not come to an end', undefined, 'look')
    return recovered
  } finally {
    closeSync(locksFd)
  }
}

/** Whether there is anything of a dead owner. */
function hasOrphans(directory: LeaseDirectory): boolean {
  return directory.owners().some(({ alive }) => !alive) || directory.entries().some(isOrphan) || unfinished(directory).length > 0
}

function isOrphan({ ownerAlive, left }: LeaseEntry): boolean {
  return !ownerAlive || left
}

/** A lease of a dead owner, and what has been found so far. */
interface Orphan {
  readonly file: LeaseFile
  outcome: Recovered['outcome']
  readonly cleared: ClearedBit[]
  /** By which children that inherited it are found. */
  readonly claim: EndedClaim | null
  /** Whether it is among those that were asked for, and not only the children that inherited it. */
  readonly wanted: boolean
}

async function recoverAll(bits: UnownedBits, directory: LeaseDirectory, log: Logger, { pid }: RecoverOptions): Promise<Recovered[]> {
  const orphans: Orphan[] = []
  const slice = new TimeSlice()
  // Asked again, since somebody else may have been recovering until now.
  for (const entry of directory.entries().filter(isOrphan)) {
    // A megabyte may be read, which is not to be added to what was done in this turn before.
    await slice.rest()
    const file = await directory.read(entry)
    if (file !== null) orphans.push(await recoverOne(bits, file, log, pid))
  }
  await recoverChildren(bits, orphans, log, pid)

  const found = orphans.filter(({ wanted, cleared }) => wanted || cleared.length > 0)
  if (!bits.dryRun) {
    for (const { file, outcome, cleared, wanted } of found) {
      if (wanted && outcome !== 'unreachable') remove(directory, file.name, log)
      const some = cleared.slice(0, BITS_TOLD).map(describeBit)
      log.warn({ lease: file.name, outcome, bits: cleared.length, cleared: some }, 'a lease of a dead agent was found')
    }
    removeDeadOwners(directory, log)
  }
  return found.map(({ file: { name, lease }, cleared, outcome }) => ({
    name,
    lease,
    cleared,
    outcome: outcome === 'nothing-left' && cleared.length > 0 ? 'cleared' : outcome,
  }))
}

/** Sees to the process that a lease names. */
async function recoverOne(bits: UnownedBits, file: LeaseFile, log: Logger, onlyPid: number | undefined): Promise<Orphan> {
  const { lease, leave } = file
  const all = onlyPid === undefined
  if (leave !== null) {
    log.warn({ lease: file.name }, `a lease of a dead agent was left: ${leave}`)
    return { file, outcome: 'unreachable', cleared: [], claim: null, wanted: all }
  }
  if (lease === null) return { file, outcome: 'corrupt', cleared: [], claim: null, wanted: all }
  if (lease.bootId !== BOOT_ID) return { file, outcome: 'nothing-left', cleared: [], claim: null, wanted: all }
  const target = await findProcess(bits.native, lease)
  if (target === 'unreachable')
    return { file, outcome: 'unreachable', cleared: [], claim: null, wanted: all || onlyPid === lease.target.pid }
  try {
    const { file: identity, counters: places, sinceTicks } = lease
    const { space } = lease.target
    const claim: EndedClaim = { file: identity, places, space, pid: target?.pid ?? null, sinceTicks }
    const wanted = all || onlyPid === (target?.pid ?? lease.target.pid)
    const cleared = target === null || !wanted ? [] : await clearUnowned(bits, target, space, identity, places, () => true)
    return { file, outcome: 'nothing-left', cleared, claim, wanted }
  } catch (error) {
    if (!isOfOneProcess(error)) throw error
    log.warn({ err: error, lease: file.name }, 'a claim of a dead agent could not be cleared; its lease stays')
    return { file, outcome: 'unreachable', cleared: [], claim: null, wanted: true }
  } finally {
    target?.close()
  }
}

/** Sees to the children that inherited bits: of all leases in one walk; of those that are not wanted, to the one process that is. */
async function recoverChildren(bits: UnownedBits, orphans: readonly Orphan[], log: Logger, onlyPid: number | undefined): Promise<void> {
  for (const wanted of [true, false]) {
    const owners = new Map(
      orphans.flatMap((orphan) => (orphan.claim !== null && orphan.wanted === wanted ? [[orphan.claim, orphan] as const] : [])),
    )
    const born = await clearInherited(bits, [...owners.keys()], {
      onlyPid: wanted ? undefined : onlyPid,
      onFailure: (claim, error) => {
        const orphan = owners.get(claim)
        if (orphan !== undefined) orphan.outcome = 'unreachable'
        log.warn({ err: error, lease: orphan?.file.name }, 'a claim that a child inherited could not be cleared; its lease stays')
      },
    })
    for (const [claim, cleared] of born) owners.get(claim)?.cleared.push(...cleared)
  }
}

/** The claimed process, if it still is what was claimed; `null` if it is gone, or has become another program. */
async function findProcess(native: Native, lease: LeaseRecord): Promise<TargetProcess | 'unreachable' | null> {
  const ownNamespace = /\d+/.exec(readlinkSync('/proc/self/ns/pid'))?.[0]
  // The owner's numbers mean nothing in another namespace; the space is known by its own.
  const near = lease.owner.pidNamespace === ownNamespace
  const candidates = near ? [String(lease.target.pid)] : (await readdir('/proc')).filter((name) => /^\d+$/.test(name))
  let hidden = false
  for (const name of candidates) {
    const target = openIfThere(native, Number(name))
    if (target === null) continue
    const space = readSpace(target)
    if (space !== null && sameSpace(space, lease.target.space)) return target
    if (space === null && mayBe(target, lease)) hidden = true
    target.close()
  }
  if (hidden) return 'unreachable'
  return near || ownNamespace === INITIAL_PID_NAMESPACE ? null : 'unreachable'
}

/** Whether a process that may not be looked at can be the claimed one, as far as anybody may know. */
function mayBe(target: TargetProcess, lease: LeaseRecord): boolean {
  const status = readTextOrNull(`${target.procDirectory}/status`) ?? ''
  // A thread of the kernel has no memory.
  return /^VmSize:/m.test(status) && innermostPid(status) === lease.target.space.pid && target.isAlive()
}

function describeBit({ pid, address, before, after }: ClearedBit): object {
  return { pid, address: `0x${address.toString(16)}`, before, after }
}

function openLocks(directory: LeaseDirectory): number {
  try {
    return directory.openLocks()
  } catch (error) {
    throw isSystemCallError(error) ? leaseError(directory.path, 'cannot be written', error, 'look') : error
  }
}

/** Removes the files of owners that are dead and have no lease left, and what agents that died while they wrote have left. */
function removeDeadOwners(directory: LeaseDirectory, log: Logger): void {
  const owners = directory.owners()
  const names = directory.names()
  for (const { id, alive } of owners) {
    if (alive || names.some((name) => /^(lease|released|left)-/.test(name) && name.includes(`-${id}-`))) continue
    for (const name of [`owner-${id}.json`, `owner-${id}.sock`]) remove(directory, name, log)
  }
  for (const name of unfinished(directory)) remove(directory, name, log)
}

/** Files that were never given their name. Whoever writes for longer than a minute finds its file gone, and fails. */
function unfinished(directory: LeaseDirectory): string[] {
  return directory.names().filter((name) => {
    if (!/^new-(owner|lease)-/.test(name)) return false
    const stat = lstatSync(directory.pathOf(name), { throwIfNoEntry: false })
    return stat !== undefined && Date.now() - stat.ctimeMs > UNFINISHED_MS
  })
}

/** Removes what is not needed any more. What cannot be removed, as a directory in its place, is found again by the next who looks, and does no harm. */
function remove(directory: LeaseDirectory, name: string, log: Logger): void {
  try {
    unlinkSync(directory.pathOf(name))
  } catch (error) {
    if (!isSystemCallError(error)) throw error
    if (errnoOf(error) !== ENOENT) log.warn({ err: error, file: name }, 'a file of a dead agent cannot be removed')
  }
}
