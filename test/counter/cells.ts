/**
 * Counters as the tests of the addon reach them: where they lie, and cells on them, without any code of the package but the addon.
 */
import { closeSync, openSync, readFileSync, statSync } from 'node:fs'
import type { CounterAt, CounterMemoryOptions } from '../../lib/native.js'
import { native } from '../native/kernel.js'
import type { Cleanup } from '../support/temp.js'

/** What a line of `maps` says. */
interface Line {
  readonly start: bigint
  readonly end: bigint
  readonly permissions: string
  readonly offset: bigint
  readonly device: string
  readonly inode: bigint
}

/** The first mapping of a file at an offset that has a permission, `w` as a rule. */
export function mappingOf(pid: number, path: string, fileOffset: bigint, permission = 'w'): Line {
  const { ino } = statSync(path, { bigint: true })
  for (const text of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
    const [range = '', permissions = '', offset = '0', device = '', inode = '0'] = text.split(/ +/)
    const [start = '0', end = '0'] = range.split('-')
    const line = {
      start: BigInt(`0x${start || 0}`),
      end: BigInt(`0x${end}`),
      permissions,
      offset: BigInt(`0x${offset}`),
      device,
      inode: BigInt(inode),
    }
    const inside = fileOffset >= line.offset && fileOffset - line.offset < line.end - line.start
    if (line.inode === ino && inside && permissions.includes(permission)) return line
  }
  throw new Error(`process ${pid} has no ${permission} mapping of ${path} at 0x${fileOffset.toString(16)}`)
}

/** Address of a counter in a process. */
export function counterAddressIn(pid: number, path: string, refCtrOffset: bigint): bigint {
  const { start, offset } = mappingOf(pid, path, refCtrOffset)
  return start + refCtrOffset - offset
}

/** One counter of an address space. */
export interface Cell {
  setMsb(): number
  clearMsb(): number
  read(): number
  replace(expected: number, value: number): void
}

/** What an address space and a counter in it are described by. */
export type CellOptions = CounterMemoryOptions & CounterAt

/** A cell on a counter of a process; what it expects can be made another thing. */
export function openCell(t: Cleanup, pid: number, path: string, refCtrOffset: bigint, other: Partial<CellOptions> = {}): Cell {
  const memFd = openSync(`/proc/${pid}/mem`, 'r+')
  const mapsFd = openSync(`/proc/${pid}/maps`, 'r')
  t.after(() => {
    closeSync(memFd)
    closeSync(mapsFd)
  })
  const { start, offset, device, inode } = mappingOf(pid, path, refCtrOffset)
  const address = start + refCtrOffset - offset
  return cellOn({ memFd, mapsFd, address, device, inode, fileOffset: refCtrOffset, own: false, ...other })
}

/** A cell as it is described. */
export function cellOn(options: CellOptions): Cell {
  const memory = new native.CounterMemory(options)
  return {
    setMsb: () => memory.setMsb(options),
    clearMsb: () => memory.clearMsb(options),
    read: () => memory.read(options),
    replace: (expected, value) => memory.replace(options, expected, value),
  }
}
