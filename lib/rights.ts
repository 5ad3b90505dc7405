/**
 * Which rights this process has, for messages that name the missing one.
 */
import { readTextOrNull } from './read-text.js'

/** Capabilities that tracing needs, with their numbers (include/uapi/linux/capability.h). */
export const CAPABILITIES = { CAP_SYS_PTRACE: 19, CAP_SYS_ADMIN: 21, CAP_PERFMON: 38, CAP_BPF: 39 } as const

/** The name of a capability that tracing needs. */
export type Capability = keyof typeof CAPABILITIES

/** Whether a capability is in the effective set of this process. */
export function hasCapability(capability: Capability): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(readTextOrNull('/proc/self/status') ?? '')?.[1]
  return effective !== undefined && ((BigInt(`0x${effective}`) >> BigInt(CAPABILITIES[capability])) & 1n) === 1n
}

/** Whether this process runs in the initial user namespace: only capabilities held there count for perf and BPF. */
export function inInitialUserNamespace(): boolean {
  // The initial namespace maps all of the 32-bit range onto itself (kernel/user.c, init_user_ns).
  return /^\s*0\s+0\s+4294967295\s*$/.test(readTextOrNull('/proc/self/uid_map') ?? '')
}

/** The kernel's lockdown mode, as `none`, `integrity` or `confidentiality`; the last forbids BPF to read user memory. */
export function lockdownMode(): string {
  return /\[(\w+)\]/.exec(readTextOrNull('/sys/kernel/security/lockdown') ?? '')?.[1] ?? 'none'
}

const OWN_NAMESPACE =
  'This process runs in a user namespace of its own; capabilities count only in the initial one. Run the agent without user-namespace remapping.'

/** The capabilities that tracing takes and this process lacks. */
function missingForTracing(): Capability[] {
  const admin = hasCapability('CAP_SYS_ADMIN')
  // Since Linux 5.8 two capabilities are enough for BPF, and CAP_SYS_ADMIN stands for both.
  return (['CAP_SYS_PTRACE', 'CAP_SYS_ADMIN', 'CAP_BPF', 'CAP_PERFMON'] as const).filter(
    (name) => !hasCapability(name) && !(admin && (name === 'CAP_BPF' || name === 'CAP_PERFMON')),
  )
}

/** Whether this process lacks a right that it could be given, so that what is refused to it need not be. */
export function lacksRights(): boolean {
  return !inInitialUserNamespace() || missingForTracing().length > 0
}

/** Sentences that say what tracing a process takes, and what of it is missing: all at once, for nobody to be told of the next right only when he has got the first. */
export function rightsForTracing(): string {
  if (!inInitialUserNamespace()) return OWN_NAMESPACE
  const missing = missingForTracing()
  const takes =
    'Tracing takes CAP_SYS_PTRACE to look at a process, CAP_SYS_ADMIN for the files that it maps and for the uprobe PMU, and CAP_BPF and CAP_PERFMON for BPF, ' +
    'which CAP_SYS_ADMIN includes.'
  return missing.length > 0
    ? `${takes} This process lacks ${missing.join(', ')}: run as root, or grant them.`
    : `${takes} They are there, so a security module refuses the call, or the process is in another container whose user may not be looked at.`
}

/** A sentence that says what is missing for `perf_event_open` on the uprobe PMU, or for BPF. */
export function missingRight(what: 'perf' | 'bpf'): string {
  if (!inInitialUserNamespace()) return OWN_NAMESPACE
  if (what === 'perf' && !hasCapability('CAP_SYS_ADMIN')) {
    return 'The uprobe PMU needs CAP_SYS_ADMIN (CAP_PERFMON is not enough on current kernels). Run as root, or grant the capability to the container.'
  }
  if (what === 'bpf' && !hasCapability('CAP_SYS_ADMIN') && !(hasCapability('CAP_BPF') && hasCapability('CAP_PERFMON'))) {
    return 'BPF needs CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8). Run as root, or grant the capabilities to the container.'
  }
  if (what === 'bpf' && lockdownMode() === 'confidentiality') {
    return 'The kernel is locked down in confidentiality mode, which forbids BPF to read memory. Boot with lockdown=integrity or none.'
  }
  return (
    'The capabilities are there, so a security module or a seccomp filter refuses the call: with a container runtime, allow ' +
    `${what === 'perf' ? 'perf_event_open' : 'bpf'} in its seccomp profile.`
  )
}
