/**
 * Looking at every counter of a process: what it reads, what is armed, who is known to hold it, and what that means.
 *
 * Nothing is written, and nothing bad is believed at first sight. A tracer that comes or goes changes counter, breakpoint and what is listed of it one after the other, so it may look like
 * a leak or like a breakpoint of nobody for a moment. What looks wrong is looked at again, and everybody asked anew, until it has looked the same for longer than
 * a registration takes to go; what never stands still in the time that is given to it is *in transit*: somebody is at work there, and it is called `counted`, with what was last read.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { TimeSlice } from '../elf/time-slice.js'
import { UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import type { TargetFile } from '../target/file.js'
import { type Mapping, mappingsOf } from '../target/maps.js'
import { TargetProcess } from '../target/process.js'
import { resolveFiles } from '../target/resolve.js'
import type { KnownClaim, KnownOwners } from './known-owners.js'
import { type CounterOwner, type HeldFile, holdersOf } from './owners.js'
import { countersOf, type Place, type ProbeName, placesOf } from './process-counters.js'
import { armedOffsets, CLAIM, type FileCounter, inspectAt } from './read.js'
import { readSpace, type SpaceId } from './space.js'

/**
 * What is the matter with a counter: the first of these that applies.
 * - `unreachable`: it cannot be read, or it lies where the kernel never finds it and nobody has claimed it;
 * - `claimed`: bit 15 is set, and a living agent has a lease for it;
 * - `orphan-claim`: bit 15 is set, and the agent that had the lease is dead;
 * - `foreign-claim`: it reads 0x8000, and there is no lease;
 * - `underflow`: it is negative otherwise;
 * - `leaked-count`: it is larger than what its armed sites account for;
 * - `stuck-breakpoint`: a site is armed, and nobody is known to hold it: a suspicion;
 * - `counted`: it is what the kernel counts, or a tracer is coming or going at this moment;
 * - `idle`: it is 0, so that the probe is off. A site may be armed all the same, by a claim that is paused or by a tracer that knows nothing of counters.
 */
export type CounterState =
  | 'unreachable'
  | 'claimed'
  | 'orphan-claim'
  | 'foreign-claim'
  | 'underflow'
  | 'leaked-count'
  | 'stuck-breakpoint'
  | 'counted'
  | 'idle'

/** One counter of a process, as one of the probes that share it. */
export interface CounterInfo {
  readonly pid: number
  /** The file, as the process knows it. */
  readonly path: string
  readonly provider: string
  readonly name: string
  /** Address of the counter; `null` if the process does not map its code. */
  readonly address: bigint | null
  /** The 16 bits, unsigned; `null` if they cannot be read. */
  readonly value: number | null
  /** The low 15 bits; `null` if the value is negative without a claim, or cannot be read. */
  readonly kernelCount: number | null
  /** Whether bit 15 is set as a claim: of a living agent, of a dead one, or of somebody who is not known. While a claim is paused it is not, and `owners` names its agent. */
  readonly claimed: boolean
  /** Sites of the counter whose breakpoint is in, whoever put it there. */
  readonly armedSites: number
  /** Who holds it, as far as known. */
  readonly owners: readonly CounterOwner[]
  readonly state: CounterState
}

/** A counter, and where it was found. */
export interface InspectedCounter {
  readonly file: TargetFile
  readonly counter: FileCounter
  /** Names of all probes that share it. */
  readonly names: readonly ProbeName[]
  readonly address: bigint | null
  readonly value: number | null
  /** Breakpoints at its sites, as the kernel counts them: what the value should be. */
  readonly breakpoints: number
  readonly armedSites: number
  readonly claimed: boolean
  readonly owners: readonly CounterOwner[]
  readonly state: CounterState
}

/** Time between two looks at what looks wrong. */
const LOOK_MS = 20
/**
 * How long it must look the same. While a perf event is closed it is no process's any more, and its breakpoint is still in for some grace periods of the kernel: 0.1 s on a machine that is
 * idle, several times that on a busy one (once more than 0.6 s on an emulated one). Counts move within microseconds of their breakpoints.
 */
const STEADY_MS = 100
const STEADY_STUCK_MS = 2000
/** How long to wait for it to stand still. */
const PATIENCE_MS = 6000

/** States that a tracer which is just coming or going can look like. */
const SUSPECT: ReadonlySet<CounterState> = new Set(['orphan-claim', 'foreign-claim', 'underflow', 'leaked-count', 'stuck-breakpoint'])

/**
 * Looks at all counters of a process. Calls back with each file's counters while the file is open.
 * @throws {UprobeError} `ERR_UPROBE_TARGET_DENIED`, `ERR_UPROBE_BPF_PERMISSION`, `ERR_UPROBE_LIMIT`
 */
export async function inspectProcess(
  owners: KnownOwners,
  target: TargetProcess,
  onFile: (counters: readonly InspectedCounter[]) => void | Promise<void>,
): Promise<void> {
  const space = readSpace(target)
  const files = await resolveFiles(owners.native, null, [target])
  try {
    for (const { file } of files) {
      const counters = await countersOf(file)
      if (counters.length === 0) continue
      const all = await target.maps(true)
      const view: View = { owners, target, file, space, ofFile: mappingsOf(target.procDirectory, all, file.identity) }
      await onFile(await settle(view, await placesOf(counters, all, view.ofFile)))
    }
  } finally {
    for (const { file } of files) file.close()
  }
}

/** One row for each probe. */
export function toInfo(pid: number, inspected: InspectedCounter): CounterInfo[] {
  const { file, names, address, value, armedSites, claimed, owners, state } = inspected
  const negative = value !== null && (value & CLAIM) !== 0 && !claimed
  const kernelCount = value === null || negative ? null : value & ~CLAIM
  return names.map(({ provider, name }) => ({
    pid,
    path: file.path,
    provider,
    name,
    address,
    value,
    kernelCount,
    claimed,
    armedSites,
    owners,
    state,
  }))
}

/** A process that is looked at, and where it maps the file. */
interface View {
  readonly owners: KnownOwners
  readonly target: TargetProcess
  readonly file: TargetFile
  readonly space: SpaceId | null
  readonly ofFile: readonly Mapping[]
}

/** A counter that is looked at. */
interface Looked {
  readonly place: Place
  reading: Reading
  found: InspectedCounter
  /** Since when it has stood still. */
  sinceMs: number
  settled: boolean
}

/** Looks at counters until none is suspect, or those that are have stood still for long enough. */
async function settle(view: View, places: readonly Place[]): Promise<InspectedCounter[]> {
  const startMs = performance.now()
  const slice = new TimeSlice()
  const all: Looked[] = []
  for (const place of places) {
    const reading = read(view, place)
    const found = await judge(view, place, reading)
    all.push({ place, reading, found, sinceMs: performance.now(), settled: !SUSPECT.has(found.state) })
    if (slice.isOver) await slice.rest()
  }
  for (;;) {
    const pending = all.filter(({ settled }) => !settled)
    if (pending.length === 0) return all.map(({ found }) => found)
    await delay(LOOK_MS)
    for (const one of pending) await lookAgain(view, one)
    const ripe = pending.filter(isRipe)
    // Whoever came meanwhile is in no old list. Asking walks through all of /proc, so it is done once for all of them, and last.
    if (ripe.length > 0) view.owners.forget()
    for (const one of ripe) {
      const before = one.sinceMs
      await lookAgain(view, one)
      // Whoever was asked may have left while others were asked.
      if (!one.settled) noteMotion(one, read(view, one.place))
      if (one.sinceMs === before) one.settled = true
    }
    if (performance.now() - startMs <= PATIENCE_MS) continue
    for (const one of pending) if (!one.settled) Object.assign(one, { found: inTransit(one.found), settled: true })
  }
}

function isRipe({ settled, sinceMs, found }: Looked): boolean {
  return !settled && performance.now() - sinceMs >= (found.state === 'stuck-breakpoint' ? STEADY_STUCK_MS : STEADY_MS)
}

/** Looks at a suspect again. It settles if nothing looks wrong any more. */
async function lookAgain(view: View, one: Looked): Promise<void> {
  noteMotion(one, read(view, one.place))
  const before = one.found.state
  one.found = await judge(view, one.place, one.reading)
  if (one.found.state !== before) one.sinceMs = performance.now()
  one.settled = !SUSPECT.has(one.found.state)
}

/** Takes a new reading; if it is another one, the time in which it has to stand still begins anew. */
function noteMotion(one: Looked, reading: Reading): void {
  const { value, breakpoints } = one.reading
  const same = reading.steady && reading.value === value && reading.breakpoints === breakpoints
  one.reading = reading
  if (!same) one.sinceMs = performance.now()
}

/** What is said of a counter that never stands still: somebody is counting on it, and what was read last means nothing. */
function inTransit(found: InspectedCounter): InspectedCounter {
  return { ...found, claimed: false, state: 'counted' }
}

/** What is in the memory of the process. */
interface Reading {
  readonly value: number | null
  readonly breakpoints: number
  /** Offsets in the file of the armed sites. */
  readonly armed: readonly bigint[]
  /** Whether two readings in a row were the same. */
  readonly steady: boolean
}

function read({ target }: View, { counter, address, mappings }: Place): Reading {
  const { value, armedSites: breakpoints, steady } = inspectAt(target, mappings, address, counter.sites)
  return { value, breakpoints, armed: [...new Set(armedOffsets(target, mappings, counter.sites))], steady }
}

/** What a reading means, given everybody who is known. */
async function judge(view: View, { counter, names, address, counted }: Place, reading: Reading): Promise<InspectedCounter> {
  const { owners: known, target, file, space } = view
  const { value, breakpoints, armed } = reading
  const { startTime, pid } = target
  const claim =
    space === null || address === null || value === null ? null : known.claimOn({ space, startTime, file: file.identity, address, value })
  const { owners, held } = armed.length === 0 ? NOBODY : holdersOf(await known.holders(), heldFile(view, pid), armed)
  // Whoever has a lease has all the sites, also while its claim is paused.
  const unheld = claim?.alive !== true && armed.some((site) => !held.has(site))
  const state = stateOf({ value, breakpoints, claim, counted, unheld })
  return {
    file,
    counter,
    names,
    address,
    value,
    breakpoints,
    armedSites: armed.length,
    claimed: state === 'claimed' || state === 'orphan-claim' || state === 'foreign-claim',
    owners: [...(claim?.owners ?? []), ...owners],
    state,
  }
}

const NOBODY = { owners: [], held: new Set<bigint>() }

function heldFile({ owners, file, ofFile, space }: View, pid: number): HeldFile {
  return {
    identity: file.identity,
    path: file.path,
    deleted: ofFile.some(({ deleted }) => deleted),
    pid,
    concerns: (other) => other === pid || (space !== null && readSpaceOf(owners.native, other)?.fingerprint === space.fingerprint),
  }
}

function readSpaceOf(native: Native, pid: number): SpaceId | null {
  let target: TargetProcess
  try {
    target = TargetProcess.open(native, pid)
  } catch (error) {
    if (error instanceof UprobeError && error.code === 'ERR_UPROBE_TARGET_GONE') return null
    throw error
  }
  try {
    return readSpace(target)
  } finally {
    target.close()
  }
}

interface Evidence {
  readonly value: number | null
  readonly breakpoints: number
  readonly claim: KnownClaim | null
  /** Whether the kernel counts here. */
  readonly counted: boolean
  /** Whether a site is armed that nobody is known to hold. */
  readonly unheld: boolean
}

function stateOf({ value, breakpoints, claim, counted, unheld }: Evidence): CounterState {
  if (value === null) return 'unreachable'
  const set = (value & CLAIM) !== 0
  if (set && claim !== null) return claim.alive ? 'claimed' : 'orphan-claim'
  if (value === CLAIM) return 'foreign-claim'
  // Where the kernel never counts nothing can be expected, only claimed.
  if (!counted) return 'unreachable'
  if (set) return 'underflow'
  if (value > breakpoints) return 'leaked-count'
  if (unheld) return 'stuck-breakpoint'
  return value > 0 ? 'counted' : 'idle'
}
