/**
 * Claims that children inherited.
 *
 * A fork copies memory, and a claim with it (`dup_mmap`, kernel/fork.c): the child's probe is switched on, and nobody has a lease for it. So whoever gives a claim back, or clears
 * what a dead agent left, looks for the children that were born under it: of the same program image, which shows in the space's fingerprint, younger than the claim, and
 * with a counter that reads exactly 0x8000 at the same address.
 *
 * A child of vfork(2) has not a copy of the memory but the memory itself, and a bit in it may be the claim of another agent on its parent. So a claim on any process that
 * has the same memory counts.
 */
import { readdir } from 'node:fs/promises'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { ENOSYS, EPERM, ESRCH } from '../errno.js'
import { errnoOf } from '../errors.js'
import type { Native } from '../native.js'
import type { FileIdentity } from '../target/maps.js'
import { machineTicks } from './boot-clock.js'
import { type CellPlace, type ClearedBit, clearUnowned, type UnownedBits } from './cells.js'
import { isOfOneProcess, openIfThere } from './gone.js'
import { CLAIM } from './read.js'
import { readSpace, type SpaceId } from './space.js'

const SLICE_MS = 4

/** A claim that goes. */
export interface EndedClaim {
  readonly file: FileIdentity
  readonly places: readonly CellPlace[]
  readonly space: SpaceId
  /** The claimed process, which is looked after otherwise; `null` if it is gone. */
  readonly pid: number | null
  /** Since when it is claimed, in clock ticks of the machine. */
  readonly sinceTicks: bigint
}

/** Options of {@link clearInherited}. */
export interface InheritedOptions {
  /** Told of processes whose bits could not be cleared; the others are. Default: throw. */
  readonly onFailure?: (claim: EndedClaim, error: unknown) => void
  /** Look at this process only. */
  readonly onlyPid?: number | undefined
}

/** A process with the program image of a claimed one. */
interface Relative {
  readonly pid: number
  readonly space: SpaceId
  /** Clock ticks of the machine. */
  readonly bornTicks: bigint
}

/**
 * Clears, or in a dry run finds, the bits that children of claimed processes were born with, as far as no agent is present at them. All processes are walked through once,
 * however many claims there are.
 * @returns the bits, by claim
 * @throws {UprobeError} `ERR_UPROBE_LIMIT`
 */
export async function clearInherited(
  bits: UnownedBits,
  claims: readonly EndedClaim[],
  { onFailure = rethrow, onlyPid }: InheritedOptions = {},
): Promise<ReadonlyMap<EndedClaim, readonly ClearedBit[]>> {
  const cleared = new Map<EndedClaim, ClearedBit[]>()
  if (claims.length === 0) return cleared
  const breathe = breather()
  const relatives = await findRelatives(bits.native, new Set(claims.map(({ space }) => space.fingerprint)), breathe)
  for (const child of relatives) {
    if (onlyPid !== undefined && child.pid !== onlyPid) continue
    for (const claim of claims) {
      if (!mayHaveInherited(child, claim)) continue
      try {
        const found = await clearIn(bits, child, claim, relatives)
        if (found.length > 0) cleared.set(claim, [...(cleared.get(claim) ?? []), ...found])
      } catch (error) {
        if (!isOfOneProcess(error)) throw error
        onFailure(claim, error)
      }
      await breathe()
    }
  }
  return cleared
}

function mayHaveInherited({ pid, space, bornTicks }: Relative, claim: EndedClaim): boolean {
  // A tick of grace, since two time namespaces may round differently.
  return pid !== claim.pid && space.fingerprint === claim.space.fingerprint && bornTicks + 1n >= claim.sinceTicks
}

async function clearIn(bits: UnownedBits, child: Relative, claim: EndedClaim, relatives: readonly Relative[]): Promise<ClearedBit[]> {
  const target = openIfThere(bits.native, child.pid)
  if (target === null) return []
  try {
    // It may have become another program since it was found.
    if (readSpace(target)?.fingerprint !== child.space.fingerprint) return []
    const kin = relatives.filter(({ pid }) => pid !== child.pid && sharesMemory(bits.native, pid, child.pid)).map(({ space }) => space)
    return await clearUnowned(bits, target, child.space, claim.file, claim.places, (value) => value === CLAIM, kin)
  } finally {
    target.close()
  }
}

/** Every process whose space has one of the fingerprints. */
async function findRelatives(native: Native, fingerprints: ReadonlySet<string>, breathe: () => Promise<void>): Promise<Relative[]> {
  const relatives: Relative[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const target = openIfThere(native, Number(name))
    if (target === null) continue
    try {
      const space = readSpace(target)
      if (space !== null && fingerprints.has(space.fingerprint))
        relatives.push({ pid: target.pid, space, bornTicks: machineTicks(target.startTime) })
    } finally {
      target.close()
    }
    await breathe()
  }
  return relatives
}

/** Whether two processes have the same memory. Of two one of which is gone, it is not so; where the kernel does not say, it may be. */
function sharesMemory(native: Native, pid: number, other: number): boolean {
  try {
    return native.sameAddressSpace(pid, other)
  } catch (error) {
    const errno = errnoOf(error)
    if (errno === ESRCH) return false
    if (errno === EPERM || errno === ENOSYS) return true
    throw error
  }
}

function rethrow(_claim: EndedClaim, error: unknown): never {
  throw error
}

/** Lets the event loop turn after each slice of work. */
function breather(): () => Promise<void> {
  let sliceStart = performance.now()
  return async () => {
    if (performance.now() - sliceStart <= SLICE_MS) return
    await nextTurn()
    sliceStart = performance.now()
  }
}
