/**
 * A claim in one process: the counters of one file in one address space, switched on and off by their most significant bit.
 *
 * Whoever has a claim is *present* at the counter, by a lock that dies with its holder (counter-locks.ts). The bit is set by the first who comes and cleared by the last who
 * leaves, and each of the two decides and stores within a step that nobody else can be in; so two agents cannot both believe that they are not the last.
 *
 * Setting what is set and clearing what is clear is harmless, so no step needs to know whether it was done before.
 *
 * What has to be one step is one counter's deciding and storing. A small claim is switched on at one stroke all the same; a large one is not (step-groups.ts).
 */
import { closeSync, openSync } from 'node:fs'
import { TimeSlice } from '../elf/time-slice.js'
import { EBUSY, ERANGE, ESRCH } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { CounterMemory, Native } from '../native.js'
import { limitError } from '../shortage.js'
import { type FileIdentity, mappingsOf, sameFile } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import { ticksSinceBoot } from './boot-clock.js'
import { type CounterKey, counterKey } from './counter-locks.js'
import { isGone } from './gone.js'
import { formatCounters, type LeaseCounter } from './lease.js'
import type { Lease, LeaseOwner } from './lease-owner.js'
import { type CounterPlace, counterPlaces } from './places.js'
import { CLAIM, type FileCounter } from './read.js'
import { readSpace, type SpaceId } from './space.js'
import { inSteps } from './step-groups.js'
import { reached } from './steps.js'
import { unclaimable } from './unreachable.js'

/** What all claims of a tracer share. */
export interface ClaimContext {
  readonly native: Native
  readonly owner: LeaseOwner
  readonly active: ActiveClaims
}

/** How many claims of a tracer hold each counter: the tracer is present at a counter from its first to its last. */
export class ActiveClaims {
  readonly #holders = new Map<string, number>()

  has(key: CounterKey): boolean {
    return this.#holders.has(key.id)
  }

  /** Returns whether this is the first. */
  add(key: CounterKey): boolean {
    const before = this.#holders.get(key.id) ?? 0
    this.#holders.set(key.id, before + 1)
    return before === 0
  }

  /** Returns whether that was the last. */
  remove(key: CounterKey): boolean {
    const left = (this.#holders.get(key.id) ?? 0) - 1
    if (left > 0) this.#holders.set(key.id, left)
    else this.#holders.delete(key.id)
    return left <= 0
  }
}

/** The clock is read once in so many counters. */
const COUNTERS_A_LOOK = 128

/** A counter in one mapping of the process. There may be ten thousand, so it has no more than it must. */
interface HeldCell {
  readonly counter: FileCounter
  readonly place: CounterPlace
  /** Whether this claim counts among the active ones. */
  active: boolean
}

/** A counter while it is set or cleared. */
interface KeyedCell {
  readonly cell: HeldCell
  readonly key: CounterKey
}

/** The file whose counters are claimed. */
export interface ClaimedFile {
  readonly identity: FileIdentity
  readonly path: string
}

/** A counter in one mapping of one process, for whoever shows it. */
export interface ClaimedCounter {
  readonly counter: FileCounter
  readonly place: CounterPlace
}

/** See the module's comment. */
export class ProcessClaim {
  /** Counters that are set or cleared in one step. */
  readonly #groups: readonly (readonly HeldCell[])[]
  #lease: Lease | null = null
  #closed = false

  private constructor(
    private readonly context: ClaimContext,
    readonly target: TargetProcess,
    readonly space: SpaceId,
    readonly file: ClaimedFile,
    private readonly memory: CounterMemory,
    private readonly cells: readonly HeldCell[],
    private readonly fds: readonly number[],
  ) {
    this.#groups = inSteps(cells)
  }

  /**
   * Finds the counters in a process; nothing is written yet.
   * @returns `null` if the process maps none of their code
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_PLACE`, `ERR_UPROBE_TARGET_GONE`, `ERR_UPROBE_TARGET_DENIED`, `ERR_UPROBE_LIMIT`
   */
  static async open(
    context: ClaimContext,
    target: TargetProcess,
    file: ClaimedFile,
    counters: readonly FileCounter[],
  ): Promise<ProcessClaim | null> {
    try {
      return await ProcessClaim.#openNow(context, target, file, counters)
    } catch (error) {
      const outOfReach = error instanceof UprobeError && ['ERR_UPROBE_COUNTER_PLACE', 'ERR_UPROBE_TARGET_DENIED'].includes(error.code)
      if (!outOfReach) throw error
      // So it looks in the middle of an exec, when the code is mapped while the data and the auxiliary vector are not there yet.
      await target.programMapped()
      return ProcessClaim.#openNow(context, target, file, counters)
    }
  }

  static async #openNow(
    context: ClaimContext,
    target: TargetProcess,
    file: ClaimedFile,
    counters: readonly FileCounter[],
  ): Promise<ProcessClaim | null> {
    const found = await placesOf(target, file, counters)
    if (found.length === 0) return null
    const space = readSpace(target)
    if (space === null) throw deniedOrGone(target)
    const fds: number[] = []
    try {
      const own = target.pid === process.pid
      const memFd = openProc(target, 'mem', own ? 'r' : 'r+', fds)
      const mapsFd = openProc(target, 'maps', 'r', fds)
      // The descriptors are bound to the address space that the process has now: that of the target, as long as it is not gone.
      if (target.addressSpaceGone()) throw target.goneError()
      const memory = new context.native.CounterMemory({ memFd, mapsFd, own })
      return new ProcessClaim(context, target, space, file, memory, found, fds)
    } catch (error) {
      for (const fd of fds) closeSync(fd)
      throw error
    }
  }

  /** The counters, a line for each mapping. */
  get counters(): readonly ClaimedCounter[] {
    return this.cells
  }

  /** Since when it is on record, in clock ticks of the machine; what was born before has inherited nothing of it. */
  get sinceTicks(): bigint {
    return this.#lease?.sinceTicks ?? ticksSinceBoot()
  }

  /** Whether the bits are ours, or shared with others. */
  get active(): boolean {
    return this.cells.some(({ active }) => active)
  }

  /** Whether children that inherited from another claim are found by this one's lease as well: if it is on record for as long, for the same counters of the same program image. */
  covers(other: ProcessClaim): boolean {
    return (
      this.#lease !== null &&
      this.#lease.sinceTicks <= other.sinceTicks &&
      this.space.fingerprint === other.space.fingerprint &&
      sameFile(this.file.identity, other.file.identity) &&
      this.cells.length === other.cells.length &&
      this.cells.every(({ place: { address } }, index) => address === other.cells[index]?.place.address)
    )
  }

  /**
   * Reads every counter: 0, or claimed already.
   * @returns whether all are claimed, by whomever
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_FOREIGN` if one reads anything else
   */
  async read(): Promise<boolean> {
    let claimed = true
    const slice = new TimeSlice()
    for (const [index, one] of this.cells.entries()) {
      if (index % COUNTERS_A_LOOK === 0 && slice.isOver) await slice.rest()
      this.#guarded(() => {
        const value = this.memory.read(one.place)
        if (value !== 0 && value !== CLAIM) throw this.#foreign(one, value)
        if (value === 0) claimed = false
      })
    }
    return claimed
  }

  /**
   * Whether the counters are still those that were found, with the bit where it was set. A library that was unloaded and loaded again has new ones, perhaps at the same
   * addresses, and a loader that is still at work may write over what it has just mapped.
   * @param counters - as for {@link open}
   * @throws {UprobeError} as {@link open}
   */
  async isIntact(counters: readonly FileCounter[]): Promise<boolean> {
    if (this.target.addressSpaceGone() || !this.target.refreshThread()) return false
    const found = await placesOf(this.target, this.file, counters)
    const known = new Set(this.cells.map(({ place }) => place.address))
    if (found.length !== known.size || !found.every(({ place }) => known.has(place.address))) return false
    try {
      return this.cells.every(({ active, place }) => !active || this.memory.read(place) !== 0)
    } catch (error) {
      if (isGone(error)) return false
      throw error
    }
  }

  /** Whether a counter is claimed that this claim does not hold. */
  async isHeldByOthers(): Promise<boolean> {
    const slice = new TimeSlice()
    for (const [index, { active, place }] of this.cells.entries()) {
      if (index % COUNTERS_A_LOOK === 0 && slice.isOver) await slice.rest()
      try {
        if (!active && this.memory.read(place) === CLAIM) return true
      } catch (error) {
        if (isGone(error)) return false
        throw error
      }
    }
    return false
  }

  /** Records the claim on disk. Does nothing if it is. */
  async writeLease(): Promise<void> {
    if (this.#lease !== null) return
    const { target, space, file, cells } = this
    const counters: LeaseCounter[] = []
    const texts: string[] = []
    const slice = new TimeSlice()
    for (let first = 0; first < cells.length; first += COUNTERS_A_LOOK) {
      if (slice.isOver) await slice.rest()
      const some = cells
        .slice(first, first + COUNTERS_A_LOOK)
        .map(({ counter: { provider, name, refCtrOffset, vaddr }, place: { address } }) => ({
          provider,
          name,
          refCtrOffset,
          vaddr,
          address,
        }))
      counters.push(...some)
      texts.push(formatCounters(some))
    }
    if (slice.isOver) await slice.rest()
    const claim = {
      target: { pid: target.pid, startTime: target.startTime, space },
      file: { device: file.identity.device, inode: file.identity.inode, path: file.path },
      counters,
    }
    this.#lease = this.context.owner.write(claim, texts.join(','))
  }

  /**
   * Sets the bits.
   * @param inherited - whether a bit that is set already may have come with a fork
   * @param signal - ends it early
   * @param through - is told of how many counters the bits are set
   * @throws {UprobeError} `ERR_UPROBE_COUNTER_FOREIGN`, `ERR_UPROBE_TARGET_GONE`, or the reason of the signal; nothing is set then that was not before, unless it could not be cleared: {@link clear} says so
   */
  async set(inherited = false, signal?: AbortSignal, through?: (counters: number) => void): Promise<void> {
    const set: HeldCell[][] = []
    let untold = 0
    const slice = new TimeSlice()
    try {
      for (const cells of this.#groups) {
        signal?.throwIfAborted()
        const before = cells.filter(({ active }) => !active)
        await this.#step(cells, (keyed) => this.#set(keyed, inherited), signal)
        set.push(before)
        untold += cells.length
        if (!slice.isOver) continue
        through?.(untold)
        untold = 0
        await slice.rest()
      }
    } catch (error) {
      // What cannot be cleared is still ours, and told of by whoever clears next; it must not hide why that is wanted.
      await this.#clearGroups(set).catch(() => undefined)
      throw error
    }
  }

  /** The same without waiting: false if another agent is at a step, or there are so many counters that the event loop must have its turn in between. */
  trySet(inherited = false): boolean {
    const [group, ...more] = this.#groups
    if (group === undefined || more.length > 0) return false
    return this.#tryStep(group, (keyed) => this.#set(keyed, inherited))
  }

  /**
   * Clears the bits, except where another claim covers the counter. What fails at one counter does not keep the others from being cleared.
   * @throws {UprobeError} the first failure: `ERR_UPROBE_COUNTER_FOREIGN`, `ERR_UPROBE_COUNTER_PLACE`
   */
  async clear(through?: (counters: number) => void): Promise<void> {
    await this.#clearGroups(this.#groups, through)
  }

  /** The same without waiting: false as of {@link trySet}. */
  tryClear(): boolean {
    const [group, ...more] = this.#groups
    if (group === undefined || more.length > 0) return false
    return this.#tryStep(group, (keyed) => this.#clear(keyed))
  }

  async #clearGroups(groups: readonly (readonly HeldCell[])[], through?: (counters: number) => void): Promise<void> {
    const failures: unknown[] = []
    let untold = 0
    const slice = new TimeSlice()
    for (const cells of groups) {
      try {
        await this.#step(cells, (keyed) => this.#clear(keyed))
      } catch (error) {
        failures.push(error)
      }
      untold += cells.length
      if (!slice.isOver) continue
      through?.(untold)
      untold = 0
      await slice.rest()
    }
    if (failures.length > 0) throw failures[0]
  }

  /** Runs a step that nobody else can be in. Keys are made for it and not kept. */
  #step(cells: readonly HeldCell[], step: (keyed: readonly KeyedCell[]) => void, signal?: AbortSignal): Promise<void> {
    const keyed = this.#keyed(cells)
    return this.context.owner.locks.step(
      keyed.map(({ key }) => key),
      () => step(keyed),
      signal,
    )
  }

  /** The same without waiting. Returns whether it was run. */
  #tryStep(cells: readonly HeldCell[], step: (keyed: readonly KeyedCell[]) => void): boolean {
    const keyed = this.#keyed(cells)
    return this.context.owner.locks.tryStep(
      keyed.map(({ key }) => key),
      () => step(keyed),
    ).done
  }

  #keyed(cells: readonly HeldCell[]): KeyedCell[] {
    return cells.map((cell) => ({ cell, key: counterKey(this.space, cell.place.address) }))
  }

  /** The claim is given back; only cleaning up is left. */
  releaseLease(): void {
    if (this.#lease !== null) this.context.owner.release(this.#lease)
  }

  /**
   * Removes the lease, and closes what is held. Idempotent.
   * @param unfinished - something could not be cleared, in this process or in a child of it: the lease stays, for whoever recovers next. So it does if a bit is still set here.
   */
  close(unfinished = false): void {
    if (this.#closed) return
    this.#closed = true
    const { owner, active } = this.context
    const left = unfinished || this.active
    for (const { cell, key } of this.#keyed(this.cells.filter((one) => one.active))) {
      // Whoever is not present any more has nothing there that others had to leave alone.
      if (active.remove(key)) owner.locks.leave(key)
      cell.active = false
    }
    if (this.#lease !== null) {
      if (left) owner.leave(this.#lease)
      else owner.remove(this.#lease)
    }
    this.#lease = null
    for (const fd of this.fds) closeSync(fd)
  }

  #set(cells: readonly KeyedCell[], inherited: boolean): void {
    const { memory } = this
    const { owner, active } = this.context
    const set: KeyedCell[] = []
    try {
      this.#guarded(() => {
        for (const one of cells) {
          const { cell, key } = one
          if (cell.active) continue
          const before = memory.read(cell.place)
          if (before !== 0 && !(before === CLAIM && (inherited || active.has(key) || owner.locks.othersPresent(key)))) {
            throw this.#foreign(cell, before)
          }
          if (active.add(key)) owner.locks.enter(key)
          cell.active = true
          set.push(one)
          reached('counter-read-again')
          const after = memory.setMsb(cell.place)
          reached('counter-stored')
          if (after !== CLAIM) throw this.#foreign(cell, after)
        }
      })
    } catch (error) {
      for (const one of set) this.#clearOne(one)
      throw error
    }
  }

  #clear(cells: readonly KeyedCell[]): void {
    let failure: unknown = null
    for (const one of cells) {
      try {
        this.#clearOne(one)
      } catch (error) {
        failure ??= this.#uncleared(one.cell, error)
      }
    }
    if (failure !== null) throw failure
  }

  #uncleared({ counter, place: { address } }: HeldCell, error: unknown): unknown {
    if (!isSystemCallError(error)) return error
    const errno = errnoOf(error)
    const changed = errno === ERANGE || errno === EBUSY
    return new UprobeError(
      changed ? 'ERR_UPROBE_COUNTER_FOREIGN' : 'ERR_UPROBE_COUNTER_PLACE',
      `${nameOf(counter)} in ${escapeForDisplay(this.file.path)}: the claim on the counter at 0x${address.toString(16)} of process ${this.target.pid} could not be cleared: ` +
        `${changed ? 'somebody else has written to the counter' : `its mapping changed, and cannot be written (${error.code})`}. It was left as it is, with its lease; ` +
        '`uprobe repair PID` clears it when that is possible.',
      { cause: error, errno, syscall: error.syscall, pid: this.target.pid, path: escapeForDisplay(this.file.path) },
    )
  }

  #clearOne({ cell, key }: KeyedCell): void {
    if (!cell.active) return
    const { owner, active } = this.context
    if (active.remove(key)) {
      const others = owner.locks.leave(key)
      try {
        if (!others) this.memory.clearMsb(cell.place)
      } catch (error) {
        if (!isGone(error)) {
          // Still ours: the lease must go on saying so.
          if (active.add(key)) owner.locks.enter(key)
          throw error
        }
      }
    }
    cell.active = false
  }

  /** Says of a failed store or read what it means for the process. */
  #guarded(work: () => void): void {
    try {
      work()
    } catch (error) {
      if (errnoOf(error) === ESRCH) throw this.target.goneError(error)
      if (error instanceof UprobeError || !isSystemCallError(error)) throw error
      throw new UprobeError(
        'ERR_UPROBE_COUNTER_PLACE',
        `A counter of ${escapeForDisplay(this.file.path)} in process ${this.target.pid} cannot be written (${error.code}): its mapping changed meanwhile.`,
        { cause: error, errno: errnoOf(error), syscall: error.syscall, pid: this.target.pid },
      )
    }
  }

  #foreign({ counter, place: { address } }: HeldCell, value: number): UprobeError {
    return new UprobeError(
      'ERR_UPROBE_COUNTER_FOREIGN',
      `${nameOf(counter)} in ${escapeForDisplay(this.file.path)}: the counter at 0x${address.toString(16)} of process ${this.target.pid} reads 0x${value.toString(16)}, ` +
        'and no tracer that is known accounts for it. It was left as it is. `uprobe counters PID` says what is known of it, `uprobe repair PID` what can be done.',
      { pid: this.target.pid, path: escapeForDisplay(this.file.path) },
    )
  }
}

/** The places of counters in a process. */
async function placesOf(target: TargetProcess, file: ClaimedFile, counters: readonly FileCounter[]): Promise<HeldCell[]> {
  const all = await target.maps(true)
  const ofFile = mappingsOf(target.procDirectory, all, file.identity)
  const found: HeldCell[] = []
  const slice = new TimeSlice()
  for (const [index, counter] of counters.entries()) {
    if (index % COUNTERS_A_LOOK === 0 && slice.isOver) await slice.rest()
    const { places, problem } = counterPlaces(all, ofFile, counter)
    if (problem === 'not-mapped') continue
    if (problem !== null && target.addressSpaceGone()) throw target.goneError()
    if (problem !== null) throw unclaimable(`${nameOf(counter)} in ${escapeForDisplay(file.path)}`, target.pid, problem)
    for (const place of places) found.push({ counter, place, active: false })
  }
  return found
}

function nameOf(counter: FileCounter): string {
  return `usdt:${escapeForDisplay(counter.provider)}:${escapeForDisplay(counter.name)}`
}

function openProc(target: TargetProcess, name: string, flags: string, fds: number[]): number {
  try {
    const fd = openSync(`${target.threadDirectory}/${name}`, flags)
    fds.push(fd)
    return fd
  } catch (error) {
    throw limitError(error, `The memory of process ${target.pid} cannot be opened`) ?? deniedOrGone(target, error)
  }
}

function deniedOrGone(target: TargetProcess, cause?: unknown): UprobeError {
  if (target.addressSpaceGone()) return target.goneError(cause)
  return new UprobeError(
    'ERR_UPROBE_TARGET_DENIED',
    `The memory of process ${target.pid} may not be written, which claiming a counter takes. Run with CAP_SYS_PTRACE, or use counter: 'kernel'.`,
    { cause, pid: target.pid },
  )
}
