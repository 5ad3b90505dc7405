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
import { readdirSync } from 'node:fs'
import { TimeSlice } from '../elf/time-slice.js'
import { ENOSYS, EPERM, ESRCH } from '../errno.js'
import { errnoOf, UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import type { FileIdentity } from '../target/maps.js'
import { machineTicks } from './boot-clock.js'
import { type CellPlace, type ClearedBit, clearUnowned, type UnownedBits } from './cells.js'
import { isOfOneProcess, openIfThere } from './gone.js'
import { CLAIM } from './read.js'
import { readSpace, type SpaceId } from './space.js'

/** How often processes that were born meanwhile are looked for. It takes a millisecond or two each time, where there are few. */
const MAX_WALKS = 100

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
 * Clears, or in a dry run finds, the bits that children of claimed processes were born with, as far as no agent is present at them. All processes are walked through, however many
 * claims there are, and then those that were born meanwhile, until there are none.
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
  const search = new Search(bits.native, new Set(claims.map(({ space }) => space.fingerprint)))
  const restless = new Set<EndedClaim>()
  for (let walk = 0; walk < MAX_WALKS; walk++) {
    const { relatives, unseen } = await search.next()
    let quiet = true
    for (const child of relatives) {
      if (onlyPid !== undefined && child.pid !== onlyPid) continue
      for (const claim of claims) {
        if (!mayHaveInherited(child, claim)) continue
        try {
          const found = await clearIn(bits, child, claim, search.relatives)
          if (found !== null && found.length > 0) cleared.set(claim, [...(cleared.get(claim) ?? []), ...found])
          // A child that forked before it was cleared has given its bit on, and so may have one that has ended.
          if (found === null || found.length > 0) {
            restless.add(claim)
            quiet = false
          }
        } catch (error) {
          if (!isOfOneProcess(error)) throw error
          onFailure(claim, error)
        }
        if (search.slice.isOver) await search.slice.rest()
      }
    }
    if (bits.dryRun || (quiet && !unseen)) return cleared
  }
  // Where others come and go all the time, and no child was ever on the move, there is none.
  for (const claim of restless) onFailure(claim, restlessError(claim))
  return cleared
}

function restlessError({ pid, space }: EndedClaim): UprobeError {
  return new UprobeError(
    'ERR_UPROBE_LIMIT',
    `Children of process ${pid ?? space.pid} go on forking, and each gives the claim that it inherited to the next, faster than they can be looked through (${MAX_WALKS} times). ` +
      'The lease stays; run uprobe repair when they have come to rest.',
    { pid: pid ?? space.pid },
  )
}

function mayHaveInherited({ pid, space, bornTicks }: Relative, claim: EndedClaim): boolean {
  // A tick of grace, since two time namespaces may round differently.
  return pid !== claim.pid && space.fingerprint === claim.space.fingerprint && bornTicks + 1n >= claim.sinceTicks
}

/** Returns `null` if the child is gone, or has become another program since it was found. */
async function clearIn(
  bits: UnownedBits,
  child: Relative,
  claim: EndedClaim,
  relatives: readonly Relative[],
): Promise<readonly ClearedBit[] | null> {
  const target = openIfThere(bits.native, child.pid)
  if (target === null) return null
  try {
    if (readSpace(target)?.fingerprint !== child.space.fingerprint) return null
    const kin = relatives.filter(({ pid }) => pid !== child.pid && sharesMemory(bits.native, pid, child.pid)).map(({ space }) => space)
    const cleared = await clearUnowned(bits, target, child.space, claim.file, claim.places, (value) => value === CLAIM, kin)
    return cleared.length > 0 || !target.addressSpaceGone() ? cleared : null
  } finally {
    target.close()
  }
}

/** Looks for the processes whose space has one of some fingerprints: first through all, then through those that are new. */
class Search {
  readonly relatives: Relative[] = []
  readonly slice = new TimeSlice()
  readonly #seen = new Set<number>()

  constructor(
    private readonly native: Native,
    private readonly fingerprints: ReadonlySet<string>,
  ) {}

  /**
   * @returns those that were not there the last time, and whether there were any that ended before it was known what they were. The youngest are asked first, since they may be gone soonest.
   */
  async next(): Promise<{ relatives: readonly Relative[]; unseen: boolean }> {
    const found: Relative[] = []
    let unseen = false
    const pids = readdirSync('/proc').flatMap((name) => (/^\d+$/.test(name) ? [Number(name)] : []))
    for (const pid of pids.sort((a, b) => b - a)) {
      if (this.#seen.has(pid)) continue
      this.#seen.add(pid)
      const target = openIfThere(this.native, pid)
      if (target === null) {
        unseen = true
        continue
      }
      try {
        const space = readSpace(target)
        if (space === null) unseen ||= target.addressSpaceGone()
        else if (this.fingerprints.has(space.fingerprint)) found.push({ pid, space, bornTicks: machineTicks(target.startTime) })
      } finally {
        target.close()
      }
      if (this.slice.isOver) await this.slice.rest()
    }
    this.relatives.push(...found)
    return { relatives: found, unseen }
  }
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
