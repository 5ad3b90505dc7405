/**
 * Sites that would hurt their target, found before anything is registered.
 *
 * The kernel accepts each of these and does the damage later, in somebody else's program:
 *
 *  - A probe in the middle of an instruction changes an operand (instruction-start.ts).
 *  - Linux 6.18 to about 7.1 replaces a probed nop of five bytes by a call once it was hit (`arch_uprobe_optimize`, arch/x86/kernel/uprobes.c). The call overwrites
 *    stack that a leaf function may use, a forked child crashes on it, another tracer cannot remove it, and removing it at a bad moment can crash the kernel.
 *  - Return probes came with a system call of their own in Linux 6.11 (`uretprobe`, x86-64). A program under seccomp was killed for making it, until 6.12.14
 *    and 6.13.3 let it pass.
 *  - A return probe replaces the return address on the stack (`prepare_uretprobe`, kernel/events/uprobes.c). Go moves its stacks and reads return addresses while it does,
 *    finds one that belongs to no function, and aborts.
 *
 * A refusal can be overridden by `unsafe: true`, since the knowledge may be incomplete: all but that of the nop, where the harm does not end with the target.
 */
import { ENXIO, EPROTO } from '../errno.js'
import { UprobeError, type UprobeErrorCode } from '../errors.js'
import { isAmong, isBefore, type Releases } from '../kernel-release.js'
import { escapeForDisplay } from '../log.js'
import { type CodeSite, checkInstructionStart, type InstructionSource } from './instruction-start.js'
import { instructionLength, isNop, MAX_INSTRUCTION_BYTES } from './x86-length.js'

/** A process that will have the probe. */
export interface HazardTarget {
  readonly pid: number
  /** `Seccomp:` of /proc/PID/status: 0 none, 1 strict, 2 filter. */
  readonly seccompMode: number
}

/** What the check of a site depends on, beside the site. */
export interface HazardContext {
  readonly source: InstructionSource
  /** Whether the file is a Go program. */
  readonly goBinary: boolean
  readonly retprobe: boolean
  /** Whether the user takes the risk. */
  readonly unsafe: boolean
  /** `uname -r`, as in `6.12.5-amd64`. */
  readonly kernelRelease: string
  /** What `syscall(336)`, which is `uprobe` on x86-64, fails with in this process. */
  readonly uprobeSyscallErrno: number
  /** `null` for every process that maps the file. */
  readonly targets: readonly HazardTarget[] | null
}

/**
 * Checks one site.
 * @returns why it must not be registered, as `ERR_UPROBE_UNSAFE_NOP5`, `ERR_UPROBE_NOT_INSTRUCTION`, `ERR_UPROBE_UNSAFE_GO` or
 *   `ERR_UPROBE_UNSAFE_SECCOMP`; `null` if nothing speaks against it.
 */
export function checkSite(site: CodeSite, context: HazardContext): Promise<UprobeError | null> | null {
  return isPlain(site, context) ? null : checkClosely(site, context)
}

/** Whether nothing can speak against a site, and that is known without waiting: so it is with nearly all of the thousands that a library may have. */
function isPlain(site: CodeSite, context: HazardContext): boolean {
  const { source, retprobe } = context
  if (retprobe || site.origin === 'inside' || source.arch !== 'x64') return false
  if (source.peekByte?.(site.fileOffset) === ONE_BYTE_NOP) return true
  const code = source.peekCode?.(site.vaddr, MAX_INSTRUCTION_BYTES) ?? null
  return code !== null && !isNop5(code)
}

async function checkClosely(site: CodeSite, context: HazardContext): Promise<UprobeError | null> {
  const fatal = await checkNop5(site, context)
  if (fatal !== null || context.unsafe) return fatal
  return (await checkInstructionStart(context.source, site)) ?? checkGo(site, context) ?? checkSeccomp(site, context)
}

const NOP5_BYTES = 5

/** What most USDT probes are. */
const ONE_BYTE_NOP = 0x90

function isNop5(code: Uint8Array): boolean {
  return instructionLength(code, 0) === NOP5_BYTES && isNop(code, 0, NOP5_BYTES)
}

/**
 * Whether this kernel optimizes nops of five bytes in the way that does harm.
 *
 * Called from anywhere but the kernel's own trampoline, the `uprobe` system call fails with ENXIO on that generation, with EPROTO on the repaired one, and with
 * ENOSYS before it existed. In a container a seccomp filter may answer in the kernel's place; then the version decides, and it only says since when.
 */
export function nop5IsDangerous(uprobeSyscallErrno: number, kernelRelease: string): boolean {
  if (uprobeSyscallErrno === ENXIO) return true
  if (uprobeSyscallErrno === EPROTO) return false
  return !isBefore(kernelRelease, [6, 18, 0])
}

async function checkNop5(site: CodeSite, context: HazardContext): Promise<UprobeError | null> {
  const { source, uprobeSyscallErrno, kernelRelease } = context
  if (source.arch !== 'x64' || !nop5IsDangerous(uprobeSyscallErrno, kernelRelease)) return null
  const code = await source.readCode(site.vaddr, MAX_INSTRUCTION_BYTES)
  if (!isNop5(code)) return null
  const bytes = Buffer.from(code.subarray(0, NOP5_BYTES)).toString('hex')
  const next = (site.fileOffset + BigInt(NOP5_BYTES)).toString(16)
  const hidden =
    uprobeSyscallErrno === ENXIO ? '' : ' (as far as can be told: system call 336 is answered by a seccomp filter of this process)'
  return refusal(
    'ERR_UPROBE_UNSAFE_NOP5',
    site,
    source,
    `the instruction is a nop of five bytes (${bytes}), which this kernel, ${escapeForDisplay(kernelRelease)}, replaces by a call after its first hit${hidden}. ` +
      'That can corrupt the target and crash the machine, so there is no option to allow it. ' +
      `Probe the instruction behind it, at offset 0x${next}, build the program with probes of one-byte nops, or use a kernel before 6.18 or one with the repair`,
  )
}

function checkGo(site: CodeSite, { source, retprobe, goBinary }: HazardContext): UprobeError | null {
  if (!retprobe || !goBinary) return null
  return refusal(
    'ERR_UPROBE_UNSAFE_GO',
    site,
    source,
    'a return probe changes return addresses on the stack, and the Go runtime aborts the program when it moves a stack and finds one. ' +
      'Probe the ret instructions of the function, as uprobe:PATH:0xOFFSET, or pass unsafe: true',
  )
}

/** First and first repaired version of each line of kernels that kills targets of return probes under seccomp. */
const SECCOMP_KILLS: readonly Releases[] = [
  [
    [6, 11, 0],
    [6, 12, 14],
  ],
  [
    [6, 13, 0],
    [6, 13, 3],
  ],
]

/** Whether a return probe kills a target under seccomp on this kernel. Only x86-64 has the system call. */
export function returnProbeBreaksSeccomp(kernelRelease: string): boolean {
  return isAmong(kernelRelease, SECCOMP_KILLS)
}

function checkSeccomp(site: CodeSite, context: HazardContext): UprobeError | null {
  const { source, retprobe, kernelRelease, targets } = context
  if (!retprobe || source.arch !== 'x64' || !returnProbeBreaksSeccomp(kernelRelease)) return null
  const confined = targets?.find(({ seccompMode }) => seccompMode !== 0)
  if (targets !== null && confined === undefined) return null
  const who = confined === undefined ? 'every process that maps the file and uses seccomp' : `process ${confined.pid}, which uses seccomp`
  const help =
    confined === undefined ? 'name a process without seccomp by pid' : 'probe the ret instructions of the function, as uprobe:PATH:0xOFFSET'
  return refusal(
    'ERR_UPROBE_UNSAFE_SECCOMP',
    site,
    source,
    `on this kernel, ${escapeForDisplay(kernelRelease)}, a return probe makes a system call in the target that seccomp filters do not know, and would kill ${who}. ` +
      `Use a kernel from 6.12.14 or 6.13.3 on, ${help}, or pass unsafe: true if the filter allows system call 335`,
    confined?.pid,
  )
}

function refusal(code: UprobeErrorCode, site: CodeSite, source: InstructionSource, why: string, pid?: number): UprobeError {
  const path = escapeForDisplay(source.path)
  const where = `${escapeForDisplay(site.probe)} at ${path}:0x${site.fileOffset.toString(16)}`
  return new UprobeError(code, `${where}: ${why}.`, { path, site: where, pid })
}
