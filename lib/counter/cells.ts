/**
 * Counters of a process by their addresses, as a lease names them: what is there now must still be what was claimed.
 */
import { closeSync, openSync } from 'node:fs'
import { TimeSlice } from '../elf/time-slice.js'
import { ENOENT, ERANGE, ESRCH } from '../errno.js'
import { errnoOf, UprobeError } from '../errors.js'
import type { CounterAt, CounterMemory, Native } from '../native.js'
import { limitError } from '../shortage.js'
import { type FileIdentity, type Mapping, mappingAt, mappingsOf, takesCounters } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import { type CounterKey, type CounterLocks, counterKey } from './counter-locks.js'
import { isGone } from './gone.js'
import { CLAIM } from './read.js'
import type { SpaceId } from './space.js'
import { inSteps } from './step-groups.js'

/** Where a counter was claimed. */
export interface CellPlace {
  readonly address: bigint
  /** Virtual address in the file. */
  readonly vaddr: bigint
  /** `null` for a counter in `.bss`. */
  readonly refCtrOffset: bigint | null
}

/** A bit that was cleared. */
export interface ClearedBit {
  readonly pid: number
  readonly address: bigint
  readonly before: number
  readonly after: number
}

/** What is asked of the cells of one process. */
export interface UnownedBits {
  readonly native: Native
  readonly locks: CounterLocks
  /** Whether the asking tracer itself has a claim there. */
  isOurs(key: CounterKey): boolean
  /** Only look. */
  readonly dryRun: boolean
  /** Throws an `UprobeError` if a process must not be touched; its bits are left, and so are the leases that name them. Default: all may be. */
  readonly check?: ((target: TargetProcess) => void) | undefined
}

/**
 * Clears the bits that nobody owns: at which no agent is present.
 * @param wanted - the values that may be touched; others are left as they are
 * @param kin - the spaces of other processes that have the same memory, so that whoever is present there is present here
 * @returns what was cleared, or would have been in a dry run; nothing if the process is gone, or is another program by now
 * @throws {UprobeError} `ERR_UPROBE_TARGET_DENIED`, `ERR_UPROBE_LIMIT`
 */
export async function clearUnowned(
  { native, locks, isOurs, dryRun, check }: UnownedBits,
  target: TargetProcess,
  space: SpaceId,
  file: FileIdentity,
  places: readonly CellPlace[],
  wanted: (value: number) => boolean,
  kin: readonly SpaceId[] = [],
): Promise<ClearedBit[]> {
  check?.(target)
  const all = await target.maps(true)
  const ofFile = mappingsOf(target.procDirectory, all, file)
  const fds: number[] = []
  try {
    const memFd = openFor(target, 'mem', fds)
    const mapsFd = openFor(target, 'maps', fds)
    if (memFd === null || mapsFd === null || target.addressSpaceGone()) return []
    const memory = new native.CounterMemory({ memFd, mapsFd, own: target.pid === process.pid })
    const cells: UnownedCell[] = []
    const slice = new TimeSlice()
    for (const place of places) {
      if (slice.isOver) await slice.rest()
      const mapping = mappingAt(all, place.address)
      if (mapping === null || !isStill(place, mapping, ofFile)) continue
      const [device = '', inode = '0'] = mapping.fileKey.split(' ')
      const fileOffset = mapping.fileOffset + place.address - mapping.start
      const at = { address: place.address, device, inode: BigInt(inode), fileOffset }
      // What is no file's memory may be something else by now, and is told by its value.
      const isOurBit = place.refCtrOffset === null ? (value: number) => value === CLAIM && wanted(value) : wanted
      cells.push({ at, keys: [space, ...kin].map((one) => counterKey(one, place.address)), wanted: isOurBit })
    }
    const cleared: ClearedBit[] = []
    for (const group of inSteps(cells)) {
      if (slice.isOver) await slice.rest()
      const ofGroup = await locks.step(
        group.flatMap(({ keys }) => keys),
        // Asked within the step, for which we may have waited: a claim of ours may have come meanwhile.
        () => group.filter(({ keys }) => !keys.some(isOurs)).flatMap((one) => clearOne(target.pid, memory, one, locks, dryRun)),
      )
      cleared.push(...ofGroup)
    }
    return cleared
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}

/** A counter that may be cleared. */
interface UnownedCell {
  readonly at: CounterAt
  readonly keys: readonly CounterKey[]
  wanted(value: number): boolean
}

function clearOne(
  pid: number,
  memory: CounterMemory,
  { at, keys, wanted }: UnownedCell,
  locks: CounterLocks,
  dryRun: boolean,
): ClearedBit[] {
  if (keys.some((key) => locks.othersPresent(key))) return []
  try {
    const before = memory.read(at)
    if ((before & CLAIM) === 0 || !wanted(before)) return []
    return [{ pid, address: at.address, before, after: dryRun ? before & ~CLAIM : memory.clearMsb(at) }]
  } catch (error) {
    // Out of range: it has a value that no claim leaves.
    if (isGone(error) || errnoOf(error) === ERANGE) return []
    throw error
  }
}

/** Whether a mapping is the one in which the counter was claimed. */
function isStill(place: CellPlace, mapping: Mapping, ofFile: readonly Mapping[]): boolean {
  const { address, refCtrOffset } = place
  if (!takesCounters(mapping) || address + 2n > mapping.end) return false
  const isFile = ofFile.some(({ start }) => start === mapping.start)
  if (refCtrOffset === null) return (isFile || mapping.fileKey.endsWith(' 0')) && isLoadedThere(place, ofFile)
  return isFile && mapping.fileOffset + address - mapping.start === refCtrOffset
}

/**
 * Whether the file still lies where it lay when the counter was claimed, so that its `.bss` does: the distance of the two has not changed. In a position-independent file the
 * first segment begins with the file, at address 0; one that is not lies where its addresses say.
 */
function isLoadedThere({ address, vaddr }: CellPlace, ofFile: readonly Mapping[]): boolean {
  const bias = address - vaddr
  return ofFile.some(({ start, fileOffset }) => bias === 0n || (fileOffset === 0n && start === bias))
}

function openFor(target: TargetProcess, name: 'mem' | 'maps', fds: number[]): number | null {
  try {
    const fd = openSync(`${target.threadDirectory}/${name}`, name === 'mem' && target.pid !== process.pid ? 'r+' : 'r')
    fds.push(fd)
    return fd
  } catch (error) {
    const errno = errnoOf(error)
    if (errno === ENOENT || errno === ESRCH) return null
    throw (
      limitError(error, `The memory of process ${target.pid} cannot be opened`) ??
      new UprobeError('ERR_UPROBE_TARGET_DENIED', `The memory of process ${target.pid} may not be written. Run with CAP_SYS_PTRACE.`, {
        cause: error,
        pid: target.pid,
      })
    )
  }
}
