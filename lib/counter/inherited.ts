/**
 * Claims that children inherited.
 *
 * A fork copies memory, and a claim with it (`dup_mmap`, kernel/fork.c): the child's probe is switched on, and nobody has a lease for it. So whoever gives a claim back, or clears
 * what a dead agent left, looks for the children that were born under it: of the same program image, which shows in the space's fingerprint, not older than their parent, and
 * with a counter that reads exactly 0x8000 at the same address.
 */
import { readdir } from 'node:fs/promises'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { UprobeError } from '../errors.js'
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

/** Clears, or in a dry run finds, the bits that children of a claimed process were born with, as far as no agent is present at them. */
export async function clearInherited(bits: UnownedBits, claim: EndedClaim): Promise<ClearedBit[]> {
  const cleared: ClearedBit[] = []
  let sliceStart = performance.now()
  for (const name of await readdir('/proc')) {
    const pid = Number(name)
    if (!/^\d+$/.test(name) || pid === claim.pid || claim.sharers.includes(pid)) continue
    cleared.push(...(await clearIfBorn(bits, claim, pid)))
    if (performance.now() - sliceStart > SLICE_MS) {
      await nextTurn()
      sliceStart = performance.now()
    }
  }
  return cleared
}

async function clearIfBorn(bits: UnownedBits, claim: EndedClaim, pid: number): Promise<ClearedBit[]> {
  let target: TargetProcess | null = null
  try {
    target = TargetProcess.open(bits.native, pid)
    if (target.startTime < claim.startTime) return []
    const space = readSpace(target)
    if (space?.fingerprint !== claim.space.fingerprint) return []
    if (claim.sharers.some((other) => bits.native.sameAddressSpace(pid, other))) return []
    return await clearUnowned(bits, target, space, claim.file, claim.places, (value) => value === CLAIM)
  } catch (error) {
    if (error instanceof UprobeError && (error.code === 'ERR_UPROBE_TARGET_GONE' || error.code === 'ERR_UPROBE_TARGET_DENIED')) return []
    throw error
  } finally {
    target?.close()
  }
}
