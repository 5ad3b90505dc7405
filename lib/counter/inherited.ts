/**
 * Claims that children inherited.
 *
 * A fork copies memory, and a claim with it (`dup_mmap`, kernel/fork.c): the child's probe is switched on, and nobody has a lease for it. So whoever gives a claim back, or clears
 * what a dead agent left, looks for the children that were born under it: of the same program image, which shows in the space's fingerprint, not older than their parent, and
 * with a counter that reads exactly 0x8000 at the same address.
 */
import { readdir } from 'node:fs/promises'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { ESRCH } from '../errno.js'
import { errnoOf, UprobeError } from '../errors.js'
import type { FileIdentity } from '../target/maps.js'
import { TargetProcess } from '../target/process.js'
import { type CellPlace, type ClearedBit, clearUnowned, type UnownedBits } from './cells.js'
import { CLAIM } from './read.js'
import { readSpace, type SpaceId } from './space.js'

const SLICE_MS = 4

/** A claim that goes. */
export interface EndedClaim {
  readonly file: FileIdentity
  readonly places: readonly CellPlace[]
  readonly space: SpaceId
  /** The claimed process, and since when it runs, in clock ticks. */
  readonly pid: number
  readonly startTime: bigint
  /** Processes whose memory a child may share (vfork), so that its bit is theirs. */
  readonly sharers: readonly number[]
}

/**
 * Clears, or in a dry run finds, the bits that children of claimed processes were born with, as far as no agent is present at them. All processes are walked through once,
 * however many claims there are.
 * @returns the bits, by claim
 */
export async function clearInherited(
  bits: UnownedBits,
  claims: readonly EndedClaim[],
): Promise<ReadonlyMap<EndedClaim, readonly ClearedBit[]>> {
  const cleared = new Map<EndedClaim, ClearedBit[]>()
  const known = new Set(claims.flatMap(({ pid, sharers }) => [pid, ...sharers]))
  if (claims.length === 0) return cleared
  let sliceStart = performance.now()
  for (const name of await readdir('/proc')) {
    const pid = Number(name)
    if (!/^\d+$/.test(name) || known.has(pid)) continue
    await clearIfBorn(bits, claims, pid, cleared)
    if (performance.now() - sliceStart > SLICE_MS) {
      await nextTurn()
      sliceStart = performance.now()
    }
  }
  return cleared
}

async function clearIfBorn(
  bits: UnownedBits,
  claims: readonly EndedClaim[],
  pid: number,
  cleared: Map<EndedClaim, ClearedBit[]>,
): Promise<void> {
  let target: TargetProcess | null = null
  try {
    target = TargetProcess.open(bits.native, pid)
    const { startTime } = target
    const elder = claims.filter((claim) => startTime >= claim.startTime)
    if (elder.length === 0) return
    const space = readSpace(target)
    for (const claim of elder) {
      if (space?.fingerprint !== claim.space.fingerprint) continue
      if (claim.sharers.some((other) => sharesMemory(bits, pid, other))) continue
      const found = await clearUnowned(bits, target, space, claim.file, claim.places, (value) => value === CLAIM)
      if (found.length > 0) cleared.set(claim, [...(cleared.get(claim) ?? []), ...found])
    }
  } catch (error) {
    if (!(error instanceof UprobeError) || (error.code !== 'ERR_UPROBE_TARGET_GONE' && error.code !== 'ERR_UPROBE_TARGET_DENIED'))
      throw error
  } finally {
    target?.close()
  }
}

/** A child of vfork has the memory of its parent, and a bit in it is its parent's. Of two processes one of which is gone, it is not so. */
function sharesMemory({ native }: UnownedBits, pid: number, other: number): boolean {
  try {
    return native.sameAddressSpace(pid, other)
  } catch (error) {
    if (errnoOf(error) === ESRCH) return false
    throw error
  }
}
