/**
 * The native addon, as TypeScript sees it: one interface, and the loading of it.
 *
 * The addon does only what needs a system call, a mapped page or a thread. Each function makes one interaction with the
 * kernel and holds no policy. A failed call throws (or rejects with) an `Error` that has `syscall`, a positive `errno`
 * and the errno's name as `code`. What may wait for kernel locks or grace periods returns a promise and runs off the event loop.
 *
 * Nothing is loaded at import: `loadNative()` does it on first use, so that importing the package works everywhere.
 */
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { startOfTurn } from './elf/time-slice.js'
import { UprobeError } from './errors.js'

/** One uprobe to register with `perf_event_open(2)`. */
export interface PerfUprobe {
  /** Type number of the uprobe PMU, from sysfs (it differs between kernels). */
  type: number
  /** Path that the kernel resolves in our mount namespace; we pass `/proc/self/fd/N`. */
  path: string
  /** Offset of the instruction in the file, in bytes. */
  fileOffset: bigint
  /** Offset of the counter in the file, in bytes; 0 for none. At most 32 bits (`config[63:32]`). */
  refCtrOffset: number
  /** Register a return probe. */
  retprobe: boolean
  /** Thread id of any thread of the target, or -1 for every process that maps the file. */
  tid: number
}

/** Sites of one file, to register through one uprobe_multi link. */
export interface UprobeMulti {
  progFd: number
  path: string
  fileOffsets: BigUint64Array
  /** One counter offset a site, 0 for none; `null` when no site has a counter. */
  refCtrOffsets: BigUint64Array | null
  /** What `bpf_get_attach_cookie` returns at each site. */
  cookies: BigUint64Array
  retprobe: boolean
  /** Process id of the target, or 0 for every process that maps the file. */
  pid: number
}

/** A BPF program to load. */
export interface BpfProgram {
  /** BPF_PROG_TYPE_* */
  type: number
  /** BPF_TRACE_UPROBE_MULTI (48) for a uprobe_multi link, otherwise 0. */
  expectedAttachType: number
  /** Encoded instructions, 8 bytes each. */
  insns: Uint8Array
  license: string
  /** At most 15 bytes. */
  name: string
  /** BPF_F_SLEEPABLE: the program may wait for memory to be paged in; uprobes take such programs since Linux 6.0, with the helper to fetch memory somewhat later. Default: false. */
  sleepable?: boolean
}

/** A BPF map to create. */
export interface BpfMap {
  /** BPF_MAP_TYPE_* */
  type: number
  keyBytes: number
  valueBytes: number
  maxEntries: number
  /** At most 15 bytes. */
  name: string
  /** For a map of maps: one like those that it is to hold. */
  innerMapFd?: number
}

/** What a {@link RingReader} tells of a watched file descriptor. `readable`, `hangup` and `offline` are the last that comes of a watch. */
export type WatchEvent = {
  /** The number that `watch` returned. */
  watch: number
} & (TargetEvent | SidebandEvent)

/**
 * What a pidfd or a task watch tells. `readable`: a pidfd whose process ended, its last thread included; `hangup`: a task watch whose thread ended, or gave way to
 * another thread of its process that called exec; `exec`: a task watch whose thread called exec itself.
 */
export type TargetEvent = { event: 'readable' } | { event: 'hangup' } | { event: 'exec' }

/**
 * What a side band tells: `map`: the process `pid` mapped, executable, what may be a file that the filter names; `fork`: `pid` is a new child of a process that it
 * names, or of such a child; `lost`: there may have been more; `offline`: its CPU is, and nothing more comes. Pids are those of the own pid namespace.
 */
export type SidebandEvent = { event: 'map'; pid: number } | { event: 'fork'; pid: number } | { event: 'lost' } | { event: 'offline' }

/** What side bands are to tell of. */
export interface SidebandFilter {
  /** Inodes, whatever the device: the kernel and stat(2) do not name the same one on overlayfs and btrfs. */
  inodes: BigUint64Array
  /** Last components of paths: on overlayfs the inode is not that of stat(2) either. */
  names: readonly string[]
  /** Processes whose children are wanted. Those that were born within the last moments before this are told of, too, if a side band saw them. */
  pids: Int32Array
}

/** A ring that is mapped, for one {@link RingReader} to take. It keeps a duplicate of the map's fd. Unmapped when it is collected, if none has taken it. */
export interface MappedRing {
  readonly mapped: unique symbol
}

/** Options of a {@link RingReader}. */
export interface RingReaderOptions {
  /** Taken by the reader. */
  ring: MappedRing
  /** Shortest time between two drains of the ring while hits keep coming, in milliseconds. */
  flushIntervalMs: number
  /** How many bytes may wait for JavaScript before the reader leaves further ones in the ring (where the kernel counts losses). */
  pendingLimitBytes: number
  /**
   * Called on the JavaScript thread when a batch or a watch event waits, or a drain is through; `events` says whether there are watch events. Rings that nobody has answered yet are one. It
   * should not do long work: Node may call it many times before the event loop turns. What it throws becomes an uncaught exception.
   */
  onDoorbell: (events: boolean) => void
}

/**
 * The thread that reads the ring of one tracer, and watches its targets. It runs until `close`, or until the environment ends; a reader
 * whose callback refers to it is never collected, so it must be closed.
 */
export interface RingReader {
  /** Kernel thread id of the reading thread, as seen in the own pid namespace. */
  readonly tid: number
  /**
   * Takes what waits: records one after another, each with an 8-byte head (u32 payload bytes, u32 zero) and padded to 8
   * bytes; `undefined` if nothing waits. At most 256 KiB a call; call it until it answers `undefined`. The memory
   * of a large batch is lent by the reader, and used again when the buffer has been collected; it outlives the reader.
   */
  take(): ArrayBuffer | undefined
  /** Bytes from one record to the next in what was taken last, if all of them have one length and name one probe; else 0. */
  readonly takenDistance: number
  /** Whether something waits to be taken. */
  readonly waits: boolean
  /** Takes the watch events that wait; an empty array if there are none. */
  takeEvents(): WatchEvent[]
  /**
   * Resolves when everything that the kernel had committed to the ring at the time of the call was offered to `take` (as far as
   * `pendingLimitBytes` permits it waits for `take` to be called), and the caller has been rung for it. Keeps the event loop alive until then. Rejects if
   * the reader is closed.
   */
  drain(): Promise<void>
  /** Watches `fd` (a pidfd, or a task watch) and takes ownership of it, unless it throws; returns the watch's number, which is never used again. */
  watch(fd: number, kind: 'pidfd' | 'task'): number
  /** The same for a side band, with a ring of `pages` pages: a power of two. */
  watch(fd: number, kind: 'sideband', pages: number): number
  /** Replaces what all side bands tell of; nothing at first. */
  setSidebandFilter(filter: SidebandFilter): void
  /** Ends a watch and closes its fd. Unknown numbers are ignored. */
  unwatch(watch: number): void
  /** Keeps the event loop alive. */
  ref(): void
  /** Lets the event loop end; the initial state. */
  unref(): void
  /**
   * Joins the thread and rejects pending drains; no bell rings after the call. Another thread unmaps the ring and closes the fds, for which the event loop is kept alive: when that is done it resolves. Idempotent,
   * but only the first promise waits.
   */
  close(): Promise<void>
}

/** An address space with counters in it. The descriptors stay the caller's; both are bound to the address space, whatever the pid becomes. */
export interface CounterMemoryOptions {
  /** fd of `/proc/TID/mem`, open for reading and writing. */
  memFd: number
  /** fd of `/proc/TID/maps`. */
  mapsFd: number
  /** The address space is our own: bits are changed by an atomic instruction instead of through `memFd`. */
  own: boolean
}

/** A counter, and the mapping that must be there. */
export interface CounterAt {
  /** Address of the 16-bit counter; even. */
  readonly address: bigint
  /** Device of the mapping as `maps` prints it (`08:01`), `00:00` for memory that is no file's. */
  readonly device: string
  /** Inode as `maps` prints it; 0 for memory that is no file's. */
  readonly inode: bigint
  /** Offset in the file of `address`; ignored for memory that is no file's. */
  readonly fileOffset: bigint
}

/**
 * Stores to counters. Each call first asks the kernel whether the expected mapping is still at the address, private and writable. Errors: `ESRCH` the
 * address space is gone, `EFAULT` nothing is mapped there, `ESTALE` something else is, `EACCES` it is not writable or shared, `ERANGE` the high byte is
 * neither 0x00 nor 0x80, `EBUSY` what was read back is not what was stored.
 */
export interface CounterMemory {
  /** Sets bit 15 by a one-byte store (in the own process an atomic or) and reads back. Returns the value after. Harmless when it is set. */
  setMsb(place: CounterAt): number
  /** Clears bit 15 likewise. Returns the value after. Harmless when it is clear. */
  clearMsb(place: CounterAt): number
  /** The 16 bits, unsigned. */
  read(place: CounterAt): number
  /**
   * Stores the 16 bits `value` if they read `expected` (else `EBUSY`); for repair only: the caller has made sure that the kernel does not count meanwhile.
   * Takes any high byte.
   */
  replace(place: CounterAt, expected: number, value: number): void
}

/** What a fd of another process is, as far as BPF is behind it. */
export interface TaskFdInfo {
  /** Id of the BPF program. */
  progId: number
  kind: 'uprobe' | 'uretprobe' | 'other'
  /** The probed file as it was named at registration, and the offset in it; for uprobes. */
  path: string
  fileOffset: bigint
}

/** A BPF link as the kernel describes it. */
export interface BpfLinkInfo {
  /** BPF_LINK_TYPE_*; 12 is uprobe_multi, 7 a perf event. */
  type: number
  progId: number
  /** For a perf event that is a uprobe (Linux 6.6 and later), else `null`. */
  perfUprobe: { path: string; fileOffset: bigint; retprobe: boolean } | null
  /** For uprobe_multi (Linux 6.8 and later), else `null`. `pid` is 0 for every process. */
  uprobeMulti: { path: string; fileOffsets: BigUint64Array; refCtrOffsets: BigUint64Array; pid: number; retprobe: boolean } | null
}

/** The addon's whole surface. */
export interface Native {
  // perf_event.cc
  /**
   * Registers a uprobe, from a process of its own that a SIGKILL to us does not reach; the breakpoint and the counter are in the target when it resolves. Resolves
   * to the fd, which counts its hits at once.
   */
  perfEventOpenUprobe(options: PerfUprobe): Promise<number>
  /** `PERF_EVENT_IOC_SET_BPF`: runs the program at every hit of the event. */
  perfEventSetBpf(perfFd: number, progFd: number): Promise<void>
  /** `PERF_EVENT_IOC_ENABLE` / `PERF_EVENT_IOC_DISABLE`. */
  perfEventEnable(perfFd: number, enable: boolean): void
  /** Reads the event's own count (perf counting without BPF; for benchmarks). */
  perfEventReadCount(perfFd: number): bigint
  /**
   * Opens a software dummy event on thread `tid` whose small ring reports exec (PERF_RECORD_COMM with
   * PERF_RECORD_MISC_COMM_EXEC) and whose fd hangs up when the thread ends. For `RingReader.watch(fd, 'task')`. The first such event of a machine waits for a grace period
   * (account_event, kernel/events/core.c), some milliseconds.
   */
  taskWatchOpen(tid: number): Promise<number>
  /**
   * Opens a software dummy event that reports, of all processes, executable mappings (PERF_RECORD_MMAP2), births and ends (PERF_RECORD_FORK, PERF_RECORD_EXIT) on one
   * CPU. For `RingReader.watch(fd, 'sideband', pages)`.
   */
  sidebandOpen(cpu: number): number

  // bpf.cc
  /** BPF_MAP_CREATE; returns the fd. For small maps: the kernel allocates and clears all of a map in this call, a megabyte in a tenth of a millisecond or more. */
  bpfMapCreate(options: BpfMap): number
  /** The same for a map of any size, which another thread waits for; resolves to the fd. */
  bpfMapCreateLarge(options: BpfMap): Promise<number>
  /** BPF_MAP_LOOKUP_ELEM of `count` u32 keys from `firstKey`, values one after another into a new buffer. `valueBytes` is what the kernel copies for one key (for a per-CPU map: 8-byte aligned value times possible CPUs). */
  bpfMapRead(mapFd: number, firstKey: number, count: number, valueBytes: number): ArrayBuffer
  /** BPF_MAP_UPDATE_ELEM with a u32 key. */
  bpfMapUpdate(mapFd: number, key: number, value: Uint8Array): void
  /**
   * Reads and removes up to `count` entries of a hash map that no program adds to meanwhile: BPF_MAP_GET_NEXT_KEY, BPF_MAP_LOOKUP_ELEM and BPF_MAP_DELETE_ELEM of each.
   * Returns key and value of one after another, `valueBytes` as of {@link bpfMapRead}; an empty buffer if there is none.
   */
  bpfMapTake(mapFd: number, keyBytes: number, valueBytes: number, count: number): ArrayBuffer
  /**
   * Makes entries of zeros in the hash map `toFd` for up to `count` keys of the hash map `fromFd`, those behind the key `after` (empty: from the first on), unless they are there or there is no room.
   * Programs may add to either meanwhile. Returns the last of these keys, which is what to go on with; empty if there are no more.
   */
  bpfMapReserve(fromFd: number, toFd: number, keyBytes: number, valueBytes: number, after: Uint8Array, count: number): Uint8Array
  /**
   * BPF_MAP_UPDATE_ELEM of a map of maps. The kernel waits until every program that may not sleep and was running at the call has ended, so that none of them uses the map that was
   * there before (maybe_wait_bpf_programs, kernel/bpf/syscall.c, since Linux 5.0).
   */
  bpfMapReplaceInner(mapFd: number, key: number, innerMapFd: number): Promise<void>
  /** BPF_RAW_TRACEPOINT_OPEN; returns the fd of the link. */
  bpfRawTracepointOpen(name: string, progFd: number): number
  /** BPF_PROG_LOAD; resolves to the fd. The error has `verifierLog`, the last 8 KiB of what the verifier said, if it said something. */
  bpfProgLoad(options: BpfProgram): Promise<number>
  /** BPF_LINK_CREATE with BPF_TRACE_UPROBE_MULTI, likewise from a process of its own; resolves to the link's fd. */
  bpfLinkCreateUprobeMulti(options: UprobeMulti): Promise<number>
  /**
   * Registers a uprobe in a file that nobody maps, and takes it out again on a thread of its own. It makes the kernel wait now for what it would wait for at the next registration (lib/register/anticipate.ts). Resolves when it is registered;
   * at once, while another call of this process is at it. EINVAL where there is no uprobe_multi link.
   */
  bpfAnticipateUprobes(): Promise<void>
  /** The counts of a program as BPF_OBJ_GET_INFO_BY_FD gives them. */
  bpfProgInfo(progFd: number): { id: number; recursionMisses: bigint }
  /** setrlimit(2): lifts RLIMIT_MEMLOCK of this process. Before Linux 5.11 maps and programs count against it, and creating one fails with EPERM. */
  raiseMemlockLimit(): void

  // mapped_ring.cc
  /**
   * Maps the ring of a BPF_MAP_TYPE_RINGBUF map with mmap(2), whose data area has `ringBytes` bytes: a power of two and a multiple of the page size. A map of another kind or size is refused with EINVAL. Off the
   * event loop, since the kernel puts in every page: 10 ms for 256 MiB.
   */
  mapRing(mapFd: number, ringBytes: number): Promise<MappedRing>

  // ring_reader.cc
  RingReader: new (
    options: RingReaderOptions,
  ) => RingReader

  // closer.cc
  /**
   * Closes fds on the closing thread (not on libuv's), after those of earlier calls, and lets go of what they were the last reference to in a process of its
   * own, where SIGKILL cannot interrupt it; resolves when all that is done, and keeps the event loop alive until then. If a close fails, the others are closed all the
   * same, and the promise rejects with the first failure; what fails in letting go is not known. Only with `syscall` `pthread_create` or `eventfd`, when the thread
   * could not be started, nothing was closed.
   */
  closeFds(fds: readonly number[]): Promise<void>

  // counter_memory.cc
  CounterMemory: new (
    options: CounterMemoryOptions,
  ) => CounterMemory

  // lock.cc
  /** flock(2) without waiting; false if somebody else holds it. The lock belongs to the open file description and dies with it. */
  lockFile(fd: number, mode: 'exclusive' | 'shared' | 'none'): boolean
  /** F_OFD_SETLK of the one byte at `offset`, without waiting; false if somebody else holds it. Belongs to the open file description. */
  lockByte(fd: number, offset: bigint, mode: 'exclusive' | 'shared' | 'none'): boolean
  /** openat2(2) of a directory with RESOLVE_NO_SYMLINKS (ELOOP if there is one), close-on-exec. */
  openDirectory(path: string): number
  /** kcmp(KCMP_VM): whether two processes share one address space. */
  sameAddressSpace(pid: number, otherPid: number): boolean

  // bpf_query.cc
  /** BPF_TASK_FD_QUERY; `null` if no BPF program is behind the fd. */
  bpfTaskFdQuery(pid: number, fd: number): TaskFdInfo | null
  /**
   * BPF_LINK_GET_FD_BY_ID and BPF_OBJ_GET_INFO_BY_FD; `null` if there is no such link (any more). The link is open for the moment, and is closed on the closing
   * thread: if its owner closes it at the same time, we are the last.
   */
  bpfLinkInfo(linkId: number): BpfLinkInfo | null

  // process.cc
  /** pidfd_open(2), close-on-exec. */
  pidfdOpen(pid: number): number
  /** openat2(2) with RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS below the directory `root`, read-only, close-on-exec, non-blocking; returns the fd. */
  openInRoot(root: string, path: string): number
  /** open(2), read-only, close-on-exec, non-blocking (so that a FIFO does not hang us); returns the fd. */
  openFile(path: string): number
  /** preadv2(2) with RWF_NOWAIT: reads from `position` on what is in the page cache, and does not wait for a disk. Returns how many bytes; 0 if none could be had in that way, for whatever reason. */
  readCached(fd: number, bytes: Uint8Array, position: bigint): number
  /** Reads a whole file as UTF-8, off the event loop in one turn: open(2) as {@link openFile}, read(2) to its end, close(2). For files of /proc, which give a page at a time. EFBIG beyond 64 MiB. */
  readText(path: string): Promise<string>
  /** close(2) of an fd that is quick to close. */
  closeFd(fd: number): void
  /** errno of `syscall(336)` (uprobe): ENXIO on kernels whose nop5 optimization is dangerous, EPROTO on repaired ones, ENOSYS before. x86-64 only; 0 elsewhere. */
  uprobeSyscallErrno(): number
  /** Number of possible CPUs, as the kernel sizes per-CPU map values. */
  possibleCpus(): number

  // demo.cc
  /** Fires `usdt:uprobe:demo` once in this process; returns whether its semaphore was up. */
  fireDemo(index: number, big: bigint, text: string): boolean
  /** Reads the demo probe's semaphore in this process. */
  demoSemaphore(): number
  /** Fires `usdt:uprobe:step` once in this process. */
  fireStep(): void
  /** Fires `usdt:uprobe:selftest` `count` times on a new thread, and joins it. */
  fireSelfTest(count: number): void
}

/** The directory of the package: where `package.json` is, also when run from `dist` or straight from `lib`. */
export function packageRoot(): string {
  let directory = __dirname
  while (!existsSync(join(directory, 'package.json'))) {
    const parent = dirname(directory)
    if (parent === directory) return __dirname
    directory = parent
  }
  return directory
}

let loaded: Native | undefined

/** Path of the addon that {@link loadNative} loads: a local build, or the prebuild for this system. */
export function addonPath(): string {
  const finder = require('node-gyp-build') as { path(directory: string): string }
  return finder.path(packageRoot())
}

/**
 * Loads the addon, once.
 * @throws {UprobeError} `ERR_UPROBE_UNSUPPORTED` on a system that this package has no implementation for;
 *   `ERR_UPROBE_NATIVE` if there is no build for it, or it does not load.
 */
export function loadNative(): Native {
  if (loaded !== undefined) return loaded
  if (process.platform !== 'linux' || (process.arch !== 'x64' && process.arch !== 'arm64')) {
    throw new UprobeError(
      'ERR_UPROBE_UNSUPPORTED',
      `uprobe works on Linux on x64 and arm64; this is ${process.platform} on ${process.arch}. Run the agent there, or leave tracing off here.`,
    )
  }
  startOfTurn()
  try {
    const load = require('node-gyp-build') as (directory: string) => Native
    loaded = load(packageRoot())
    return loaded
  } catch (cause) {
    throw new UprobeError(
      'ERR_UPROBE_NATIVE',
      `The native addon for ${process.platform}-${process.arch} could not be loaded: ${cause instanceof Error ? cause.message.split('\n')[0] : String(cause)}. ` +
        'Install the package again with its prebuilds, or run `npm run build` in a source checkout.',
      { cause },
    )
  }
}
