/**
 * Who has registered uprobes: what the kernel lists of them, whichever tool they belong to.
 *
 * There are three lists, and none is complete:
 *  - *BPF links*. Each says its kind and number in /proc/PID/fdinfo, and the kernel its file and sites: of a uprobe_multi link since Linux 6.8, of one on a perf event since 6.6;
 *  - *perf events with a BPF program*, asked for by the process and descriptor that hold them (BPF_TASK_FD_QUERY, Linux 4.18);
 *  - the events that were written into tracefs.
 *
 * A perf event without a program, as `perf stat` and `perf record` hold it, is in none of them; nor is a link that is pinned in a BPF file system and held by no process. So a
 * breakpoint without an owner here may have one all the same.
 *
 * The kernel says for which file a registration is by its path, and paths mean different things to different processes. So a path is looked up wherever it may have been meant,
 * and what counts is device and inode of what is found.
 */
import { readdirSync, readlinkSync, statSync } from 'node:fs'
import { TimeSlice } from '../elf/time-slice.js'
import { ENOSYS, EPERM } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import { processForDisplay } from '../log.js'
import type { Native } from '../native.js'
import { readTextOrNull } from '../read-text.js'
import type { TargetFile } from '../target/file.js'
import { DELETED, type FileIdentity, sameFile } from '../target/maps.js'

/** Somebody who holds a counter or a breakpoint. */
export interface CounterOwner {
  /** The process; 0 for an event in tracefs, which belongs to none. Of a lease: as its agent sees itself, in its own pid namespace. */
  readonly pid: number
  /** Name of the process, or of the event. */
  readonly comm: string
  /**
   * - `lease`: an agent of this package that has claimed the counter;
   * - `bpf-link`: a uprobe_multi link; `perf-event`: a perf event with a BPF program;
   * - `uprobe-events`: an event in tracefs that is switched on.
   */
  readonly kind: 'lease' | 'bpf-link' | 'perf-event' | 'uprobe-events'
}

/** A registration that the kernel lists. */
export interface KernelHolder extends CounterOwner {
  /** The file, as the kernel names it. */
  readonly path: string
  readonly fileOffsets: ReadonlySet<bigint>
  /** The process that it is for; `null` for every process, or if the kernel does not say. */
  readonly target: number | null
}

/** A file in a process, for whose sites holders are looked for. */
export interface HeldFile {
  readonly identity: FileIdentity
  /** As the process's memory map names it. */
  readonly path: string
  readonly deleted: boolean
  /** The process that maps it. */
  readonly pid: number
  /** Whether a registration for one process concerns this one: it is the same, or was forked from it and born with its breakpoints. */
  concerns(target: number): boolean
}

const TRACEFS = ['/sys/kernel/tracing', '/sys/kernel/debug/tracing']

/**
 * Everything that is listed. Walks through the descriptors of every process, in slices that leave the event loop free.
 * @throws {UprobeError} `ERR_UPROBE_BPF_PERMISSION` if BPF may not be asked, so that nobody could be told from nobody known
 */
export async function kernelHolders(native: Native): Promise<KernelHolder[]> {
  const holders = uprobeEvents()
  const slice = new TimeSlice()
  for (const name of listOrNone('/proc')) {
    if (!/^\d+$/.test(name)) continue
    if (slice.isOver) await slice.rest()
    for (const fd of listOrNone(`/proc/${name}/fd`)) {
      const found = holderOf(native, Number(name), fd)
      if (found !== null) holders.push(found)
      if (slice.isOver) await slice.rest()
    }
  }
  return holders
}

/** Who holds the sites of a file in a process. */
export interface SiteHolders {
  /** Each once, however many registrations it has. */
  readonly owners: readonly CounterOwner[]
  /** Those of the sites that have a holder. */
  readonly held: ReadonlySet<bigint>
}

/**
 * Finds the holders of sites.
 * @param armed - offsets in the file of the sites whose breakpoint is in; where none is, nobody holds anything in this process
 */
export function holdersOf(holders: readonly KernelHolder[], file: HeldFile, armed: readonly bigint[]): SiteHolders {
  const owners = new Map<string, CounterOwner>()
  const held = new Set<bigint>()
  for (const holder of holders) {
    const { pid, comm, kind, fileOffsets, target } = holder
    const sites = armed.filter((offset) => fileOffsets.has(offset))
    if (sites.length === 0 || !isFor(holder, file)) continue
    // What a child was born with stays in it as long as the registration for its parent does, and goes with it (`register_for_each_vma`, kernel/events/uprobes.c).
    if (target !== null && !file.concerns(target)) continue
    for (const site of sites) held.add(site)
    owners.set(`${pid} ${kind} ${comm}`, { pid, comm, kind })
  }
  return { owners: [...owners.values()], held }
}

/**
 * Finds who has registered one of the sites of a file, for whichever process: what a registration keeps others from, it does everywhere.
 * @param pid - a process in whose root the path of a registration may be meant
 */
export function registrarsOf(
  holders: readonly KernelHolder[],
  { identity, path, deleted }: TargetFile,
  pid: number,
  sites: readonly bigint[],
): readonly CounterOwner[] {
  return holdersOf(holders, { identity, path, deleted, pid, concerns: () => true }, sites).owners
}

/** The names of owners, each once and escaped, for a sentence. */
export function ownerNames(owners: readonly CounterOwner[]): string[] {
  return [...new Set(owners.map(processForDisplay))]
}

const PERF_EVENT = 'anon_inode:[perf_event]'
/** A link that was made by one call has another name than one that was opened by its number (`bpf_link_prime` and `bpf_link_new_fd`, kernel/bpf/syscall.c). */
const BPF_LINK = /^anon_inode:\[?bpf[-_]link\]?$/

/** `link_type` of links that may have uprobes; names as kernels of different ages write them (`bpf_link_show_fdinfo`, kernel/bpf/syscall.c). */
const UPROBE_LINKS: ReadonlySet<string> = new Set(['uprobe_multi', 'uretprobe_multi', 'perf', 'perf_event'])

function holderOf(native: Native, pid: number, fd: string): KernelHolder | null {
  const link = linkOrNull(`/proc/${pid}/fd/${fd}`)
  if (link === PERF_EVENT) return perfEvent(native, pid, Number(fd))
  return link !== null && BPF_LINK.test(link) ? bpfLink(native, pid, fd) : null
}

function perfEvent(native: Native, pid: number, fd: number): KernelHolder | null {
  const info = asked(() => native.bpfTaskFdQuery(pid, fd))
  if (info === null || info.kind === 'other') return null
  return { pid, comm: commOf(pid), kind: 'perf-event', path: info.path, fileOffsets: new Set([info.fileOffset]), target: null }
}

function bpfLink(native: Native, pid: number, fd: string): KernelHolder | null {
  const about = readTextOrNull(`/proc/${pid}/fdinfo/${fd}`) ?? ''
  const type = /^link_type:\s*(\S+)$/m.exec(about)?.[1]
  const id = /^link_id:\s*(\d+)$/m.exec(about)?.[1]
  // A machine has many links, on control groups above all, that are none of our business.
  if (id === undefined || type === undefined || !UPROBE_LINKS.has(type)) return null
  const info = asked(() => native.bpfLinkInfo(Number(id)))
  if (info === null) return null
  const { uprobeMulti, perfUprobe } = info
  if (perfUprobe !== null) {
    const { path, fileOffset } = perfUprobe
    return { pid, comm: commOf(pid), kind: 'perf-event', path, fileOffsets: new Set([fileOffset]), target: null }
  }
  if (uprobeMulti === null) return null
  const { path, fileOffsets, pid: target } = uprobeMulti
  return { pid, comm: commOf(pid), kind: 'bpf-link', path, fileOffsets: new Set(fileOffsets), target: target === 0 ? null : target }
}

/** What the kernel answers about BPF; without the right to ask, nothing can be said of anybody. */
function asked<T>(question: () => T): T {
  try {
    return question()
  } catch (error) {
    const errno = errnoOf(error)
    if (errno !== EPERM && errno !== ENOSYS) throw error
    throw new UprobeError(
      'ERR_UPROBE_BPF_PERMISSION',
      'The kernel may not be asked who holds breakpoints: that takes CAP_SYS_ADMIN, and a container runtime that lets bpf(2) pass. Run as root on the host.',
      { cause: error, errno, syscall: 'bpf' },
    )
  }
}

/** `p:GROUP/NAME PATH:0xOFFSET(0xCOUNTER) ARGUMENTS`, `r` for the return (`trace_uprobe_show`, kernel/trace/trace_uprobe.c). */
const EVENT = /^[pr]\d*:(\S+) (.+?):0x([0-9a-f]+)(?:\(0x[0-9a-f]+\))?(?: |$)/

/** The events of a text as tracefs gives it, with their names. */
export function parseUprobeEvents(text: string): Array<{ event: string; path: string; fileOffset: bigint }> {
  return text.split('\n').flatMap((line) => {
    const [, event, path, offset] = EVENT.exec(line) ?? []
    return event === undefined || path === undefined || offset === undefined ? [] : [{ event, path, fileOffset: BigInt(`0x${offset}`) }]
  })
}

/** Events that are switched on. One that is only written down has no breakpoint; one that `perf` uses is not switched on, and cannot be told from it. */
function uprobeEvents(): KernelHolder[] {
  for (const root of TRACEFS) {
    const text = readTextOrNull(`${root}/uprobe_events`)
    if (text === null) continue
    return parseUprobeEvents(text)
      .filter(({ event }) => readTextOrNull(`${root}/events/${event}/enable`)?.startsWith('1'))
      .map(({ event, path, fileOffset }) => ({
        pid: 0,
        comm: event,
        kind: 'uprobe-events',
        path,
        fileOffsets: new Set([fileOffset]),
        target: null,
      }))
  }
  return []
}

/** Whether a registration is for a file. */
function isFor({ pid, path }: KernelHolder, file: HeldFile): boolean {
  if (meanings(pid, path, file.pid).some((meaning) => isFile(meaning, file.identity))) return true
  // The name of a file that was deleted leads nowhere; that the process's memory map has the same one is what can be known.
  return file.deleted && path === `${file.path}${DELETED}`
}

/**
 * What a path may mean: of a perf event the kernel keeps what its maker wrote, for this package the name of a descriptor; of a link it makes a name that begins at our root, or at
 * that of the mount namespace that the file is in.
 */
function meanings(holder: number, path: string, target: number): string[] {
  const own = /^\/proc\/(?:self|thread-self)(\/.*)$/.exec(path)?.[1]
  if (own !== undefined) return [`/proc/${holder}${own}`]
  const targets = `/proc/${target}/root`
  if (holder === 0) return [path, `${targets}${path}`]
  return path.startsWith('/') ? [path, `/proc/${holder}/root${path}`, `${targets}${path}`] : [`/proc/${holder}/cwd/${path}`]
}

function isFile(path: string, identity: FileIdentity): boolean {
  try {
    const stat = statSync(path, { bigint: true, throwIfNoEntry: false })
    return stat !== undefined && sameFile({ device: stat.dev, inode: stat.ino }, identity)
  } catch (error) {
    return noneIfRefused(error, false)
  }
}

function commOf(pid: number): string {
  return readTextOrNull(`/proc/${pid}/comm`)?.replace(/\n$/, '') ?? '?'
}

function listOrNone(path: string): string[] {
  try {
    return readdirSync(path)
  } catch (error) {
    return noneIfRefused(error, [])
  }
}

function linkOrNull(path: string): string | null {
  try {
    return readlinkSync(path)
  } catch (error) {
    return noneIfRefused(error, null)
  }
}

/** What is not there any more, or may not be looked at, is not listed. */
function noneIfRefused<T>(error: unknown, none: T): T {
  if (isSystemCallError(error)) return none
  throw error
}
