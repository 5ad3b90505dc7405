/**
 * The way from a specification to an attached probe.
 *
 *     spec → targets → files → sites → hazards → capture programs → registration → armed? → Probe
 *
 * Each step can fail, and what the steps before it opened is then closed again: no breakpoint, no counter and no fd is left behind. A specification that
 * names one probe is attached whole or not at all. With a pattern, sites that cannot be armed are left out, with a warning that names the site and
 * the reason, as long as any is left.
 */
import { readlinkSync } from 'node:fs'
import { release } from 'node:os'
import { type Arming, ClaimedArming, CountedArming } from './arming.js'
import type { HitSink } from './capture/compile.js'
import type { Filter } from './capture/filter.js'
import { bindFilter, comparedAsSigned } from './capture/filter-bind.js'
import { parseFilter } from './capture/filter-parse.js'
import { HitDecoder } from './capture/hit.js'
import type { CaptureShape } from './capture/shape.js'
import { type ClaimRequest, type ClaimsHost, CounterClaims, type SeeLate } from './counter/claims.js'
import type { ClaimContext } from './counter/process-claim.js'
import { type CounterMode, counterTable, type FileHolder, ProbeHolds } from './counter/table.js'
import type { Ring } from './delivery/ring.js'
import { inSlices } from './elf/time-slice.js'
import { errnoOf, isSystemCallError, UprobeError } from './errors.js'
import { escapeForDisplay, type Logger } from './log.js'
import type { Native } from './native.js'
import type { AttachSettings } from './options.js'
import { Probe } from './probe.js'
import { type Progress, type ReportProgress, SiteWork } from './progress.js'
import { Anticipation } from './register/anticipate.js'
import { type ArmResult, Attachment, type Part } from './register/attachment.js'
import { checkEvents } from './register/many-events.js'
import { multiSupport } from './register/multi-support.js'
import { PauseMap } from './register/pause-map.js'
import { readUprobePmu } from './register/pmu.js'
import { CapturePrograms } from './register/programs.js'
import type { SiteFailure } from './register/register.js'
import type { Site } from './register/site.js'
import { SiteCounts } from './register/stats.js'
import { limitError } from './shortage.js'
import { type FileSites, type PreparedSites, prepareSites } from './spec/prepare-sites.js'
import { type ProbeSpec, parseSpec } from './spec/spec.js'
import { ProbeStacks } from './symbolize/probe-stacks.js'
import { TargetProcess } from './target/process.js'
import { resolveFiles } from './target/resolve.js'
import { processesMapping } from './target/scan.js'
import { TaskEvents } from './target/task-events.js'
import { Undo } from './undo.js'

/** What a tracer lends to an attach. */
export interface AttachContext {
  readonly native: Native
  readonly log: Logger
  /** The tracer's ring; made on first use. */
  ring(): Promise<Ring>
  /** Stands for the tracer in the table of counters. */
  readonly tracer: object
  /** Clears what agents that died have left. */
  recover(): Promise<void>
  /** What claims of the tracer share; made on first use. Throws `ERR_UPROBE_LEASE`. */
  claimContext(): Promise<ClaimContext>
  /** What a budget wants to know before the probe is hit, which takes a while the first time; `null` if no budget may take the probe out. Does not reject. */
  readonly hitCost: Promise<unknown> | null
  /** Told when a probe has ended and holds nothing. */
  onEnded(probe: Probe): void
  /** Told how far an attach or detach is. */
  onProgress(progress: Progress): void
}

/** What takes the hits of a probe instead of the ring. */
export interface Taker {
  readonly sink: HitSink
  /** Whether the probe is one of two that are switched together: then no program of it runs while it is off. */
  readonly paired: boolean
  /** Makes of the probe's own arming the one that switches both; default: it is switched by the other. */
  pair?(own: Arming, pauseMap: PauseMap): Arming
  /** See {@link SeeLate}; default: nobody has to know. */
  seeLate?: SeeLate
}

/**
 * Makes what takes the hits of a probe, once its sites are known and before they are registered. What it opens is its own to close, also when the
 * attach fails later.
 */
export type MakeTaker = (prepared: Pick<PreparedSites, 'sites' | 'files'>, signal: AbortSignal) => Promise<Taker>

/** Attaches a probe. Throws {@link UprobeError}, or the reason of an aborted signal; nothing is left behind then. */
export async function attach(
  context: AttachContext,
  text: string,
  settings: AttachSettings,
  makeTaker: MakeTaker | null = null,
): Promise<Probe> {
  const signal = settings.signal ?? new AbortController().signal
  signal.throwIfAborted()
  const spec = applyPath(parseSpec(text), settings.path)
  const filter = settings.filter === null ? null : parseFilter(settings.filter, spec.kind)
  const undo = new Undo()
  const processes: TargetProcess[] = []
  try {
    return await attachSteps(context, spec, settings, filter, makeTaker, signal, processes, undo)
  } catch (error) {
    const explained = signal.aborted && error === signal.reason ? error : explainFailure(error, text, processes)
    await undo.run(context.log)
    throw explained
  }
}

/**
 * What is to be thrown for a failure. A process that ends or calls exec in the course of an attach shows in whatever is asked of it next: as a file that it does
 * not map, a site that is not armed. A failed system call that nobody has explained becomes an error of this package.
 */
function explainFailure(error: unknown, spec: string, processes: readonly TargetProcess[]): unknown {
  const gone = processes.find((target) => target.addressSpaceGone())
  if (gone !== undefined) return gone.goneError(error)
  if (error instanceof UprobeError || !isSystemCallError(error)) return error
  const doing = `${escapeForDisplay(spec)} cannot be attached`
  return (
    limitError(error, doing) ??
    new UprobeError(
      'ERR_UPROBE_KERNEL',
      `${doing}: ${error.syscall} failed with ${error.code}. Please report this, with the kernel's version.`,
      {
        cause: error,
        errno: errnoOf(error),
        syscall: error.syscall,
      },
    )
  )
}

async function attachSteps(
  context: AttachContext,
  spec: ProbeSpec,
  settings: AttachSettings,
  filter: Filter | null,
  makeTaker: MakeTaker | null,
  signal: AbortSignal,
  processes: TargetProcess[],
  undo: Undo,
): Promise<Probe> {
  const { native, log } = context
  const reportOf =
    (action: Progress['action']): ReportProgress =>
    (step, done, total) =>
      context.onProgress({ action, spec: spec.text, step, done, total })
  const work = new SiteWork(signal, reportOf('attach'))
  const pmu = readUprobePmu()
  undo.add(() => closeAll(processes))
  const tasks = new TaskEvents(native)
  undo.add(() => tasks.close())
  // Before any rest: what becomes of a process from here on is noticed.
  for (const pid of settings.pids) processes.push(TargetProcess.openProgram(native, pid))
  await context.hitCost
  signal.throwIfAborted()
  await work.beforeLongStep()
  const anticipation =
    settings.registration === 'perf' ? null : new Anticipation(native, JSON.stringify([spec.text, spec.path, settings.pids]), release())
  undo.add(() => anticipation?.over())
  // A claim that a dead agent left makes the kernel refuse to count.
  await context.recover()
  await work.beforeLongStep()
  const files = await resolveFiles(native, spec.path, processes)
  undo.add(() => closeAll(files.map(({ file }) => file)))
  signal.throwIfAborted()
  anticipation?.look()
  for (const target of processes) tasks.prepare(target)

  await work.beforeLongStep()
  const onFound = (): void => anticipation?.found()
  const prepared = await prepareSites({ native, spec, files, settings, log, work, onFound })
  const warnings = [...prepared.warnings]
  await work.beforeLongStep()
  // A process may map hundreds of files. Those without sites need not be kept open, and with them the file systems they are on.
  const probed = new Set(prepared.files.map(({ file }) => file))
  closeAll(files.map(({ file }) => file).filter((file) => !probed.has(file)))
  if (filter !== null) warnings.push(...checkFilter(filter, prepared.sites))
  const taker = makeTaker === null ? null : await makeTaker(prepared, signal)
  const ring = await context.ring()
  signal.throwIfAborted()
  const probeId = ring.newProbeId()
  const counts = await SiteCounts.open(native, prepared.sites.length)
  undo.add(() => counts.close())
  const paired = taker?.paired === true
  const seeLate: SeeLate = taker?.seeLate ?? ((_pid, work) => work())
  const pauseMap = new PauseMap(native)
  undo.add(() => pauseMap.close())
  const stacks = settings.stack ? await ProbeStacks.open(native, ring, spec.kind !== 'uretprobe', settings.stackDepth) : null
  undo.add(() => stacks?.close())
  await stacks?.seeTargets(settings.pids, signal)
  const programs = new CapturePrograms(
    native,
    {
      arch: prepared.arch,
      probeId,
      statsFd: counts.fd,
      slotsAnEntry: counts.slotsAnEntry,
      ringFd: settings.countOnly ? null : ring.mapFd,
      ringBytes: ring.ringBytes,
      excludeTid: readerThreadToExclude(ring, processes),
      filter,
      sink: taker?.sink ?? null,
      pauseFd: pauseMap.fd,
      stacks: stacks?.program ?? null,
    },
    prepared.sites,
  )
  undo.add(() => programs.close())
  const parts = await planParts(native, prepared.files, settings, context.hitCost !== null || paired)
  warnings.push(...checkEvents(parts))
  const attachment = new Attachment({
    native,
    pmu,
    programs,
    retprobe: spec.kind === 'uretprobe',
    parts,
    seeLate,
    onWarning: (warning) => probe.warn(warning),
  })

  await work.beforeLongStep()
  // From the first registration on there can be hits, so whoever gets them must be there before.
  const decoder = new HitDecoder(prepared.sites, (slot) => probe.siteOfSlot(slot), stacks)
  const holds = new ProbeHolds(
    counterTable,
    prepared.files.flatMap((file) => countersOf(context, file, settings.counter, () => probe.armed)),
  )
  const own: Arming = settings.counter === 'msb' ? await claimCounters() : new CountedArming(attachment, ring, pauseMap)
  const arming = taker?.pair?.(own, pauseMap) ?? own
  const probe: Probe = new Probe({
    native,
    ring,
    probeId,
    attachment,
    arming,
    pauseMap,
    programs,
    counts,
    files: [...probed],
    processes,
    siteCount: prepared.sites.length,
    sites: prepared.files,
    warnings,
    decoder,
    countOnly: settings.countOnly,
    queueLimits: { hits: settings.queueLimit, bytes: settings.queueLimitBytes },
    log,
    holds,
    tasks,
    onEnded: () => {
      stacks?.close()
      context.onEnded(probe)
    },
    onEnding: reportOf('detach'),
  })
  // The probe owns everything from here on, and its end closes it.
  undo.replace(async () => {
    await probe.detach().finally(() => anticipation?.over())
  })
  probe.prepare()

  async function claimCounters(): Promise<ClaimedArming> {
    const host: ClaimsHost = {
      native,
      ring,
      log,
      context: () => context.claimContext(),
      onArrival: (arrival) => probe.arrived(arrival),
      seeLate,
      onError: (error) => probe.failed(error),
    }
    const requests: ClaimRequest[] = []
    for (const { file, facts, processes: wanted } of prepared.files) {
      requests.push({ file, counters: await inSlices(facts.counters.values(), (counter) => counter), processes: wanted })
    }
    const claimed = new ClaimedArming(
      attachment,
      new CounterClaims(host, requests),
      pauseMap,
      () => probe.stillHit(claimed),
      (error) => probe.failed(error),
      paired,
    )
    return claimed
  }

  await work.beforeLongStep()
  holds.enter()
  const { failures: refused, warnings: leftAlone } = await arming.arm(work)
  probe.seeFromNow()
  warnings.push(...leftAlone)
  settle(spec, refused, prepared.sites.length, warnings)
  const leftOut = attachment.leaveOut(refused)
  const verified = await attachment.verify(work)
  settleVerification(spec, processes.length === 0, verified, prepared.sites.length - leftOut.size, warnings)
  await probe.watchTargets()
  for (const target of processes) {
    // Checked last: from here on the watches notice the end of a process, of its program, and of the thread that stands for it.
    if (target.addressSpaceGone()) throw target.goneError()
    await attachment.moveToLivingThread(target, signal)
  }
  await anticipation?.over()
  signal.throwIfAborted()
  probe.start(leftOut, verified.found)
  if (settings.signal !== null) probe.detachOnAbort(settings.signal)
  for (const warning of warnings) log.warn({ spec: spec.text }, warning)
  log.info({ spec: spec.text, sites: prepared.sites.length - leftOut.size, pids: settings.pids }, 'attached')
  return probe
}

/** The counters of one file, as the table has them. */
function countersOf({ native, tracer }: AttachContext, file: FileSites, mode: CounterMode, isActive: () => boolean): FileHolder[] {
  const { facts, processes, sites } = file
  const { identity, path, counters } = facts
  if (counters.size === 0) return []
  return [
    {
      identity,
      path,
      counters,
      mode,
      tracer,
      sites,
      isActive,
      processes: () => (processes === null ? processesMapping(native, identity) : living(processes)),
    },
  ]
}

async function* living(processes: readonly TargetProcess[]): AsyncGenerator<TargetProcess> {
  for (const target of processes) if (!target.addressSpaceGone()) yield target
}

/** Throws `ERR_UPROBE_BAD_OPTION` if the filter does not suit the operands of a site. Warns of comparisons that always come out alike. */
function checkFilter(filter: Filter, sites: readonly Site[]): string[] {
  const checked = new Set<CaptureShape>()
  const places = new Set<number>()
  for (const { shape, probe } of sites) {
    if (checked.has(shape)) continue
    checked.add(shape)
    for (const at of comparedAsSigned(bindFilter(filter, shape.operands, escapeForDisplay(probe)))) places.add(at)
  }
  return [...places].map(
    (at) =>
      `Option filter: column ${at + 1}: an unsigned number is compared as if it could be negative, which comes out alike for every hit. ` +
      'Signed are X - 0, for 8 bytes as a long has, and (X << 32) - 0 >> 32, for the 4 of an int: retval - 0 < 0, (retval << 32) - 0 >> 32 == -1.',
  )
}

function applyPath(spec: ProbeSpec, path: string | null): ProbeSpec {
  if (path === null) return spec
  if (spec.path !== null && spec.path !== path) {
    throw new UprobeError(
      'ERR_UPROBE_BAD_OPTION',
      `The specification names ${escapeForDisplay(spec.path)} and option path another file. Give one of them.`,
    )
  }
  return { ...spec, path }
}

function closeAll(closables: readonly { close(): void }[]): void {
  for (const closable of closables) closable.close()
}

/** Inode of the initial pid namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h). */
const INITIAL_PID_NAMESPACE = 'pid:[4026531836]'

/**
 * The reader thread must not be traced by its own tracer: each of its hits would make it work again. BPF sees thread ids of the initial pid namespace, so elsewhere
 * the thread cannot be told apart.
 */
function readerThreadToExclude(ring: Ring, processes: readonly TargetProcess[]): number | null {
  const self = processes.length === 0 || processes.some((target) => target.pid === process.pid)
  if (!self) return null
  if (readlinkSync('/proc/self/ns/pid') === INITIAL_PID_NAMESPACE) return ring.reader.tid
  if (processes.length === 0) return null
  throw new UprobeError(
    'ERR_UPROBE_UNSUPPORTED',
    'Inside a pid namespace the own process cannot be traced. Run the agent in the host pid namespace.',
  )
}

/**
 * Decides how the sites of each file are registered.
 * @param linksForOne - whether a link is worth its while for a single site, too: it is closed several times sooner than a perf event, where that is going to happen often; and it goes on when the leader thread exits, as both
 *   probes of a latency have to, or neither
 */
async function planParts(native: Native, files: readonly FileSites[], settings: AttachSettings, linksForOne: boolean): Promise<Part[]> {
  const fewest = linksForOne ? 1 : 2
  const parts: Part[] = []
  for (const { file, facts, processes, sites } of files) {
    for (const target of processes ?? [null]) {
      parts.push({
        file,
        facts,
        target,
        sites,
        fds: [],
        tid: null,
        via: sites.length < fewest && settings.registration === 'auto' ? 'perf' : await chooseWay(native, target, settings.registration),
      })
    }
  }
  return parts
}

async function chooseWay(native: Native, target: TargetProcess | null, wish: AttachSettings['registration']): Promise<'perf' | 'multi'> {
  if (wish === 'perf') return 'perf'
  const support = await multiSupport(native)
  // The link looks for the leader's address space when it is made, which is gone when the leader thread has exited.
  const usable = target === null ? support.allProcesses : support.oneProcess && !target.leaderExited
  if (usable) return 'multi'
  if (wish === 'auto') return 'perf'
  throw new UprobeError(
    'ERR_UPROBE_UNSUPPORTED',
    `A uprobe_multi link was demanded and cannot be used here: ${support.reason ?? 'the leader thread of the process has exited'}. Leave registration at 'auto'.`,
  )
}

/** Sites that were refused make a single probe fail, and leave a pattern with what is left. */
function settle(spec: ProbeSpec, failures: readonly SiteFailure[], total: number, warnings: string[]): void {
  throwUnlessSomeAreLeft(spec, failures, total)
  for (const { error } of failures) warnings.push(`left out: ${error.message}`)
}

/**
 * The same for what was read back, only that these sites stay registered. In a probe for every process, one process in which it is not armed does not speak
 * against the others, as long as there are others.
 */
function settleVerification(spec: ProbeSpec, everyProcess: boolean, verified: ArmResult, total: number, warnings: string[]): void {
  warnings.push(...verified.warnings)
  if (verified.failures.length === 0) return
  const armedSomewhere = verified.found.some(({ anyArmed }) => anyArmed)
  if (!everyProcess || !armedSomewhere) throwUnlessSomeAreLeft(spec, verified.failures, total)
  for (const { error } of verified.failures) warnings.push(error.message)
}

function throwUnlessSomeAreLeft(spec: ProbeSpec, failures: readonly SiteFailure[], total: number): void {
  const [first] = failures
  if (first === undefined) return
  if (!spec.wildcard || new Set(failures.map(({ site }) => site)).size === total) throw first.error
}
