/**
 * Who else traces: what the kernel lists of uprobes that other processes hold.
 *
 * There are three lists, and none is complete: BPF links, whose sites the kernel tells; perf events with a BPF program, which are asked for by the process and descriptor that hold
 * them; and the events that were written into tracefs. A perf event without a program, as `perf stat` and `perf record` hold it, is in none of them.
 */
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { isSystemCallError } from '../errors.js'
import type { Native } from '../native.js'
import { readTextOrNull } from '../read-text.js'
import { type FileIdentity, sameFile } from '../target/maps.js'

/** Somebody who holds a counter or a breakpoint. */
export interface CounterOwner {
  /** The process; 0 for an event in tracefs, which belongs to none. */
  readonly pid: number
  /** Name of the process, or of the event. */
  readonly comm: string
  /**
   * - `lease`: an agent of this package that has claimed the counter;
   * - `bpf-link`: a uprobe_multi link; `perf-event`: a perf event with a BPF program;
   * - `uprobe-events`: an event in tracefs.
   */
  readonly kind: 'lease' | 'bpf-link' | 'perf-event' | 'uprobe-events'
}

/** A registration that the kernel lists. */
export interface KernelHolder extends CounterOwner {
  readonly file: FileIdentity
  readonly fileOffsets: ReadonlySet<bigint>
  /** The process that it is for; `null` for every process, or if the kernel does not say. */
  readonly target: number | null
}

const SLICE_MS = 4
/** BPF_LINK_TYPE_UPROBE_MULTI */
const LINK_UPROBE_MULTI = 12
const TRACEFS = ['/sys/kernel/tracing', '/sys/kernel/debug/tracing']

/** Everything that is listed, as far as our rights go: without CAP_SYS_PTRACE and CAP_SYS_ADMIN less is. */
export async function kernelHolders(native: Native): Promise<KernelHolder[]> {
  const holders: KernelHolder[] = uprobeEvents()
  let sliceStart = performance.now()
  for (const name of listOrNone('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const pid = Number(name)
    for (const fd of listOrNone(`/proc/${pid}/fd`)) {
      const found = holderOf(native, pid, fd)
      if (found !== null) holders.push(found)
    }
    if (performance.now() - sliceStart > SLICE_MS) {
      await nextTurn()
      sliceStart = performance.now()
    }
  }
  return holders
}

/** Those of the holders that have one of the sites in a process. */
export function holdersOf(
  holders: readonly KernelHolder[],
  file: FileIdentity,
  fileOffsets: readonly bigint[],
  pid: number,
): CounterOwner[] {
  return holders
    .filter(
      (one) => sameFile(one.file, file) && (one.target === null || one.target === pid) && fileOffsets.some((at) => one.fileOffsets.has(at)),
    )
    .map(({ pid: holder, comm, kind }) => ({ pid: holder, comm, kind }))
}

function holderOf(native: Native, pid: number, fd: string): KernelHolder | null {
  const link = linkOrNull(`/proc/${pid}/fd/${fd}`)
  if (link === 'anon_inode:[perf_event]') return perfEvent(native, pid, Number(fd))
  // The name had brackets before Linux 6.x, and has a hyphen or an underscore.
  if (link !== null && /^anon_inode:\[?bpf[-_]link\]?$/.test(link)) return bpfLink(native, pid, fd)
  return null
}

function perfEvent(native: Native, pid: number, fd: number): KernelHolder | null {
  const info = native.bpfTaskFdQuery(pid, fd)
  if (info === null || info.kind === 'other') return null
  const file = identityOf(pid, info.path)
  return file === null ? null : { pid, comm: commOf(pid), kind: 'perf-event', file, fileOffsets: new Set([info.fileOffset]), target: null }
}

function bpfLink(native: Native, pid: number, fd: string): KernelHolder | null {
  const id = /^link_id:\s*(\d+)$/m.exec(readTextOrNull(`/proc/${pid}/fdinfo/${fd}`) ?? '')?.[1]
  const info = id === undefined ? null : native.bpfLinkInfo(Number(id))
  if (info?.type !== LINK_UPROBE_MULTI || info.uprobeMulti === null) return null
  const { path, fileOffsets, pid: target } = info.uprobeMulti
  const file = identityOf(pid, path)
  return file === null
    ? null
    : { pid, comm: commOf(pid), kind: 'bpf-link', file, fileOffsets: new Set(fileOffsets), target: target === 0 ? null : target }
}

/**
 * The file that a process meant by a path. Of a perf event the kernel keeps the path as it was given, which for this package is that of a descriptor of the process
 * itself.
 */
function identityOf(pid: number, path: string): FileIdentity | null {
  const descriptor = /^\/proc\/self\/fd\/(\d+)$/.exec(path)?.[1]
  const real = path.replace(/ \(deleted\)$/, '')
  return identityOrNull(descriptor === undefined ? `/proc/${pid}/root${real}` : `/proc/${pid}/fd/${descriptor}`)
}

const EVENT = /^[pr]\d*:(\S+) (.+):0x([0-9a-f]+)(?:\(0x[0-9a-f]+\))?(?: |$)/

function uprobeEvents(): KernelHolder[] {
  const root = TRACEFS.find((path) => readTextOrNull(`${path}/uprobe_events`) !== null)
  const text = root === undefined ? null : readTextOrNull(`${root}/uprobe_events`)
  return (text ?? '').split('\n').flatMap((line) => {
    const [, event, path, offset] = EVENT.exec(line) ?? []
    if (event === undefined || path === undefined || offset === undefined) return []
    // Written down is not yet in the target.
    if (readTextOrNull(`${root}/events/${event}/enable`)?.trim() === '0') return []
    const file = identityOrNull(path)
    return file === null
      ? []
      : [{ pid: 0, comm: event, kind: 'uprobe-events' as const, file, fileOffsets: new Set([BigInt(`0x${offset}`)]), target: null }]
  })
}

function identityOrNull(path: string): FileIdentity | null {
  try {
    const stat = statSync(path, { bigint: true, throwIfNoEntry: false })
    return stat === undefined ? null : { device: stat.dev, inode: stat.ino }
  } catch (error) {
    return noneIfRefused(error, null)
  }
}

function commOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trimEnd()
  } catch (error) {
    return noneIfRefused(error, '?')
  }
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
