/**
 * Which addresses of which process are what, and were when a hit happened.
 *
 * A process is read when its first stack comes, and again when an address is not covered or when it turns out to have called exec. Each reading is a snapshot: the executable mappings, with the files behind them
 * held open, and an identity by which another program in the same process, and another process of the same number, is told apart. A hit is explained only by a snapshot that it must
 * have happened in:
 *
 * - the process had begun by then (a number that was handed out again begins later);
 * - the address of the site lies where the snapshot maps the site's place in its file;
 * - the process had not left the program by then, and ran it already, as far as that was looked at.
 *
 * If several programs of one process are left, an address is what all of them say that it is, or unknown.
 *
 * What has been unmapped and replaced at the same address between hit and reading is not noticed.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { machineTicks, NS_PER_TICK, ticksSinceBoot } from '../counter/boot-clock.js'
import { saysAbsent } from '../shortage.js'
import { type Mapping, readMaps } from '../target/maps.js'
import { Mounts } from '../target/mounts.js'
import { statFields } from '../target/process.js'
import type { StackFrame } from './frame.js'
import type { SymbolizeRequest } from './messages.js'
import { type Module, Modules } from './modules.js'
import { PerfMap } from './perf-map.js'

/** How many processes are remembered, and how many programs of each. */
const MAX_PROCESSES = 1024
const MAX_PROGRAMS = 4

/** An executable mapping, and the file behind it. */
interface Code {
  readonly mapping: Mapping
  module: Module | null
}

interface Snapshot {
  /** Equal as long as the process runs one program. */
  readonly identity: string
  /** When the process began, CLOCK_MONOTONIC. */
  readonly beganNs: bigint
  /** When the program was known to run for the first time, and for the last. */
  readonly firstNs: bigint
  lastNs: bigint
  /** By address. */
  code: readonly Code[]
  readonly perfMap: PerfMap
}

/** A reading: all of a snapshot but the map of JIT code, which stays open over many readings. */
type Reading = Omit<Snapshot, 'perfMap'> & { readonly procDirectory: string }

/** What /proc/PID/stat says that only another program has otherwise: start time, and where code and stack begin, which are random. */
interface Identity {
  readonly text: string
  readonly startTicks: bigint
}

/** All processes that were seen. */
export class AddressSpaces {
  readonly #modules: Modules
  /** By pid; the newest program is the last. The process that was asked for last is the last. */
  readonly #processes = new Map<number, Snapshot[]>()

  /** @param mostFiles - how many files are held open */
  constructor(mostFiles?: number) {
    this.#modules = new Modules(mostFiles)
  }

  /** Reads a process, unless it is known as it is now. */
  async see(pid: number): Promise<void> {
    const snapshots = this.#processes.get(pid) ?? []
    const known = snapshots.at(-1)
    const nowNs = process.hrtime.bigint()
    if (known !== undefined && readIdentity(pid)?.text === known.identity) {
      known.lastNs = nowNs
      this.#remember(pid, snapshots)
      return
    }
    const reading = await this.#read(pid)
    if (reading === null) return
    const { procDirectory, ...snapshot } = reading
    const all = [...snapshots, { ...snapshot, perfMap: PerfMap.of(procDirectory, () => readIdentity(pid)?.text === snapshot.identity) }]
    for (const { perfMap } of all.splice(0, all.length - MAX_PROGRAMS)) perfMap.close()
    this.#remember(pid, all)
  }

  /** Explains stacks. */
  async symbolize(requests: readonly SymbolizeRequest[]): Promise<StackFrame[][]> {
    for (const pid of new Set(requests.map((request) => request.pid))) if (pid !== null) await this.see(pid)
    const refreshed = new Set<Snapshot>()
    const frames: StackFrame[][] = []
    for (const request of requests) frames.push(await this.#explain(request, refreshed))
    return frames
  }

  async #explain(request: SymbolizeRequest, refreshed: Set<Snapshot>): Promise<StackFrame[]> {
    const { pid, addresses, site } = request
    let fitting = this.#fitting(request)
    const newest = pid === null ? undefined : this.#processes.get(pid)?.at(-1)
    const lacking = (snapshot: Snapshot): boolean => addresses.some((address, index) => codeAt(snapshot, address, index) === null)
    const stale = (snapshot: Snapshot): boolean =>
      !refreshed.has(snapshot) && (fitting.length === 0 || (fitting.includes(snapshot) && lacking(snapshot)))
    if (pid !== null && newest !== undefined && stale(newest)) {
      // Something was mapped since.
      refreshed.add(newest)
      const again = await this.#read(pid)
      if (again !== null && again.identity === newest.identity) newest.code = again.code
      fitting = this.#fitting(request)
    }
    const frames: StackFrame[] = []
    for (const [index, address] of addresses.entries()) {
      if (pid !== null) for (const snapshot of fitting) await this.#reopen(pid, snapshot, codeAt(snapshot, address, index))
      const frame = await explainByAll(fitting, address, index)
      frames.push(frame ?? { ...UNKNOWN, address, ...(index === 0 && site !== null && { module: site.path, fileOffset: site.fileOffset }) })
    }
    return frames
  }

  /** The snapshots that the hit may have happened in. */
  #fitting({ pid, timeNs, addresses, site }: SymbolizeRequest): Snapshot[] {
    if (pid === null) return []
    const snapshots = this.#processes.get(pid) ?? []
    return snapshots.filter((snapshot, index) => {
      const [before, after] = [snapshots[index - 1], snapshots[index + 1]]
      if (
        snapshot.beganNs > timeNs ||
        (before !== undefined && timeNs <= before.lastNs) ||
        (after !== undefined && timeNs >= after.firstNs)
      )
        return false
      const first = addresses[0]
      if (site === null || first === undefined) return true
      const code = codeAt(snapshot, first, 0)
      return code !== null && first - code.mapping.start + code.mapping.fileOffset === site.fileOffset
    })
  }

  /** Opens a file anew that had to make room for others, as long as the process maps it. */
  async #reopen(pid: number, snapshot: Snapshot, code: Code | null): Promise<void> {
    if (code === null || code.module?.closed !== true || readIdentity(pid)?.text !== snapshot.identity) return
    const { fileKey, start } = code.mapping
    await whileThere(async () => {
      const directory = directoryOf(pid)
      const mapping = (await readMaps(directory)).find((now) => now.fileKey === fileKey && now.start === start)
      if (mapping === undefined || readIdentity(pid)?.text !== snapshot.identity) return
      code.module = (await this.#modules.open(directory, mapping, Mounts.of(directory))) ?? code.module
    })
  }

  #read(pid: number): Promise<Reading | null> {
    return whileThere(async () => {
      const before = readIdentity(pid)
      if (before === null) return null
      const firstNs = process.hrtime.bigint()
      const directory = directoryOf(pid)
      const mappings = (await readMaps(directory, true)).filter(({ executable }) => executable)
      const mounts = Mounts.of(directory)
      const code: Code[] = []
      for (const mapping of mappings) {
        const answers = mapping.path.startsWith('/') && !mounts.mayHangFile(mapping)
        code.push({ mapping, module: answers ? await this.#modules.open(directory, mapping, mounts) : null })
      }
      // It called exec, or is another process, since we began.
      if (readIdentity(pid)?.text !== before.text || mappings.length === 0) return null
      code.sort((a, b) => (a.mapping.start < b.mapping.start ? -1 : 1))
      return { identity: before.text, beganNs: beganNs(before.startTicks), firstNs, lastNs: firstNs, code, procDirectory: directory }
    })
  }

  #remember(pid: number, snapshots: Snapshot[]): void {
    this.#processes.delete(pid)
    this.#processes.set(pid, snapshots)
    if (this.#processes.size <= MAX_PROCESSES) return
    for (const [oldest, forgotten] of this.#processes) {
      for (const { perfMap } of forgotten) perfMap.close()
      this.#processes.delete(oldest)
      return
    }
  }
}

const UNKNOWN = { symbol: null, offset: null, module: null, fileOffset: null, buildId: null } as const

/** Where the instruction is that an address of a stack stands for: a return address is the one behind the call, which may be the last instruction of its function. */
function instruction(address: bigint, index: number): bigint {
  return index === 0 ? address : address - 1n
}

function codeAt({ code }: Snapshot, address: bigint, index: number): Code | null {
  const wanted = instruction(address, index)
  let low = 0
  let high = code.length
  while (low < high) {
    const middle = (low + high) >>> 1
    const start = code[middle]?.mapping.start
    if (start !== undefined && start <= wanted) low = middle + 1
    else high = middle
  }
  const found = code[low - 1]
  return found !== undefined && wanted < found.mapping.end ? found : null
}

/** What all snapshots say that an address is; `null` if they do not know, or disagree. */
async function explainByAll(snapshots: readonly Snapshot[], address: bigint, index: number): Promise<StackFrame | null> {
  let agreed: StackFrame | null = null
  for (const snapshot of snapshots) {
    const frame = await explainAddress(snapshot, address, index)
    if (frame === null) return null
    if (agreed === null) agreed = frame
    // Code that is in no file may be anything in another program.
    else if (
      frame.fileOffset === null ||
      (['symbol', 'module', 'fileOffset', 'buildId'] as const).some((what) => frame[what] !== agreed?.[what])
    )
      return null
  }
  return agreed
}

async function explainAddress(snapshot: Snapshot, address: bigint, index: number): Promise<StackFrame | null> {
  const found = codeAt(snapshot, address, index)
  if (found === null) return null
  const { mapping, module } = found
  const isFile = mapping.path.startsWith('/')
  const toFile = (place: bigint): bigint => place - mapping.start + mapping.fileOffset
  const place = { ...UNKNOWN, address, module: mapping.path === '' ? null : mapping.path, fileOffset: isFile ? toFile(address) : null }
  const elf = module?.elf ?? null
  if (module !== null && elf !== null) {
    const file = { ...place, buildId: module.buildId }
    if (module.closed) return file
    const wanted = elf.vaddrOf(toFile(instruction(address, index)))
    const exact = elf.vaddrOf(toFile(address))
    const symbols = await module.symbols()
    // What is returned to may also be the first instruction of a function that nobody called: that behind a signal handler. The padding before it is no function's.
    const symbol =
      (wanted === null ? null : await symbols.find(wanted)) ?? (exact === null || exact === wanted ? null : await symbols.find(exact))
    const known = symbol === null || exact === null ? null : { symbol: symbol.name, offset: exact - symbol.start }
    return { ...file, ...known }
  }
  const compiled = snapshot.perfMap.find(instruction(address, index))
  return compiled === null ? place : { ...place, symbol: compiled.name, offset: address - compiled.start }
}

/** What is read of a process; `null` if it exited, or may not be looked at: its addresses stay unexplained. */
async function whileThere<T>(read: () => Promise<T>): Promise<T | null> {
  try {
    return await read()
  } catch (error) {
    if (saysAbsent(error)) return null
    throw error
  }
}

/** /proc/PID, or that of another thread if the leader has exited, which has no memory then. */
function directoryOf(pid: number): string {
  const directories = [`/proc/${pid}`, ...safeThreads(pid).map((tid) => `/proc/${tid}`)]
  return directories.find((directory) => readFileSync(`${directory}/maps`).length > 0) ?? `/proc/${pid}`
}

function safeThreads(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).filter((tid) => tid !== String(pid))
}

function readIdentity(pid: number): Identity | null {
  let text: string
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'utf8')
  } catch (error) {
    if (saysAbsent(error)) return null
    throw error
  }
  // 22 start time, 26 to 28 where code begins and ends and where the stack begins (proc_pid_stat(5)).
  const fields = statFields(text)
  const [startTicks = '0', startCode = '0', endCode = '0', startStack = '0'] = [fields[19], fields[23], fields[24], fields[25]]
  return { text: [startTicks, startCode, endCode, startStack].join(':'), startTicks: BigInt(startTicks) }
}

/** When a process began, by the clock of hits; early rather than late, since ticks are rounded down. */
function beganNs(startTicks: bigint): bigint {
  return process.hrtime.bigint() - (ticksSinceBoot() - machineTicks(startTicks) + 2n) * NS_PER_TICK
}
