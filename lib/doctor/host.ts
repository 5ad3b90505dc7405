/**
 * What `doctor()` knows of the machine before it tries anything: read from /proc and /sys, nothing assumed. A file that is not there is `null`,
 * since each of them is missing somewhere: on old kernels, in containers that mask /sys, on other systems.
 */
import { readlinkSync } from 'node:fs'
import { release } from 'node:os'
import { isSystemCallError } from '../errors.js'
import { readTextOrNull } from '../read-text.js'
import { CAPABILITIES, type Capability } from '../rights.js'

/** The machine and this process, as far as they can be read. */
export interface Host {
  readonly platform: string
  readonly arch: string
  /** As in `v20.11.0`. */
  readonly nodeVersion: string
  /** As in `6.12.5-amd64`. */
  readonly kernelRelease: string
  /** The effective capabilities that tracing has a use for; `null` if unknown. */
  readonly capabilities: ReadonlySet<Capability> | null
  readonly initialUserNamespace: boolean | null
  readonly initialPidNamespace: boolean | null
  readonly perfEventParanoid: number | null
  /** `none`, `integrity` or `confidentiality`; `null` where the kernel has no lockdown, or securityfs is not mounted. */
  readonly lockdown: string | null
  /** Soft limit in bytes; `Infinity` for none. */
  readonly memlockLimitBytes: number | null
  /** `Seccomp:` of this process: 0 none, 1 strict, 2 filter. */
  readonly seccompMode: number | null
}

function readLink(path: string): string | null {
  try {
    return readlinkSync(path)
  } catch (error) {
    if (isSystemCallError(error)) return null
    throw error
  }
}

/** Parses the `CapEff` line of /proc/PID/status. */
export function parseCapabilities(status: string): ReadonlySet<Capability> | null {
  const digits = /^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1]
  if (digits === undefined) return null
  const mask = BigInt(`0x${digits}`)
  const names = Object.keys(CAPABILITIES) as Capability[]
  return new Set(names.filter((name) => ((mask >> BigInt(CAPABILITIES[name])) & 1n) === 1n))
}

/** Parses the soft limit in the `Max locked memory` line of /proc/PID/limits. */
export function parseMemlockLimit(limits: string): number | null {
  const soft = /^Max locked memory\s+(\S+)/m.exec(limits)?.[1]
  if (soft === undefined) return null
  return soft === 'unlimited' ? Number.POSITIVE_INFINITY : Number(soft)
}

/** Parses /sys/kernel/security/lockdown, as in `none [integrity] confidentiality`. */
export function parseLockdown(text: string): string | null {
  return /\[(\w+)\]/.exec(text)?.[1] ?? null
}

/** Whether /proc/self/ns/TYPE is the initial namespace, whose inode is fixed (include/linux/proc_ns.h, PROC_USER_INIT_INO and PROC_PID_INIT_INO). */
function isInitialNamespace(type: 'user' | 'pid'): boolean | null {
  const link = readLink(`/proc/self/ns/${type}`)
  if (link === null) return null
  return link === (type === 'user' ? 'user:[4026531837]' : 'pid:[4026531836]')
}

function mapText<T>(path: string, parse: (text: string) => T): T | null {
  const text = readTextOrNull(path)
  return text === null ? null : parse(text)
}

/** Reads what can be read. Throws on no system. */
export function readHost(): Host {
  const status = readTextOrNull('/proc/self/status')
  const seccomp = /^Seccomp:\s*(\d+)/m.exec(status ?? '')?.[1]
  return {
    platform: process.platform,
    arch: process.arch,
    nodeVersion: process.version,
    kernelRelease: release(),
    capabilities: status === null ? null : parseCapabilities(status),
    initialUserNamespace: isInitialNamespace('user'),
    initialPidNamespace: isInitialNamespace('pid'),
    perfEventParanoid: mapText('/proc/sys/kernel/perf_event_paranoid', Number),
    lockdown: mapText('/sys/kernel/security/lockdown', parseLockdown),
    memlockLimitBytes: mapText('/proc/self/limits', parseMemlockLimit),
    seccompMode: seccomp === undefined ? null : Number(seccomp),
  }
}
