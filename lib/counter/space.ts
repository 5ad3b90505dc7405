/**
 * Telling address spaces apart, in a way that every agent of the machine agrees on.
 *
 * A pid is reused, and means another process in another pid namespace; exec keeps the pid and replaces the memory. So a space is named by the process's number in its
 * own, innermost pid namespace, and by a fingerprint that changes with each exec: a hash over the 16 random bytes that the kernel hands to every new program (AT_RANDOM,
 * `create_elf_tables`, fs/binfmt_elf.c). The bytes themselves seed the stack protector and go nowhere. A child that was forked has the fingerprint of its parent, which is
 * how children that inherited a claim are recognised.
 */
import { createHash } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { isSystemCallError } from '../errors.js'
import { readTextOrNull } from '../read-text.js'
import type { TargetProcess } from '../target/process.js'

/** An address space, as every agent names it. */
export interface SpaceId {
  /** Inode of the process's own pid namespace. */
  readonly pidNamespace: string
  /** The process's number in it. */
  readonly pid: number
  /** 32 hexadecimal digits: new at each exec, the same in a child that was forked. */
  readonly fingerprint: string
}

/** The boot that this is. A lease of another boot names processes that are gone. */
export const BOOT_ID = readTextOrNull('/proc/sys/kernel/random/boot_id')?.trim() ?? 'unknown'

const AT_RANDOM = 25n
const AT_ENTRY = 9n
const RANDOM_BYTES = 16

/** The space of a process; `null` when it is gone, or may not be looked at. */
export function readSpace(target: Pick<TargetProcess, 'procDirectory' | 'readMemory'>): SpaceId | null {
  try {
    const namespace = /^pid:\[(\d+)\]$/.exec(readlinkSync(`${target.procDirectory}/ns/pid`))?.[1]
    const status = readTextOrNull(`${target.procDirectory}/status`)
    const innermost = innermostPid(status ?? '')
    const fingerprint = readFingerprint(target)
    if (namespace === undefined || innermost === null || fingerprint === null) return null
    return { pidNamespace: namespace, pid: innermost, fingerprint }
  } catch (error) {
    if (isSystemCallError(error)) return null
    throw error
  }
}

/** A process's number in its own pid namespace, from its /proc/PID/status: the last one of those that its thread group has (`NStgid`), one a namespace. */
export function innermostPid(status: string): number | null {
  const innermost = /^NStgid:\s.*?(\d+)$/m.exec(status)?.[1]
  return innermost === undefined ? null : Number(innermost)
}

function readFingerprint(target: Pick<TargetProcess, 'procDirectory' | 'readMemory'>): string | null {
  const vector = readFileSync(`${target.procDirectory}/auxv`)
  const hash = createHash('sha256').update(BOOT_ID)
  let random: Buffer | null = null
  for (let at = 0; at + 16 <= vector.length; at += 16) {
    const type = vector.readBigUInt64LE(at)
    const value = vector.readBigUInt64LE(at + 8)
    if (type === AT_RANDOM) random = target.readMemory(value, RANDOM_BYTES)
    if (type === AT_RANDOM || type === AT_ENTRY) hash.update(`${type}:${value};`)
  }
  return random === null ? null : hash.update(random).digest('hex').slice(0, 32)
}

/** Whether two names mean one space. */
export function sameSpace(a: SpaceId, b: SpaceId): boolean {
  return a.pid === b.pid && a.pidNamespace === b.pidNamespace && a.fingerprint === b.fingerprint
}
