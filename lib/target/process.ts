/**
 * One process that is traced: found once, held by an open file of /proc, and never mistaken for another one.
 *
 * A pid is a number that the kernel hands out again. A pidfd stands for the process itself, and as long as the process is
 * not reaped its number cannot be reused; `/proc/self/fdinfo/PIDFD` says which. So it is found, and an open `/proc/PID/task/PID/stat`, which is bound to the process as well, is asked from then on: that takes one system call, and
 * no descriptor that may be missing. Memory is read through an open `/proc/PID/mem`,
 * which is bound to the address space: after exec or exit it reads nothing, so that no other program's memory is ever taken for the target's
 * (`mem_open`, fs/proc/base.c).
 *
 * The leader thread of a process may exit while others go on. `/proc/PID` then has no maps and no memory, and uprobe filters by pid find no address
 * space; a living thread's id stands in for it.
 */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { EINVAL, ENOENT, ENOSYS, EPERM } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import { readTextOrNull } from '../read-text.js'
import { rightsForTracing } from '../rights.js'
import { limitError } from '../shortage.js'
import { type Mapping, parseMaps } from './maps.js'

/** What /proc/PID/stat says that identifies a process. */
export interface ProcessStat {
  /** One letter, as `R`, `S`, `Z` (zombie). */
  readonly state: string
  /** The process that made it, or that has taken it over since; 0 if that is not of our pid namespace. */
  readonly parent: number
  /** Whether the thread has begun to exit. It becomes a zombie a moment later, after its memory and its perf events are gone (`do_exit`, kernel/exit.c). */
  readonly exiting: boolean
  /** Whether it is a thread of the kernel, which has no memory of its own and maps nothing. */
  readonly kernel: boolean
  /** Start time in clock ticks since boot (field 22). */
  readonly startTime: bigint
  /** Address of the program's code (field 26): 0 from the moment in which exec gives the process a new memory until the program is mapped there (`load_elf_binary`, fs/binfmt_elf.c). */
  readonly startCode: bigint
}

/** A program on a file system that hangs is not waited for longer. */
const MAX_EXEC_MS = 1000

/** Flags of include/linux/sched.h. */
const PF_EXITING = 0x4
const PF_KTHREAD = 0x20_0000

/** The fields of /proc/PID/stat from the third, the state, on. The command name before may hold anything, so they are counted from its last parenthesis. */
export function statFields(text: string): string[] {
  return text.slice(text.lastIndexOf(')') + 2).split(' ')
}

/** Parses /proc/PID/stat. */
export function parseStat(text: string): ProcessStat {
  const fields = statFields(text)
  const flags = Number(fields[6] ?? '0')
  return {
    state: fields[0] ?? '?',
    parent: Number(fields[1] ?? '0'),
    exiting: (flags & PF_EXITING) !== 0,
    kernel: (flags & PF_KTHREAD) !== 0,
    startTime: BigInt(fields[19] ?? '0'),
    startCode: BigInt(fields[23] ?? '0'),
  }
}

function readStat(procDirectory: string): ProcessStat | null {
  try {
    return parseStat(readFileSync(`${procDirectory}/stat`, 'utf8'))
  } catch (error) {
    return ifGone(error, procDirectory, null)
  }
}

/** More than some fifty numbers and a name take. */
const statBuffer = Buffer.alloc(4096)

/** The same of an open stat; `null` once the process is reaped, also when its number is another's (ESRCH, `proc_single_show`, fs/proc/base.c). */
function readOpenStat(fd: number): ProcessStat | null {
  try {
    return parseStat(statBuffer.toString('latin1', 0, readSync(fd, statBuffer, 0, statBuffer.length, 0)))
  } catch (error) {
    return ifGone(error, 'The state of a process', null)
  }
}

/** What stands for a thing of /proc that cannot be read, since its process is gone or hidden. Throws what has another reason. */
function ifGone<T>(error: unknown, what: string, value: T): T {
  const limit = limitError(error, `${what} cannot be read`)
  if (limit !== null || !isSystemCallError(error)) throw limit ?? error
  return value
}

/** The parent of a process; `null` if the process is gone. */
export function parentOf(pid: number): number | null {
  return readStat(`/proc/${pid}`)?.parent ?? null
}

/** Whether a pid is that of a thread of the kernel. */
export function isKernelThread(pid: number): boolean {
  return readStat(`/proc/${pid}`)?.kernel === true
}

function isDead(stat: ProcessStat | null): boolean {
  return stat === null || stat.exiting || stat.state === 'Z' || stat.state === 'X'
}

/** A process that is a target. Made by {@link TargetProcess.open}; `close` it when the last probe leaves. */
export class TargetProcess {
  #memFd: number | null
  #statFd: number | null
  #pidfd: number | null

  private constructor(
    readonly native: Native,
    readonly pid: number,
    readonly startTime: bigint,
    /** Whether it is a thread of the kernel, which runs no program. */
    readonly isKernelThread: boolean,
    /** A living thread: `pid` itself, or another when the leader has exited. */
    public tid: number,
    statFd: number,
    memFd: number | null,
    pidfd: number,
  ) {
    this.#statFd = statFd
    this.#memFd = memFd
    this.#pidfd = pidfd
  }

  /**
   * Finds the process `pid` in the own pid namespace.
   * @throws {UprobeError} `ERR_UPROBE_TARGET_GONE` when there is no such process or it has exited; `ERR_UPROBE_LIMIT`; `ERR_UPROBE_UNSUPPORTED` where
   *   there are no pidfds, or /proc is that of another pid namespace.
   */
  static open(native: Native, pid: number): TargetProcess {
    const pidfd = openPidfd(native, pid, 'does not exist')
    const opened: number[] = []
    const keep = (fd: number | null): number | null => {
      if (fd !== null) opened.push(fd)
      return fd
    }
    try {
      // That of the leader alone: /proc/PID/stat adds up what all threads have used.
      const statFd = keep(openOfProcess(`/proc/${pid}/task/${pid}/stat`))
      const stat = statFd === null ? null : readOpenStat(statFd)
      if (statFd === null || stat === null) throw gone(pid, 'is not visible in /proc')
      // The number is still that of the pidfd's process, so what was opened by it is its own.
      checkNumber(pidfd, pid)
      const tid = livingThread(pid, statFd)
      if (tid === null) throw gone(pid, 'has exited')
      const memFd = keep(openOfProcess(`/proc/${pid}/task/${tid}/mem`))
      if (readOpenStat(statFd) === null) throw gone(pid, 'has exited')
      // The pidfd is not asked again, but kept: its dentry and inode are freed behind a grace period of RCU, so closing it begins one, and a registration that finds one begun waits for the next (seen on Linux 6.18, in quiet: 14 ms, and 7).
      return new TargetProcess(native, pid, stat.startTime, stat.kernel, tid, statFd, memFd, pidfd)
    } catch (error) {
      for (const fd of opened) closeSync(fd)
      native.closeFd(pidfd)
      throw error
    }
  }

  /** As {@link TargetProcess.open}; a thread of the kernel is refused as well, with `ERR_UPROBE_TARGET_GONE`. */
  static openProgram(native: Native, pid: number): TargetProcess {
    const target = TargetProcess.open(native, pid)
    if (!target.isKernelThread) return target
    target.close()
    throw gone(pid, 'is a thread of the kernel, which runs no program')
  }

  /** Directory in /proc that shows the address space: that of a living thread. */
  get procDirectory(): string {
    return `/proc/${this.tid}`
  }

  /** Directory of the same thread that cannot be that of another process as long as this one is not reaped: the number of a thread that has exited may be another's at once, and is not looked up by itself here (`proc_task_lookup`, fs/proc/base.c). It has no `map_files`. */
  get threadDirectory(): string {
    return `/proc/${this.pid}/task/${this.tid}`
  }

  /** Whether the leader thread has exited while other threads live. */
  get leaderExited(): boolean {
    return this.tid !== this.pid
  }

  /** Whether memory can be read, so that sites can be verified. */
  get readable(): boolean {
    return this.#memFd !== null
  }

  /** Whether the process still runs, and `pid` is still its number. */
  isAlive(): boolean {
    return this.#statFd !== null && livingThread(this.pid, this.#statFd) !== null
  }

  /** Whether the address space that was opened is gone: the process has exited, or has called exec. */
  addressSpaceGone(): boolean {
    if (this.#memFd === null) return !this.isAlive()
    try {
      // `mem_rw` (fs/proc/base.c) reads 0 bytes of an address space that is gone, and fails with EIO at an address of a living one where nothing is mapped.
      return readSync(this.#memFd, Buffer.alloc(1), 0, 1, 0) === 0
    } catch (error) {
      if (isSystemCallError(error)) return false
      throw error
    }
  }

  /**
   * Waits while the kernel is about to map the program of an exec, which takes it some hundred microseconds, at most a second.
   *
   * It maps the whole length of the file first and then takes most of it away again. A uprobe that is there in between gets its breakpoint, and its counter, which is not mapped yet, is
   * noted down to be raised later (`delayed_uprobe_add`, kernel/events/uprobes.c). If the uprobe is unregistered while its place is not mapped, the note stays, and a count of 1 with it that
   * nobody takes back. Seen on Linux 6.18, once in fifty when the registration was closed at the very exec.
   *
   * Nor can it be told before what the process has: its data is mapped after its code, and its auxiliary vector is written last (`create_elf_tables`, fs/binfmt_elf.c).
   */
  async programMapped(): Promise<void> {
    for (let waited = 0; waited < MAX_EXEC_MS; waited++) {
      if (this.#programIsMapped()) return
      await delay(1)
    }
  }

  #programIsMapped(): boolean {
    const stat = this.#statFd === null ? null : readOpenStat(this.#statFd)
    return stat === null || stat.startCode !== 0n || isDead(stat)
  }

  /**
   * Chooses another living thread when the one used so far is gone.
   * @returns whether the process has any left.
   */
  refreshThread(): boolean {
    const tid = this.#statFd === null ? null : livingThread(this.pid, this.#statFd)
    if (tid !== null) this.tid = tid
    return tid !== null
  }

  /** The mappings of files, or all. An empty list when the process is gone. */
  async maps(all = false): Promise<Mapping[]> {
    try {
      return parseMaps(await this.native.readText(`${this.procDirectory}/maps`), all)
    } catch (error) {
      const limit = limitError(error, `The memory map of process ${this.pid} cannot be read`)
      if (limit !== null) throw limit
      if (isSystemCallError(error) && error.code === 'EFBIG') {
        throw new UprobeError(
          'ERR_UPROBE_LIMIT',
          `The memory map of process ${this.pid} is longer than 64 MiB, and is not read. Look at /proc/${this.pid}/maps: it has very many mappings of files with very long names.`,
          { cause: error, pid: this.pid },
        )
      }
      if (isSystemCallError(error) && error.code !== 'EACCES' && error.code !== 'EPERM') return []
      throw new UprobeError('ERR_UPROBE_TARGET_DENIED', `The memory map of process ${this.pid} cannot be read. ${rightsForTracing()}`, {
        cause: error,
        pid: this.pid,
      })
    }
  }

  /** Reads target memory; `null` when it is not mapped, not permitted, or the address space is gone. */
  readMemory(address: bigint, bytes: number): Buffer | null {
    if (this.#memFd === null) return null
    const buffer = Buffer.alloc(bytes)
    try {
      return readSync(this.#memFd, buffer, 0, bytes, address) === bytes ? buffer : null
    } catch (error) {
      if (isSystemCallError(error)) return null
      throw error
    }
  }

  /** The `Seccomp:` mode of /proc/PID/status: 0 none, 1 strict, 2 filter. */
  seccompMode(): number {
    return Number(/^Seccomp:\s*(\d+)/m.exec(readTextOrNull(`${this.procDirectory}/status`) ?? '')?.[1] ?? 0)
  }

  /**
   * A pidfd, for the caller to keep. That the process is not reaped afterwards proves that it is its own.
   * @throws {UprobeError} as {@link TargetProcess.open}
   */
  openPidfd(): number {
    const pidfd = openPidfd(this.native, this.pid, 'has exited')
    if (this.isAlive()) return pidfd
    this.native.closeFd(pidfd)
    throw this.goneError()
  }

  /** The error that says that this process is gone, or has become another program. */
  goneError(cause?: unknown): UprobeError {
    return gone(this.pid, this.isAlive() ? 'has called exec' : 'has exited', cause)
  }

  /** Closes what is held. Idempotent. */
  close(): void {
    if (this.#statFd !== null) closeSync(this.#statFd)
    if (this.#memFd !== null) closeSync(this.#memFd)
    if (this.#pidfd !== null) this.native.closeFd(this.#pidfd)
    this.#statFd = null
    this.#memFd = null
    this.#pidfd = null
  }
}

/** The leader if it lives, else the first living thread; `null` when the process has none, or is reaped, so that what /proc shows under its number may be another's. */
function livingThread(pid: number, statFd: number): number | null {
  const leader = readOpenStat(statFd)
  if (leader === null) return null
  if (!isDead(leader)) return pid
  for (const name of safeList(`/proc/${pid}/task`)) {
    if (!isDead(readStat(`/proc/${pid}/task/${name}`))) return readOpenStat(statFd) === null ? null : Number(name)
  }
  // Another thread that calls exec takes the number of the leader (`de_thread`, fs/exec.c), and may have done so in between.
  return isDead(readOpenStat(statFd)) ? null : pid
}

function openPidfd(native: Native, pid: number, absent: string): number {
  try {
    return native.pidfdOpen(pid)
  } catch (cause) {
    const limit = limitError(cause, `Process ${pid} cannot be held`)
    if (limit !== null) throw limit
    switch (errnoOf(cause)) {
      case ENOSYS:
      case EPERM:
        throw new UprobeError(
          'ERR_UPROBE_UNSUPPORTED',
          'This kernel has no pidfd_open, or a seccomp filter forbids it. It takes Linux 5.3 or later, and a container runtime that lets the call pass.',
          { cause, errno: errnoOf(cause), syscall: 'pidfd_open' },
        )
      // The id of a thread: EINVAL, from Linux 6.9 on ENOENT (pidfd_prepare, kernel/fork.c).
      case EINVAL:
      case ENOENT:
        throw gone(pid, 'is not a process, but perhaps a thread of one', cause)
      default:
        throw gone(pid, absent, cause)
    }
  }
}

/**
 * Demands that a process has its number still, and that /proc means the same one by it: /proc shows the numbers of the pid namespace that it was mounted for (`pidfd_show_fdinfo`, kernel/fork.c).
 * @throws {UprobeError} `ERR_UPROBE_TARGET_GONE`, `ERR_UPROBE_UNSUPPORTED`, `ERR_UPROBE_LIMIT`
 */
function checkNumber(pidfd: number, pid: number): void {
  let info: string
  try {
    info = readFileSync(`/proc/self/fdinfo/${pidfd}`, 'utf8')
  } catch (error) {
    throw limitError(error, `Process ${pid} cannot be held`) ?? error
  }
  const number = Number(/^Pid:\s*(-?\d+)/m.exec(info)?.[1] ?? 0)
  if (number === pid) return
  if (number <= 0) throw gone(pid, 'has exited')
  throw new UprobeError(
    'ERR_UPROBE_UNSUPPORTED',
    `/proc is that of another pid namespace, where process ${pid} has the number ${number}. Mount /proc for the own one, or run the agent in the host pid namespace.`,
    { pid },
  )
}

/** Opens a file of /proc/PID; `null` if the process is gone, or hides it. */
function openOfProcess(path: string): number | null {
  try {
    return openSync(path, 'r')
  } catch (error) {
    return ifGone(error, path, null)
  }
}

function safeList(path: string): string[] {
  try {
    return readdirSync(path)
  } catch (error) {
    return ifGone(error, path, [])
  }
}

function gone(pid: number, how: string, cause?: unknown): UprobeError {
  return new UprobeError('ERR_UPROBE_TARGET_GONE', `Process ${pid} ${how}. Look up the pid again, and attach to what runs now.`, {
    pid,
    cause,
  })
}
