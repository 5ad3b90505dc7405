/**
 * Putting sites of one file into the kernel, for one process or for all.
 *
 * Two ways lead there, and both arm the site and raise its counter before they return:
 *
 * - `perf_event_open` on the uprobe PMU, one fd a site, with a BPF program set on it. The BPF program runs for every thread, although a perf event
 *   belongs to one: the filter looks at the address space (`uprobe_perf_filter`, kernel/trace/trace_uprobe.c);
 * - one uprobe_multi link for many sites, all or nothing. Closing perf events costs about 100 ms each, one after another, while a link is gone in one
 *   wait; so several sites take this way where the kernel has a right one.
 *
 * A link is refused as a whole if one site is. Which one it was is found by halving.
 */
import { COOKIE_WORD } from '../capture/compile.js'
import { errnoOf, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { Native, UprobeMulti } from '../native.js'
import type { SiteWork } from '../progress.js'
import type { TargetFile } from '../target/file.js'
import type { TargetProcess } from '../target/process.js'
import { closeRegistrations } from './close.js'
import { checkCounterOffset, diagnoseRefusal } from './diagnose.js'
import { type Refused, refusedAmong, saysOneSite } from './halving.js'
import type { UprobePmu } from './pmu.js'
import type { CapturePrograms, MultiProgram } from './programs.js'
import { describeSite, type Site } from './site.js'

/** What to register. */
export interface RegisterRequest {
  readonly native: Native
  readonly pmu: UprobePmu
  readonly programs: CapturePrograms
  readonly file: TargetFile
  /** `null` for every process that maps the file. */
  readonly target: TargetProcess | null
  readonly sites: readonly Site[]
  readonly retprobe: boolean
  readonly via: 'perf' | 'multi'
  /** Counts the sites; its signal ends the work early, and what was opened by then is closed. */
  readonly work: SiteWork
}

/** A site that could not be registered, and why. */
export interface SiteFailure {
  readonly site: Site
  readonly error: UprobeError
}

/** What is registered. Closing `fds` takes it all out again. */
export interface Registration {
  readonly fds: readonly number[]
  readonly failures: readonly SiteFailure[]
}

/**
 * Registers the sites. Those that the kernel refuses one by one are in `failures`, the others are armed.
 * @throws {UprobeError} when the refusal is not about single sites; nothing is left registered then.
 */
export async function registerSites(request: RegisterRequest): Promise<Registration> {
  const failures: SiteFailure[] = []
  await request.work.each(request.sites, (site) => {
    const error = checkCounterOffset(site, request.file.path, request.pmu, request.via === 'perf' ? 32 : 64)
    if (error !== null) failures.push({ site, error })
    return undefined
  })
  const unfit = new Set(failures.map(({ site }) => site))
  const sites = unfit.size === 0 ? request.sites : request.sites.filter((site) => !unfit.has(site))
  const fds: number[] = []
  try {
    if (sites.length > 0) {
      if (request.via === 'perf') await registerPerf(request, sites, fds, failures)
      else await registerMulti(request, sites, fds, failures)
    }
    return { fds, failures }
  } catch (error) {
    await closeRegistrations(request.native, fds)
    throw error
  }
}

async function registerPerf(request: RegisterRequest, sites: readonly Site[], fds: number[], failures: SiteFailure[]): Promise<void> {
  const { native, pmu, file, target } = request
  for (const site of sites) {
    request.work.advance(1)
    request.work.signal.throwIfAborted()
    const program = await request.programs.perf(site)
    let fd: number
    try {
      fd = await native.perfEventOpenUprobe({
        type: pmu.type,
        path: file.kernelPath,
        fileOffset: site.fileOffset,
        refCtrOffset: Number(site.refCtrOffset ?? 0n),
        retprobe: request.retprobe,
        tid: target?.tid ?? -1,
      })
    } catch (error) {
      const explained = await diagnoseRefusal(error, { native, pmu, file, site, target })
      if (!saysOneSite(error)) throw explained
      failures.push({ site, error: explained })
      continue
    }
    fds.push(fd)
    try {
      await native.perfEventSetBpf(fd, program)
    } catch (cause) {
      throw new UprobeError(
        'ERR_UPROBE_KERNEL',
        `${describeSite(site, escapeForDisplay(file.path))}: the kernel did not take the capture program (errno ${errnoOf(cause) ?? 'unknown'}). Its log (dmesg) may say more.`,
        { cause, errno: errnoOf(cause), syscall: 'ioctl' },
      )
    }
  }
}

async function registerMulti(request: RegisterRequest, sites: readonly Site[], fds: number[], failures: SiteFailure[]): Promise<void> {
  for (const program of await request.programs.multi()) {
    const served = program.servesAll ? sites : sites.filter(({ slot }) => program.shapes[slot] !== -1)
    if (served.length === 0) continue
    request.work.signal.throwIfAborted()
    const error = await tryLink(request, program, served, fds)
    request.work.advance(served.length)
    if (error === null) continue
    const refused = saysOneSite(error) ? await findRefused(request, program, served, error) : []
    const explain = async (site: Site, cause: unknown): Promise<UprobeError> =>
      diagnoseRefusal(cause, { native: request.native, pmu: request.pmu, file: request.file, site, target: request.target })
    for (const { one, error } of refused) failures.push({ site: one, error: await explain(one, error) })
    const refusedSites = new Set(refused.map(({ one }) => one))
    const left = served.filter((site) => !refusedSites.has(site))
    const [first] = left
    if (first === undefined) continue
    const again = refused.length === 0 ? error : await tryLink(request, program, left, fds)
    if (again !== null) throw await explain(first, again)
  }
}

/** Opens one link; returns the kernel's error, or `null` when it is open and in `fds`. */
async function tryLink(request: RegisterRequest, program: MultiProgram, sites: readonly Site[], fds: number[]): Promise<unknown> {
  try {
    const fd = await request.native.bpfLinkCreateUprobeMulti({
      progFd: program.fd,
      path: request.file.kernelPath,
      ...placesOf(program, sites),
      retprobe: request.retprobe,
      pid: request.target?.pid ?? 0,
    })
    fds.push(fd)
    return null
  } catch (error) {
    return error
  }
}

/** What the kernel is told of each site. In one loop, and without a closure or a bigint for each: of thousands of sites this is a good part of what is done before the kernel is asked. */
function placesOf({ shapes }: MultiProgram, sites: readonly Site[]): Pick<UprobeMulti, 'fileOffsets' | 'refCtrOffsets' | 'cookies'> {
  const fileOffsets = new BigUint64Array(sites.length)
  const refCtrOffsets = new BigUint64Array(sites.length)
  const cookies = new BigUint64Array(sites.length)
  const cookieWords = new Uint32Array(cookies.buffer)
  let counted = false
  for (let index = 0; index < sites.length; index++) {
    const site = sites[index]
    if (site === undefined) continue
    const { slot, fileOffset, refCtrOffset } = site
    fileOffsets[index] = fileOffset
    if (refCtrOffset !== null) {
      refCtrOffsets[index] = refCtrOffset
      counted = true
    }
    cookieWords[2 * index + COOKIE_WORD.slot] = slot
    cookieWords[2 * index + COOKIE_WORD.shape] = shapes[slot] ?? 0
  }
  return { fileOffsets, refCtrOffsets: counted ? refCtrOffsets : null, cookies }
}

/** The sites that the kernel refuses; each trial link is closed again. */
async function findRefused(
  request: RegisterRequest,
  program: MultiProgram,
  sites: readonly Site[],
  error: unknown,
): Promise<Array<Refused<Site>>> {
  const refused: Array<Refused<Site>> = []
  const attempt = async (some: readonly Site[]): Promise<unknown> => {
    request.work.signal.throwIfAborted()
    const trial: number[] = []
    const trialError = await tryLink(request, program, some, trial)
    await closeRegistrations(request.native, trial)
    return trialError
  }
  for await (const one of refusedAmong(sites, error, attempt)) refused.push(one)
  return refused
}
