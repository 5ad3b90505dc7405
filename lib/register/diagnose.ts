/**
 * From the errno of a refused registration to what is the matter.
 *
 * `perf_event_open` answers `EINVAL` for quite different troubles and explains them only in the kernel's log. They are told apart here by
 * asking again in ways that change nothing.
 */

import { negativeMessage } from '../counter/negative.js'
import { CLAIM, readCounterOf } from '../counter/read.js'
import { EACCES, EINVAL, EIO, EMFILE, ENFILE, ENOENT, ENOEXEC, ENOMEM, ENOSPC, ENOTSUPP, EPERM, ESRCH } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError, type UprobeErrorCode } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { Native } from '../native.js'
import { missingRight } from '../rights.js'
import type { TargetFile } from '../target/file.js'
import { mappingsOf } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import { processesMapping } from '../target/scan.js'
import { closeRegistrations } from './close.js'
import type { UprobePmu } from './pmu.js'
import { describeSite, type Site } from './site.js'

/** What was refused. */
export interface RefusedSite {
  readonly native: Native
  readonly pmu: UprobePmu
  readonly file: TargetFile
  readonly site: Pick<Site, 'probe' | 'fileOffset' | 'refCtrOffset'>
  /** The process it was meant for; `null` for every process. */
  readonly target: TargetProcess | null
}

/**
 * Checks what `perf_event_open` cannot express, before it is called.
 * @returns the error, or `null` if the counter offset can be registered.
 */
export function checkCounterOffset(
  site: Pick<Site, 'probe' | 'fileOffset' | 'refCtrOffset'>,
  path: string,
  pmu: UprobePmu,
  bits: 32 | 64,
): UprobeError | null {
  const offset = site.refCtrOffset
  if (offset === null) return null
  // Of thousands nearly all are so, and a number is looked at sooner than a bigint.
  const number = Number(offset)
  if (pmu.refCtrOffset && number % 2 === 0 && number <= 0xffff_ffff) return null
  // Only 32 bits of an offset fit into perf_event_attr: config[63:32]; the uprobe_multi link has 64.
  const tooLarge = bits === 32 && offset > 0xffff_ffffn
  if (pmu.refCtrOffset && offset % 2n === 0n && !tooLarge) return null
  const where = describeSite(site, escapeForDisplay(path))
  if (!pmu.refCtrOffset) {
    return new UprobeError(
      'ERR_UPROBE_UNSUPPORTED',
      `${where} has a counter, and this kernel cannot raise it. It takes Linux 4.20 or later, or counter: 'msb'.`,
      { site: where },
    )
  }
  if (offset % 2n !== 0n) {
    return new UprobeError(
      'ERR_UPROBE_COUNTER_OFFSET',
      `${where}: its counter lies at offset 0x${offset.toString(16)}, which is not a multiple of 2. The file is damaged or was built by a faulty tool.`,
      { site: where },
    )
  }
  return new UprobeError(
    'ERR_UPROBE_COUNTER_OFFSET',
    `${where}: its counter lies at offset 0x${offset.toString(16)}, and perf_event_open takes 32 bits. A kernel with uprobe_multi links (6.10 and later) can do it.`,
    { site: where },
  )
}

/** Explains why a registration was refused. */
export async function diagnoseRefusal(error: unknown, refused: RefusedSite): Promise<UprobeError> {
  if (error instanceof UprobeError) return error
  const errno = errnoOf(error)
  const where = describeSite(refused.site, escapeForDisplay(refused.file.path))
  const explain = (code: UprobeErrorCode, message: string): UprobeError =>
    new UprobeError(code, message, {
      cause: error,
      errno,
      syscall: isSystemCallError(error) ? error.syscall : undefined,
      site: where,
      path: escapeForDisplay(refused.file.path),
      pid: refused.target?.pid,
    })
  switch (errno) {
    case EPERM:
    case EACCES:
      return explain('ERR_UPROBE_PERMISSION', `The kernel refused to probe ${where}. ${missingRight('perf')}`)
    case ESRCH:
      return explain(
        'ERR_UPROBE_TARGET_GONE',
        `Process ${refused.target?.pid ?? ''} exited before ${where} was armed. Attach to the process that took its place.`,
      )
    case ENOENT:
      return explain('ERR_UPROBE_FILE', `${where}: the file could not be reached by the kernel. Mount /proc in this container.`)
    case ENOTSUPP:
    case ENOEXEC:
      return explain(
        'ERR_UPROBE_UNPROBEABLE',
        `${where}: the kernel cannot execute this instruction out of line, so it cannot be probed. Choose a neighbouring instruction or another probe.`,
      )
    case EIO:
      return explain(
        'ERR_UPROBE_UNPROBEABLE',
        `${where}: the kernel could not read or replace the instruction. The file may have been truncated, or its file system does not allow it.`,
      )
    case EMFILE:
    case ENFILE:
      return explain('ERR_UPROBE_LIMIT', `${where}: no file descriptor is left. Raise the limit (ulimit -n), or attach fewer sites.`)
    case ENOMEM:
    case ENOSPC:
      return explain('ERR_UPROBE_LIMIT', `${where}: the kernel has no memory or room left for another probe. Attach fewer sites.`)
    case EINVAL:
      return diagnoseEinval(refused, where, explain)
    default:
      return explain(
        'ERR_UPROBE_KERNEL',
        `The kernel refused to probe ${where} (errno ${errno ?? 'unknown'}). Its log (dmesg) may say more.`,
      )
  }
}

type Explain = (code: UprobeErrorCode, message: string) => UprobeError

async function diagnoseEinval(refused: RefusedSite, where: string, explain: Explain): Promise<UprobeError> {
  if (await mismatchesForOwnProcess(refused)) {
    const ours = refused.site.refCtrOffset
    return explain(
      'ERR_UPROBE_COUNTER_MISMATCH',
      `${where}: another tracer has registered this site ${ours === null ? 'with a counter' : 'without its counter, or with another one'}, ` +
        'and the kernel allows one counter offset a site. It may be an agent of this package that has claimed the counter: `uprobe counters PID` says so, and `uprobe release` asks it to give way. ' +
        'Otherwise detach the other tracer (SystemTap, a tool that ignores semaphores).',
    )
  }
  const negative = await findNegativeCounter(refused)
  if (negative !== null) {
    return explain('ERR_UPROBE_COUNTER_NEGATIVE', negativeMessage(where, negative.pid, negative.value))
  }
  return explain('ERR_UPROBE_KERNEL', `The kernel refused to probe ${where} as invalid. Its log (dmesg) may say more.`)
}

/**
 * Registers the site for our own process, and takes it back. The comparison of counter offsets (`alloc_uprobe`,
 * kernel/events/uprobes.c) comes before any process is looked at, so a mismatch shows here too; where it does not, nothing was written, since we do not
 * map the file.
 */
async function mismatchesForOwnProcess({ native, pmu, file, site }: RefusedSite): Promise<boolean> {
  try {
    const fd = await native.perfEventOpenUprobe({
      type: pmu.type,
      path: file.kernelPath,
      fileOffset: site.fileOffset,
      refCtrOffset: Number(site.refCtrOffset ?? 0n),
      retprobe: false,
      tid: process.pid,
    })
    await closeRegistrations(native, [fd])
    return false
  } catch (error) {
    return errnoOf(error) === EINVAL
  }
}

async function findNegativeCounter({ native, file, site, target }: RefusedSite): Promise<{ pid: number; value: number } | null> {
  if (site.refCtrOffset === null) return null
  for await (const process of target === null ? processesMapping(native, file.identity) : [target]) {
    const value = readCounterOf(process, mappingsOf(process.procDirectory, await process.maps(), file.identity), site.refCtrOffset)
    if (value !== null && (value & CLAIM) !== 0) return { pid: process.pid, value }
  }
  return null
}
