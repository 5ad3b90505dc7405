/**
 * Counters of a process by their addresses, as a lease names them: what is there now must still be what was claimed.
 */
import { closeSync, openSync } from 'node:fs'
import { isSystemCallError } from '../errors.js'
import type { CounterCell, Native } from '../native.js'
import { type FileIdentity, type Mapping, mappingsOf } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import { type CounterKey, type CounterLocks, counterKey } from './counter-locks.js'
import { isGone } from './gone.js'
import { CLAIM } from './read.js'
import type { SpaceId } from './space.js'

/** Where a counter was claimed. */
export interface CellPlace {
  readonly address: bigint
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
}

/**
 * Clears the bits that nobody owns: at which no agent is present.
 * @param wanted - the values that may be touched; others are left as they are
 * @returns what was cleared, or would have been in a dry run
 */
export async function clearUnowned(
  { native, locks, isOurs, dryRun }: UnownedBits,
  target: TargetProcess,
  space: SpaceId,
  file: FileIdentity,
  places: readonly CellPlace[],
  wanted: (value: number) => boolean,
): Promise<ClearedBit[]> {
  const all = await target.maps(true)
  const ofFile = mappingsOf(target.procDirectory, all, file)
  const valid = places.flatMap((place) => {
    const mapping = all.find((m) => place.address >= m.start && place.address + 2n <= m.end)
    return mapping !== undefined && isStill(place, mapping, ofFile) ? [{ place, mapping }] : []
  })
  const fds: number[] = []
  try {
    const memFd = openFor(target, 'mem', fds)
    const mapsFd = openFor(target, 'maps', fds)
    if (memFd === null || mapsFd === null || target.addressSpaceGone()) return []
    const cells = valid.map(({ place, mapping }) => {
      const [device = '', inode = '0'] = mapping.fileKey.split(' ')
      const fileOffset = mapping.fileOffset + place.address - mapping.start
      const cell = new native.CounterCell({
        memFd,
        mapsFd,
        address: place.address,
        device,
        inode: BigInt(inode),
        fileOffset,
        own: target.pid === process.pid,
      })
      return { address: place.address, cell, key: counterKey(space, place.address) }
    })
    const free = cells.filter(({ key }) => !isOurs(key))
    return await locks.step(
      free.map(({ key }) => key),
      () => free.flatMap((one) => clearOne(target.pid, one, locks, wanted, dryRun)),
    )
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}

function clearOne(
  pid: number,
  { address, cell, key }: { address: bigint; cell: CounterCell; key: CounterKey },
  locks: CounterLocks,
  wanted: (value: number) => boolean,
  dryRun: boolean,
): ClearedBit[] {
  if (locks.othersPresent(key)) return []
  try {
    const before = cell.read()
    if ((before & CLAIM) === 0 || !wanted(before)) return []
    return [{ pid, address, before, after: dryRun ? before & ~CLAIM : cell.clearMsb() }]
  } catch (error) {
    if (isGone(error)) return []
    throw error
  }
}

/** Whether a mapping is the one in which the counter was claimed. */
function isStill({ address, refCtrOffset }: CellPlace, mapping: Mapping, ofFile: readonly Mapping[]): boolean {
  if (!mapping.writable || mapping.shared) return false
  const isFile = ofFile.some(({ start }) => start === mapping.start)
  if (refCtrOffset === null) return isFile || mapping.fileKey.endsWith(' 0')
  return isFile && mapping.fileOffset + address - mapping.start === refCtrOffset
}

function openFor(target: TargetProcess, name: 'mem' | 'maps', fds: number[]): number | null {
  try {
    const fd = openSync(`${target.procDirectory}/${name}`, name === 'mem' ? 'r+' : 'r')
    fds.push(fd)
    return fd
  } catch (error) {
    if (isSystemCallError(error)) return null
    throw error
  }
}
