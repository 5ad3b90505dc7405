/**
 * Keeping the kernel from counting on a counter, for as long as the package owns it.
 *
 * A uprobe of the kernel is one for each instruction of a file, and carries one counter offset: a registration that brings another one, 0 included, is
 * refused, before the kernel looks which process it is for (`alloc_uprobe`, kernel/events/uprobes.c). So a registration without a counter, for our own
 * process, which does not map the file, puts no breakpoint anywhere and still keeps every tracer from bringing a counter for this site. Held over all sites of a counter it
 * means: the kernel does not count here, now or later. And where it is refused, the kernel does.
 *
 * In a program that traces itself the guard's process does map the file, and the guard is a breakpoint like any other.
 */

import { inSlices } from '../elf/time-slice.js'
import { EINVAL } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { Native } from '../native.js'
import { BPF_LICENSE, BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI, loadProgram } from '../register/bpf-objects.js'
import { closeRegistrations } from '../register/close.js'
import { diagnoseRefusal } from '../register/diagnose.js'
import { refusedAmong, saysOneSite } from '../register/halving.js'
import { checkEvents } from '../register/many-events.js'
import { multiSupport } from '../register/multi-support.js'
import { readUprobePmu } from '../register/pmu.js'
import type { TargetFile } from '../target/file.js'
import { kernelHolders, ownerNames, registrarsOf } from './owners.js'
import type { FileCounter } from './read.js'

/** `r0 = 0; exit`: a program that does nothing, which a link cannot do without. */
export const IDLE_PROGRAM = Uint8Array.of(0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0)

let disabled = false

/** For the test that shows what guards are for. Not part of the package's surface. */
export function disableGuards(off: boolean): void {
  disabled = off
}

/** A site that is guarded, and a counter that it has. */
interface GuardedSite {
  readonly counter: FileCounter
  readonly fileOffset: bigint
}

/** Guards over all sites of some counters of one file. */
export class Guard {
  #fds: readonly number[]

  private constructor(
    private readonly native: Native,
    fds: readonly number[],
  ) {
    this.#fds = fds
  }

  /**
   * Takes the guards, all or none. Nothing is written in any process that maps the file.
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_BUSY` if a tracer has registered one of the sites with a counter; others as for a registration
   */
  static async take(native: Native, file: TargetFile, counters: readonly FileCounter[]): Promise<Guard> {
    const sites = new Map<bigint, GuardedSite>()
    await inSlices(counters, (counter) => {
      for (const { fileOffset } of counter.sites) sites.set(fileOffset, { counter, fileOffset })
    })
    if (disabled || sites.size === 0) return new Guard(native, [])
    const all = [...sites.values()]
    const fds: number[] = []
    try {
      if ((await multiSupport(native)).oneProcess && (await takeByLink(native, file, all, fds))) return new Guard(native, fds)
      checkEvents([{ via: 'perf', sites: all }])
      for (const site of all) fds.push(await takeByEvent(native, file, site))
      return new Guard(native, fds)
    } catch (error) {
      await closeRegistrations(native, fds)
      throw error
    }
  }

  /** Gives the guards back. Idempotent. */
  async release(): Promise<void> {
    const fds = this.#fds
    this.#fds = []
    await closeRegistrations(this.native, fds)
  }
}

/**
 * One link for all sites.
 * @returns whether it was made; if not, it was not for the sake of a site
 * @throws {UprobeError} if a site is refused: of that one
 */
async function takeByLink(native: Native, file: TargetFile, sites: readonly GuardedSite[], fds: number[]): Promise<boolean> {
  const progFd = await loadProgram(native, {
    type: BPF_PROG_TYPE_KPROBE,
    expectedAttachType: BPF_TRACE_UPROBE_MULTI,
    insns: IDLE_PROGRAM,
    license: BPF_LICENSE,
    name: 'uprobe_guard',
  })
  try {
    const error = await tryLink(native, file, progFd, sites, fds)
    if (error === null) return true
    if (!saysOneSite(error)) return false
    const attempt = async (some: readonly GuardedSite[]): Promise<unknown> => {
      const trial: number[] = []
      const trialError = await tryLink(native, file, progFd, some, trial)
      await closeRegistrations(native, trial)
      return trialError
    }
    for await (const refused of refusedAmong(sites, error, attempt)) throw await explain(refused.error, native, file, refused.one)
    return false
  } finally {
    native.closeFd(progFd)
  }
}

/** Makes one link; returns the kernel's error, or `null` when it is open and in `fds`. */
async function tryLink(native: Native, file: TargetFile, progFd: number, sites: readonly GuardedSite[], fds: number[]): Promise<unknown> {
  try {
    fds.push(
      await native.bpfLinkCreateUprobeMulti({
        progFd,
        path: file.kernelPath,
        fileOffsets: BigUint64Array.from(sites, ({ fileOffset }) => fileOffset),
        refCtrOffsets: null,
        cookies: new BigUint64Array(sites.length),
        retprobe: false,
        pid: process.pid,
      }),
    )
    return null
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return error
  }
}

async function takeByEvent(native: Native, file: TargetFile, site: GuardedSite): Promise<number> {
  try {
    return await native.perfEventOpenUprobe({
      type: readUprobePmu().type,
      path: file.kernelPath,
      fileOffset: site.fileOffset,
      refCtrOffset: 0,
      retprobe: false,
      tid: process.pid,
    })
  } catch (error) {
    throw await explain(error, native, file, site)
  }
}

/** Why a site cannot be guarded. */
async function explain(error: unknown, native: Native, file: TargetFile, { counter, fileOffset }: GuardedSite): Promise<UprobeError> {
  const path = escapeForDisplay(file.path)
  const probe = `usdt:${escapeForDisplay(counter.provider)}:${escapeForDisplay(counter.name)}`
  if (errnoOf(error) !== EINVAL) {
    const site = { probe, fileOffset, refCtrOffset: null }
    return diagnoseRefusal(error, { native, pmu: readUprobePmu(), file, site, target: null })
  }
  const site = `${probe} at ${path}:0x${fileOffset.toString(16)}`
  return new UprobeError(
    'ERR_UPROBE_COUNTER_BUSY',
    `${site}: another tracer has registered this site with its counter, so the counter cannot be claimed. Nothing was written. ${await whoHolds(native, file, fileOffset)} ` +
      "Detach that tracer, or use counter: 'kernel', which shares the counter with it.",
    { cause: error, errno: EINVAL, syscall: isSystemCallError(error) ? error.syscall : undefined, site, path },
  )
}

/** A sentence about who has a site, as far as the kernel tells. */
async function whoHolds(native: Native, file: TargetFile, fileOffset: bigint): Promise<string> {
  let names: readonly string[] = []
  try {
    names = ownerNames(registrarsOf(await kernelHolders(native), file, process.pid, [fileOffset]))
  } catch (error) {
    if (!(error instanceof UprobeError)) throw error
  }
  return names.length === 0 ? 'The kernel does not list whose it is (perf, for one, is in no list).' : `It is held by ${names.join(', ')}.`
}
