/**
 * "Will it work here, and if not, what helps?"
 *
 * Some of the answer can be read from /proc and /sys, and it is what explains a failure: a capability that is missing, a kernel too old. But reading
 * never proves that tracing works: security modules, seccomp filters and container runtimes refuse calls for reasons of their own. So the decisive
 * checks are trials: a program like those of a real attach is loaded, a probe in this package's own addon is registered for this process, and its
 * hits are counted. Nothing outside this process is touched.
 *
 * `ok: false` means that attaching will fail for this reason. What only limits tracing (a slower way to detach, sites that are refused) is `ok: true`,
 * and has a remedy too if something helps. The function throws on no system and needs no right.
 */
import { type Host, readHost } from './doctor/host.js'
import { runTrials, type Trial, type Trials } from './doctor/trials.js'
import { EACCES, ENXIO, EPERM, EPROTO } from './errno.js'
import { errnoOf, isSystemCallError } from './errors.js'
import { missingRight } from './rights.js'

/** What is checked, in the order of the answer: what comes first is what to mend first. */
export type DoctorCheckName =
  | 'system'
  | 'node'
  | 'addon'
  | 'kernel'
  | 'uprobe-pmu'
  | 'ref-ctr-offset'
  | 'capabilities'
  | 'process-access'
  | 'perf-event-paranoid'
  | 'lockdown'
  | 'memlock'
  | 'bpf'
  | 'perf-uprobe'
  | 'uprobe-multi'
  | 'nop5'
  | 'pid-namespace'

/** One check of {@link doctor}. */
export interface DoctorCheck {
  readonly check: DoctorCheckName
  /** False if attaching will fail for this reason. */
  readonly ok: boolean
  /** What was found. */
  readonly detail: string
  /** What helps: always there when `ok` is false; when `ok` is true, how to lift a limit, or `null`. */
  readonly remedy: string | null
}

/** Oldest Node.js that package.json's `engines` allows. */
const NODE_MAJOR = 20
/** The BPF ring buffer came with Linux 5.8 (457f44363a88). */
const KERNEL_MINIMUM = [5, 8] as const
/** Until then BPF maps counted against RLIMIT_MEMLOCK (80ee81e0403c). */
const KERNEL_WITHOUT_MEMLOCK = [5, 11] as const

/** Checks the machine. Takes a fraction of a second: the trials wait for grace periods of the kernel. */
export async function doctor(): Promise<DoctorCheck[]> {
  return examine(readHost(), await runTrials())
}

/** The verdict on what was read and tried; a function of its arguments. */
export function examine(host: Host, trials: Trials): DoctorCheck[] {
  const system = checkSystem(host)
  const beginning = [system, checkNode(host)]
  // On another system there is nothing else to ask.
  if (!system.ok) return [...beginning, checkTrial('addon', trials.addon, '', 'Run the agent on Linux, on x64 or arm64.')]
  return [
    ...beginning,
    checkTrial(
      'addon',
      trials.addon,
      'it loads',
      'Install the package again with its prebuilds, or run `npm run build` in a source checkout.',
    ),
    checkKernel(host),
    ...checkPmu(trials),
    checkCapabilities(host, trials),
    checkProcessAccess(host),
    checkParanoid(host),
    checkLockdown(host),
    checkMemlock(host, trials),
    checkTrial('bpf', trials.bpf, 'maps and a capture program were created and verified', rightFor('bpf', trials.bpf)),
    checkTrial(
      'perf-uprobe',
      trials.perf,
      'a probe in this process was registered and its hits were counted',
      rightFor('perf', trials.perf),
    ),
    checkMulti(trials),
    checkNop5(host, trials),
    checkPidNamespace(host),
  ]
}

function fine(check: DoctorCheckName, detail: string, remedy: string | null = null): DoctorCheck {
  return { check, ok: true, detail, remedy }
}

function failing(check: DoctorCheckName, detail: string, remedy: string): DoctorCheck {
  return { check, ok: false, detail, remedy }
}

function checkSystem({ platform, arch }: Host): DoctorCheck {
  const detail = `${platform} on ${arch}`
  if (platform === 'linux' && (arch === 'x64' || arch === 'arm64')) return fine('system', detail)
  return failing(
    'system',
    detail,
    'Uprobes exist on Linux, and this package has them on x64 and arm64: run the agent there, or leave tracing off.',
  )
}

function checkNode({ nodeVersion }: Host): DoctorCheck {
  const major = Number(/^v(\d+)/.exec(nodeVersion)?.[1] ?? 0)
  if (major >= NODE_MAJOR) return fine('node', nodeVersion)
  return failing('node', nodeVersion, `Use Node.js ${NODE_MAJOR} or later.`)
}

/** The outcome of a trial as a check. */
function checkTrial(check: DoctorCheckName, trial: Trial, passed: string, remedy: string): DoctorCheck {
  switch (trial.outcome) {
    case 'passed':
      return fine(check, passed)
    case 'failed':
      return failing(check, describeFailure(trial.error), remedy)
    case 'not-tried':
      return failing(check, `not tried: ${trial.because}`, 'Mend what failed before it, and ask again.')
  }
}

/** What failed, without the advice that the messages of this package end with: the remedy has it. */
function describeFailure(error: Error): string {
  if (error.cause instanceof Error) return describeFailure(error.cause)
  if (isSystemCallError(error)) return `${error.syscall} was refused with ${error.code}`
  return error.message.split('\n')[0] ?? ''
}

/** What helps against a refused trial: the missing right if that is the reason. */
function rightFor(what: 'perf' | 'bpf', trial: Trial): string {
  const errno = trial.outcome === 'failed' ? errnoOf(trial.error) : undefined
  if (errno === EPERM || errno === EACCES) return missingRight(what)
  return `Its errno and the kernel's log (dmesg) may say more${what === 'bpf' ? '; the kernel needs CONFIG_BPF_SYSCALL and CONFIG_BPF_EVENTS.' : '.'}`
}

function kernelVersion(release: string): readonly [number, number] {
  const match = /^(\d+)\.(\d+)/.exec(release)
  return [Number(match?.[1] ?? 0), Number(match?.[2] ?? 0)]
}

function isAtLeast(release: string, minimum: readonly [number, number]): boolean {
  const [major, minor] = kernelVersion(release)
  return major > minimum[0] || (major === minimum[0] && minor >= minimum[1])
}

function checkKernel({ kernelRelease }: Host): DoctorCheck {
  const detail = `Linux ${kernelRelease}`
  if (isAtLeast(kernelRelease, KERNEL_MINIMUM)) return fine('kernel', detail)
  return failing('kernel', detail, `Use Linux ${KERNEL_MINIMUM.join('.')} or later, which has the BPF ring buffer.`)
}

function checkPmu({ pmu }: Trials): DoctorCheck[] {
  if (pmu instanceof Error) {
    return [
      failing('uprobe-pmu', pmu.message, 'Use a kernel with CONFIG_UPROBE_EVENTS, and mount sysfs on /sys (containers may mask it).'),
      failing('ref-ctr-offset', 'unknown without the uprobe PMU', 'Mend uprobe-pmu first.'),
    ]
  }
  return [
    fine('uprobe-pmu', `perf event type ${pmu.type}`),
    pmu.refCtrOffset
      ? fine('ref-ctr-offset', 'the kernel raises the counters of USDT probes')
      : failing('ref-ctr-offset', 'the kernel cannot raise the counters of USDT probes', 'Use Linux 4.20 or later.'),
  ]
}

function checkCapabilities(host: Host, trials: Trials): DoctorCheck {
  const { capabilities } = host
  if (capabilities === null)
    return fine('capabilities', 'unknown: /proc/self/status cannot be read', 'Mount /proc to know; the trials below decide.')
  const held = capabilities.size === 0 ? 'none of those for tracing' : [...capabilities].join(' ')
  const where = host.initialUserNamespace === false ? ', in a user namespace of its own, where they do not count' : ''
  const detail = `${held}${where}`
  const enough = capabilities.has('CAP_SYS_ADMIN') && host.initialUserNamespace !== false
  // Kernels without the fix of CVE-2025-38466 are content with CAP_PERFMON; that the trial passed says more than the rule.
  if (enough || trials.perf.outcome === 'passed') return fine('capabilities', detail)
  return failing('capabilities', detail, missingRightOf(host))
}

function missingRightOf({ initialUserNamespace }: Host): string {
  if (initialUserNamespace === false)
    return 'Run the agent in the initial user namespace: without user-namespace remapping, not in a rootless container.'
  return 'Run as root, or grant CAP_SYS_ADMIN: the uprobe PMU demands it (perf_uprobe_event_init, kernel/events/core.c).'
}

function checkProcessAccess({ capabilities }: Host): DoctorCheck {
  if (capabilities === null || capabilities.has('CAP_SYS_PTRACE')) return fine('process-access', 'other processes may be inspected')
  return fine(
    'process-access',
    "without CAP_SYS_PTRACE the memory of other users' processes cannot be read",
    'Grant CAP_SYS_PTRACE: without it a process of another user cannot be searched for probes, and its sites stay unverified.',
  )
}

function checkParanoid({ perfEventParanoid }: Host): DoctorCheck {
  if (perfEventParanoid === null) return fine('perf-event-paranoid', 'unknown')
  return fine('perf-event-paranoid', `${perfEventParanoid}; it does not bind a process with CAP_SYS_ADMIN, which uprobes need in any case`)
}

function checkLockdown({ lockdown }: Host): DoctorCheck {
  if (lockdown === null) return fine('lockdown', 'not in use')
  // Confidentiality refuses bpf_probe_read_kernel and kprobes; uprobes and bpf_probe_read_user are not asked about (bpf_tracing_func_proto, kernel/trace/bpf_trace.c).
  return fine('lockdown', `${lockdown}; no mode of it forbids uprobes or reading the memory of programs`)
}

function checkMemlock({ kernelRelease, memlockLimitBytes }: Host, { bpf }: Trials): DoctorCheck {
  if (isAtLeast(kernelRelease, KERNEL_WITHOUT_MEMLOCK))
    return fine('memlock', `BPF maps do not count against RLIMIT_MEMLOCK since Linux ${KERNEL_WITHOUT_MEMLOCK.join('.')}`)
  const detail =
    memlockLimitBytes === null
      ? 'unknown'
      : `${memlockLimitBytes === Number.POSITIVE_INFINITY ? 'unlimited' : `${memlockLimitBytes} bytes`}`
  const remedy =
    'Raise the limit of locked memory, which holds BPF maps on this kernel: ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit.'
  if (memlockLimitBytes === Number.POSITIVE_INFINITY) return fine('memlock', detail)
  return bpf.outcome === 'failed' && errnoOf(bpf.error) === EPERM ? failing('memlock', detail, remedy) : fine('memlock', detail, remedy)
}

function checkMulti({ bpf, multi }: Trials): DoctorCheck {
  if (multi.outcome === 'passed') return fine('uprobe-multi', 'many sites of one file are registered at once')
  const why = multi.outcome === 'failed' ? describeFailure(multi.error) : multi.because
  return fine(
    'uprobe-multi',
    `not usable: ${why}`,
    // Nothing is known of the kernel where nothing could be tried.
    bpf.outcome === 'passed'
      ? 'Use Linux 6.10 or later to detach many sites in milliseconds; here each site takes about a tenth of a second.'
      : 'Mend what failed before it, and ask again.',
  )
}

function checkNop5({ arch }: Host, { uprobeSyscallErrno }: Trials): DoctorCheck {
  if (arch !== 'x64') return fine('nop5', 'no matter on this architecture')
  switch (uprobeSyscallErrno) {
    case null:
      return fine('nop5', 'unknown without the addon')
    case ENXIO:
      return fine(
        'nop5',
        'this kernel turns a probed 5-byte nop into a call that can crash the target or the machine, so such sites are refused',
        'Use a kernel before 6.18 or from 7.2 on to trace probes that were compiled to a 5-byte nop.',
      )
    case EPROTO:
      return fine('nop5', 'this kernel turns a probed 5-byte nop into a call, and does it right')
    default:
      return fine('nop5', 'this kernel treats a 5-byte nop as any other instruction')
  }
}

function checkPidNamespace({ initialPidNamespace }: Host): DoctorCheck {
  if (initialPidNamespace !== false) return fine('pid-namespace', 'the initial one')
  return fine(
    'pid-namespace',
    'a pid namespace of its own: only its processes can be named by pid, and hits carry the pids of the initial namespace',
    'Run the agent in the pid namespace of the host (hostPID: true, --pid=host) to trace other containers by pid.',
  )
}
