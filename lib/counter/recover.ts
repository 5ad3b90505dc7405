/**
 * Clearing what dead agents left.
 *
 * A lease whose owner's lock is free names a process, an address space, and addresses. Only if that very space still exists, and no living agent is present at a counter, is its bit
 * cleared; then those of the children that were born under it; then the lease goes. Nothing else is ever written: a lease that cannot be understood says nothing about anybody's
 * memory.
 */
import { closeSync, constants, openSync, readlinkSync, rmSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { isSystemCallError, UprobeError } from '../errors.js'
import type { Logger } from '../log.js'
import type { Native } from '../native.js'
import { TargetProcess } from '../target/process.js'
import { type ClearedBit, clearUnowned, type UnownedBits } from './cells.js'
import { CounterLocks } from './counter-locks.js'
import { clearInherited } from './inherited.js'
import type { LeaseRecord } from './lease.js'
import type { LeaseDirectory, LeaseFile } from './lease-directory.js'
import { BOOT_ID, readSpace, sameSpace } from './space.js'

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
   * - `unreachable`: the process is in a pid namespace that cannot be seen from here; the lease stays;
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
}

/** Inode of the initial pid namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h), from which every process is seen. */
const INITIAL_PID_NAMESPACE = '4026531836'

/** Clears what dead agents left, and removes their leases. */
export async function recoverOrphans(
  native: Native,
  directory: LeaseDirectory,
  log: Logger,
  options: RecoverOptions = {},
): Promise<Recovered[]> {
  if (!hasOrphans(directory)) return []
  const locksFd = openSync(directory.pathOf('locks'), constants.O_RDWR | constants.O_NOFOLLOW)
  try {
    const locks = new CounterLocks(native, locksFd)
    return await locks.recovering(async () => {
      const bits: UnownedBits = { native, locks, isOurs: () => false, dryRun: options.dryRun ?? false }
      const recovered: Recovered[] = []
      // Asked again, since somebody else may have been recovering until now.
      for (const file of directory.list()) {
        if (file.ownerAlive) continue
        const result = await recoverOne(bits, file, options)
        if (result === null) continue
        recovered.push(result)
        if (options.dryRun) continue
        if (result.outcome !== 'unreachable') rmSync(directory.pathOf(file.name), { force: true })
        const { outcome, cleared, name } = result
        log.warn({ lease: name, outcome, cleared: cleared.map(describeBit) }, 'a lease of a dead agent was found')
      }
      if (!options.dryRun) removeDeadOwners(directory)
      return recovered
    })
  } finally {
    closeSync(locksFd)
  }
}

/** Whether there is anything of a dead owner. */
function hasOrphans(directory: LeaseDirectory): boolean {
  return directory.owners().some(({ alive }) => !alive) || directory.list().some(({ ownerAlive }) => !ownerAlive)
}

function describeBit({ pid, address, before, after }: ClearedBit): object {
  return { pid, address: `0x${address.toString(16)}`, before, after }
}

async function recoverOne(bits: UnownedBits, { name, lease }: LeaseFile, options: RecoverOptions): Promise<Recovered | null> {
  const settled = (outcome: Recovered['outcome'], cleared: readonly ClearedBit[] = []): Recovered => ({ name, lease, cleared, outcome })
  if (lease === null) return options.pid === undefined ? settled('corrupt') : null
  if (lease.bootId !== BOOT_ID) return options.pid === undefined ? settled('nothing-left') : null
  const target = await findProcess(bits.native, lease)
  if (target === 'unreachable') return options.pid === undefined ? settled('unreachable') : null
  const pid = target?.pid ?? lease.target.pid
  try {
    if (options.pid !== undefined && options.pid !== pid) return null
    const { file, counters: places, target: claimed } = lease
    const cleared = target === null ? [] : await clearUnowned(bits, target, claimed.space, file, places, () => true)
    const sharers = target === null ? [] : [target.pid]
    const claim = { file, places, space: claimed.space, pid: target?.pid ?? 0, startTime: claimed.startTime, sharers }
    const born = await clearInherited(bits, [claim])
    cleared.push(...(born.get(claim) ?? []))
    return settled(cleared.length > 0 ? 'cleared' : 'nothing-left', cleared)
  } finally {
    target?.close()
  }
}

/** The claimed process, if it still is what was claimed; `null` if it is gone, or has become another program. */
async function findProcess(native: Native, lease: LeaseRecord): Promise<TargetProcess | 'unreachable' | null> {
  const ownNamespace = /\d+/.exec(readlinkSync('/proc/self/ns/pid'))?.[0]
  if (lease.owner.pidNamespace === ownNamespace) {
    const target = openOrNull(native, lease.target.pid)
    return target === null || isClaimed(target, lease) ? target : closed(target)
  }
  // The owner's numbers mean nothing here; the space is known by its own.
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const target = openOrNull(native, Number(name))
    if (target === null) continue
    if (isClaimed(target, lease)) return target
    target.close()
  }
  return ownNamespace === INITIAL_PID_NAMESPACE ? null : 'unreachable'
}

function isClaimed(target: TargetProcess, lease: LeaseRecord): boolean {
  const space = readSpace(target)
  return space !== null && sameSpace(space, lease.target.space)
}

function closed(target: TargetProcess): null {
  target.close()
  return null
}

function openOrNull(native: Native, pid: number): TargetProcess | null {
  try {
    return TargetProcess.open(native, pid)
  } catch (error) {
    if (error instanceof UprobeError && error.code === 'ERR_UPROBE_TARGET_GONE') return null
    throw error
  }
}

/** Removes the files of owners that are dead and have no lease left, and what an agent that died while it wrote has left. */
function removeDeadOwners(directory: LeaseDirectory): void {
  const names = directory.names()
  for (const { id, alive } of directory.owners()) {
    if (alive || names.some((name) => /^(lease|released)-/.test(name) && name.includes(`-${id}-`))) continue
    for (const name of names) if (name.includes(id)) remove(directory, name)
  }
}

function remove(directory: LeaseDirectory, name: string): void {
  try {
    rmSync(directory.pathOf(name), { force: true })
  } catch (error) {
    if (!isSystemCallError(error)) throw error
  }
}
