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
import { type FileIdentity, sameFile } from '../target/maps.js'
import { PagedMemory } from '../target/paged-memory.js'
import type { TargetProcess } from '../target/process.js'
import { machineTicks } from './boot-clock.js'
import { type CellPlace, type ClearedBit, clearUnowned, type UnownedBits } from './cells.js'
import { isOfOneProcess, openIfThere } from './gone.js'
import { CLAIM } from './read.js'
import { readSpace, type SpaceId } from './space.js'

/** How often processes that were born meanwhile are looked for. It takes a millisecond or two the first time, and then half of one, where there are few. */
const MAX_WALKS = 100

/** Of bits that are handed on all the time, one at least would have been met in so many walks. */
const CALM_WALKS = 50

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
  /**
   * Told of processes whose bits could not be cleared; the others are. Of claims whose children cannot be told apart (of one program image, on the same counters) it is told the eldest
   * alone, whose lease is enough to find them by. Default: throw.
   */
  readonly onFailure?: (claim: EndedClaim, error: unknown) => void
  /** Look at this process only. */
  readonly onlyPid?: number | undefined
  /** Ends it early; what is cleared then is cleared. */
  readonly signal?: AbortSignal | undefined
}

/** A process with the program image of a claimed one. */
interface Relative {
  readonly pid: number
  readonly space: SpaceId
  /** Clock ticks of the machine. */
  readonly bornTicks: bigint
}

/** Claims on the same counters of one program image: a process that inherited from one of them may as well have from another, and is looked at once for all. */
class Family {
  /** The claimed processes that are looked after otherwise. */
  readonly #pids = new Set<number>()
  #eldest: EndedClaim
  /** The last walks in which a child had a bit, in which one had none, and in which one ended before that was known; -1 for none. */
  readonly lastWalks = { met: -1, clean: -1, vanished: -1 }

  constructor(claim: EndedClaim) {
    this.#eldest = claim
    this.add(claim)
  }

  /** The one that has been on record longest: by its lease whatever is left can be found. */
  get eldest(): EndedClaim {
    return this.#eldest
  }

  /** Whether a claim is one of the family. */
  takes({ file, places, space }: EndedClaim): boolean {
    const own = this.#eldest
    return (
      own.space.fingerprint === space.fingerprint &&
      sameFile(own.file, file) &&
      own.places.length === places.length &&
      own.places.every((place, index) => isSamePlace(place, places[index]))
    )
  }

  add(claim: EndedClaim): void {
    if (claim.pid !== null) this.#pids.add(claim.pid)
    if (claim.sinceTicks < this.#eldest.sinceTicks) this.#eldest = claim
  }

  /** Why a bit may be on the move still, after so many walks: one was met lately, or nobody lived long enough to be asked; `null` if none is. */
  restlessness(walks: number): 'met' | 'vanished' | null {
    const calmSince = walks - CALM_WALKS
    const { met, clean, vanished } = this.lastWalks
    if (met >= calmSince) return 'met'
    return vanished >= calmSince && clean < calmSince ? 'vanished' : null
  }

  mayHaveGivenTo({ pid, space, bornTicks }: Relative): boolean {
    // A tick of grace, since two time namespaces may round differently.
    return !this.#pids.has(pid) && space.fingerprint === this.#eldest.space.fingerprint && bornTicks + 1n >= this.#eldest.sinceTicks
  }
}

function isSamePlace(a: CellPlace, b: CellPlace | undefined): boolean {
  return a.address === b?.address && a.refCtrOffset === b.refCtrOffset && a.vaddr === b.vaddr
}

function familiesOf(claims: readonly EndedClaim[]): Family[] {
  const families: Family[] = []
  for (const claim of claims) {
    const family = families.find((one) => one.takes(claim))
    if (family === undefined) families.push(new Family(claim))
    else family.add(claim)
  }
  return families
}

/**
 * Clears, or in a dry run finds, the bits that children of claimed processes were born with, as far as no agent is present at them. All processes are walked through, however many
 * claims there are, and then those that were born meanwhile, until there are none.
 *
 * A server may fork a process for each request, none of which lives as long as a walk. So each is looked at as soon as it is found, with one read of its counter, and only those that
 * have the bit are gone about in earnest. Some will have ended before even that; then it is walked again.
 * @returns the bits, by the eldest claim of those that may have given them
 * @throws {UprobeError} `ERR_UPROBE_LIMIT`; or the reason of the signal
 */
export async function clearInherited(
  bits: UnownedBits,
  claims: readonly EndedClaim[],
  { onFailure = rethrow, onlyPid, signal }: InheritedOptions = {},
): Promise<ReadonlyMap<EndedClaim, readonly ClearedBit[]>> {
  const cleared = new Map<EndedClaim, ClearedBit[]>()
  if (claims.length === 0) return cleared
  const families = familiesOf(claims)
  const search = new Search(bits.native, families, signal)
  for (let walk = 0; walk < MAX_WALKS; walk++) {
    const { bearers, unseen } = await search.next(walk)
    let quiet = !unseen
    for (const { child, family } of bearers) {
      if (onlyPid !== undefined && child.pid !== onlyPid) continue
      const { eldest } = family
      try {
        const found = await clearIn(bits, child, eldest, search.relatives)
        if (found !== null && found.length > 0) cleared.set(eldest, [...(cleared.get(eldest) ?? []), ...found])
        // A child that forked before it was cleared has given its bit on, and so may have one that has ended.
        if (found === null || found.length > 0) {
          family.lastWalks.met = walk
          quiet = false
        }
      } catch (error) {
        if (!isOfOneProcess(error)) throw error
        onFailure(eldest, error)
      }
      await search.pause()
    }
    if (bits.dryRun || quiet) return cleared
  }
  // Where others come and go all the time, and no bit was on the move any more, there is none.
  for (const family of families) {
    const why = family.restlessness(MAX_WALKS)
    if (why !== null) onFailure(family.eldest, restlessError(family.eldest, why))
  }
  return cleared
}

const RESTLESS = {
  met: 'go on forking, and each gives the claim that it inherited to the next, faster than they can be looked through',
  vanished: 'come and go so fast that none of them lived until it was asked whether it had inherited the claim',
}

function restlessError({ pid, space }: EndedClaim, why: keyof typeof RESTLESS): UprobeError {
  return new UprobeError(
    'ERR_UPROBE_LIMIT',
    `Children of process ${pid ?? space.pid} ${RESTLESS[why]} (${MAX_WALKS} times). The lease stays; run uprobe repair when they have come to rest.`,
    { pid: pid ?? space.pid },
  )
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

/** A process that has a bit, as it seems, and those by whom it may have come. */
interface Bearer {
  readonly child: Relative
  readonly family: Family
}

/** Looks for processes that have inherited bits: first among all, then among those that are new. */
class Search {
  readonly relatives: Relative[] = []
  readonly #slice = new TimeSlice()
  readonly #seen = new Set<number>()
  readonly #fingerprints: ReadonlySet<string>

  constructor(
    private readonly native: Native,
    private readonly families: readonly Family[],
    private readonly signal: AbortSignal | undefined,
  ) {
    this.#fingerprints = new Set(families.map(({ eldest }) => eldest.space.fingerprint))
  }

  /** Gives the event loop a turn if it is time. Throws the reason of the signal. */
  async pause(): Promise<void> {
    if (this.#slice.isOver) await this.#slice.rest()
    this.signal?.throwIfAborted()
  }

  /**
   * @param walk - its number
   * @returns those that were not there the last time and have a bit, and whether there were any that ended before it was known what they were. The youngest are asked first, since they may be gone soonest.
   */
  async next(walk: number): Promise<{ bearers: readonly Bearer[]; unseen: boolean }> {
    const bearers: Bearer[] = []
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
        else if (this.#fingerprints.has(space.fingerprint)) {
          const child = { pid, space, bornTicks: machineTicks(target.startTime) }
          this.relatives.push(child)
          const families = this.families.filter((family) => family.mayHaveGivenTo(child))
          for (const family of families) {
            if (bears(target, family)) bearers.push({ child, family })
            else if (target.addressSpaceGone()) family.lastWalks.vanished = walk
            else family.lastWalks.clean = walk
            unseen ||= family.lastWalks.vanished === walk
          }
        }
      } finally {
        target.close()
      }
      await this.pause()
    }
    return { bearers, unseen }
  }
}

/** Whether a process has a bit. Whose it is, {@link clearUnowned} finds out. */
function bears(target: TargetProcess, { eldest }: Family): boolean {
  const memory = new PagedMemory(target)
  return eldest.places.some(({ address }) => memory.u16(address) === CLAIM)
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
