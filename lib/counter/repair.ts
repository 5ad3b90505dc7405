/**
 * Putting right what others left behind, one counter at a time.
 *
 * Each repair is made so that it is right whatever the kernel and other tracers do meanwhile:
 *
 *  - **a claim of nobody**: all sites are guarded, so that the kernel cannot begin to count, then the bit is cleared. Where a site is armed and stays so, whoever holds it lives, and the
 *    claim may be its own, under a lease in another directory: it is left;
 *  - **a count that leaked**: the counter is pinned, so that the kernel leaves it alone; what is above the number of sites is the leak, exactly;
 *  - **a negative value**: as long as it is negative the kernel neither adds nor takes away (`__update_ref_ctr`, kernel/events/uprobes.c), so the number of armed sites that count here can
 *    be stored. Both bytes go in one write, during which the kernel's own store waits for `mmap_lock` (`__access_remote_vm`, mm/memory.c); from then on it counts from the right number;
 *  - **a breakpoint of nobody**: registering the site and closing takes out a breakpoint that the kernel had forgotten. One that is in afterwards has a holder that lives.
 *
 * What cannot be mended is the kernel's own memory of a uprobe that it leaked: until the machine is booted again, the site can be registered with this counter only (before Linux 6.10 it
 * forgets with the repair).
 */
import { closeSync, openSync } from 'node:fs'
import { EINVAL } from '../errno.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import type { Logger } from '../log.js'
import type { CounterMemory, Native } from '../native.js'
import { readTextOrNull } from '../read-text.js'
import { mappingsOf } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import { clearUnowned } from './cells.js'
import { CounterLocks } from './counter-locks.js'
import { Guard } from './guard.js'
import type { CounterState, InspectedCounter } from './inspect.js'
import type { KnownOwners } from './known-owners.js'
import type { LeaseDirectory } from './lease-directory.js'
import { type CounterOwner, ownerNames, registrarsOf } from './owners.js'
import { Pin, registerCountingSites } from './pin.js'
import { type CounterPlace, counterPlaces } from './places.js'
import { CLAIM, inspectAt } from './read.js'
import { readSpace } from './space.js'

const CHANGED = 'it changed meanwhile, and was left'

/** One thing that is wrong, and what was or would be done about it. */
export interface RepairEntry {
  readonly pid: number
  readonly path: string
  readonly provider: string
  readonly name: string
  readonly address: bigint | null
  readonly problem: CounterState
  /** The 16 bits before, unsigned. */
  readonly before: number | null
  /** The 16 bits after; in a dry run, what they would be. */
  readonly after: number | null
  /** Whether it was done, and read back. */
  readonly applied: boolean
  /** What was done or would be, or why it was not. */
  readonly note: string
}

/** States that can be repaired here; orphan claims are what recover.ts is for. */
const PROBLEMS: ReadonlySet<CounterState> = new Set(['foreign-claim', 'underflow', 'leaked-count', 'stuck-breakpoint'])

/** Whether a state is one that {@link repairCounter} deals with. */
export function isRepairable(state: CounterState): boolean {
  return PROBLEMS.has(state)
}

/** What was done to a counter. */
interface Outcome {
  readonly after: number | null
  readonly applied: boolean
  readonly note: string
}

/** What repairing one counter needs. */
export interface RepairContext {
  readonly native: Native
  /** Everybody who is known to hold counters. */
  readonly owners: KnownOwners
  readonly target: TargetProcess
  readonly dryRun: boolean
  readonly log: Logger
  /** The leases; `null` if there is no such directory. */
  readonly directory: LeaseDirectory | null
}

/** Repairs one counter, or says what it would do. */
export async function repairCounter(context: RepairContext, inspected: InspectedCounter): Promise<RepairEntry> {
  const { target, dryRun, log } = context
  const { file, counter, address, value: before, state: problem } = inspected
  const outcome = await attempt(context, inspected)
  const entry: RepairEntry = {
    pid: target.pid,
    path: file.path,
    provider: counter.provider,
    name: counter.name,
    address,
    problem,
    before,
    ...outcome,
  }
  if (!dryRun) audit(log, entry)
  return entry
}

/** Writes down what was done, or was to be done and could not be, and on whose behalf. */
export function audit(log: Logger, { pid, path, address, problem, before, after, applied, note }: RepairEntry): void {
  const hex = address === null ? null : `0x${address.toString(16)}`
  // `pid` is the name under which pino notes the process that logs.
  log.warn({ audit: 'repair', target: pid, path, address: hex, problem, before, after, applied, uid: process.getuid?.() }, note)
}

/** An entry for a claim of a dead agent that recover.ts, which sees to all of them, has left. */
export function leftOrphan({ target, dryRun, log }: RepairContext, { file, counter, address, value }: InspectedCounter): RepairEntry {
  const { provider, name } = counter
  const note = whyDebugged(target) ?? 'the process may not be written, or is not as the lease of the dead agent says; the log says more'
  const entry: RepairEntry = {
    ...{ pid: target.pid, path: file.path, provider, name, address },
    ...{ problem: 'orphan-claim', before: value, after: value, applied: false, note },
  }
  if (!dryRun) audit(log, entry)
  return entry
}

/** Why a process is left alone; `null` if no debugger has it. */
export function whyDebugged(target: TargetProcess): string | null {
  const debuggerPid = tracerOf(target)
  return debuggerPid === 0 ? null : `process ${debuggerPid} debugs this one, and a debugger may be the reason; end it first`
}

async function attempt(context: RepairContext, inspected: InspectedCounter): Promise<Outcome> {
  const { value, breakpoints, state } = inspected
  const debugged = whyDebugged(context.target)
  if (debugged !== null) return left(value, debugged)
  if (state === 'foreign-claim' && inspected.owners.length > 0) return left(value, heldByWhom(inspected))
  if (context.dryRun) return { after: expectedAfter(inspected), applied: false, note: intention(state, value ?? 0, breakpoints) }
  try {
    switch (state) {
      case 'foreign-claim':
        return await clearForeign(context, inspected)
      case 'underflow':
        return await liftUnderflow(context, inspected)
      case 'leaked-count':
        return await subtractLeak(context, inspected)
      default:
        return await restoreBreakpoints(context, inspected)
    }
  } catch (error) {
    if (error instanceof UprobeError || isSystemCallError(error)) return left(value, `nothing was done: ${error.message}`)
    throw error
  }
}

function left(value: number | null, note: string): Outcome {
  return { after: value, applied: false, note }
}

function expectedAfter({ state, value, breakpoints }: InspectedCounter): number | null {
  if (state === 'foreign-claim') return 0
  if (state === 'leaked-count') return breakpoints
  // Breakpoints without a holder come out, and with them their count.
  return state === 'underflow' ? 0 : value
}

function intention(state: CounterState, value: number, armedSites: number): string {
  switch (state) {
    case 'foreign-claim':
      return `would clear the bit${armedSites === 0 ? '' : ', unless a breakpoint stays in when those that nobody holds are out'}. No lease names it, so another tool may own it: make sure that none does`
    case 'underflow':
      return `would store the number of armed sites that count here, at most ${armedSites}, and take out breakpoints that nobody holds`
    case 'leaked-count':
      return `would subtract ${value - armedSites}. A tool that counts by hand (gdb, old bcc) cannot be told from a leak while it lives: make sure that none does`
    default:
      return 'would take the breakpoints out that nobody holds. perf stat and perf record hold breakpoints that are listed nowhere; theirs would be left'
  }
}

/** `TracerPid` of /proc/PID/status; 0 if there is no debugger. */
function tracerOf(target: TargetProcess): number {
  return Number(/^TracerPid:\s*(\d+)$/m.exec(readTextOrNull(`${target.procDirectory}/status`) ?? '')?.[1] ?? 0)
}

/** Under the counter's lock, where it shows whether an agent is present at it by now. */
async function clearForeign({ native, target, directory }: RepairContext, inspected: InspectedCounter): Promise<Outcome> {
  const { file, counter, address } = inspected
  const guard = await Guard.take(native, file, [counter])
  try {
    if (await isHeld(native, target, inspected)) return left(inspected.value, heldByWhom(inspected))
    const space = readSpace(target)
    if (directory === null || space === null || address === null) {
      // Without a directory of leases there is no agent that could be present.
      return await withMemory(native, target, inspected, (memory, place) => {
        const found = memory.read(place)
        if (found !== CLAIM) return left(found, CHANGED)
        return { after: memory.clearMsb(place), applied: true, note: 'the bit was cleared' }
      })
    }
    const locksFd = directory.openLocks()
    try {
      const bits = { native, locks: new CounterLocks(native, locksFd), isOurs: () => false, dryRun: false }
      const place = { address, vaddr: counter.vaddr, refCtrOffset: counter.refCtrOffset }
      const [cleared] = await clearUnowned(bits, target, space, file.identity, [place], (found) => found === CLAIM)
      if (cleared === undefined) return left((await lookAgain(target, inspected)).value, CHANGED)
      return { after: cleared.after, applied: true, note: 'the bit was cleared' }
    } finally {
      closeSync(locksFd)
    }
  } finally {
    await guard.release()
  }
}

/** Whether a site is armed for somebody: not every kernel lists every holder, nor does it show those of other pid namespaces. Registering it without a counter, and closing, takes out a breakpoint that nobody holds. */
async function isHeld(native: Native, target: TargetProcess, inspected: InspectedCounter): Promise<boolean> {
  if ((await lookAgain(target, inspected)).armedSites === 0) return false
  try {
    const pin = await Pin.take(native, inspected.file, target, inspected.counter, 0n)
    await pin.release()
  } catch (error) {
    // The kernel knows it with its counter.
    if (errnoOf(error) === EINVAL) return true
    throw error
  }
  return (await lookAgain(target, inspected)).armedSites > 0
}

async function liftUnderflow(context: RepairContext, inspected: InspectedCounter): Promise<Outcome> {
  const { native, target } = context
  const { file, counter } = inspected
  const { refCtrOffset } = counter
  const own = target.pid === process.pid
  const counting = refCtrOffset === null || own ? null : await registerCountingSites(native, file, counter, refCtrOffset)
  const sites = counting?.sites ?? counter.sites
  const counted: InspectedCounter = { ...inspected, counter: { ...counter, sites } }
  let stored: Outcome
  try {
    stored = await withMemory(native, target, inspected, async (memory, place) => {
      const { value, armedSites } = await lookAgain(target, counted)
      if (value === null || (value & CLAIM) === 0) return left(value, CHANGED)
      memory.replace(place, value, armedSites)
      return { after: armedSites, applied: true, note: `${armedSites} was stored, the number of armed sites that count here` }
    })
  } finally {
    await counting?.release()
  }
  if (!stored.applied || stored.after === 0) return stored
  try {
    const restored = await restoreBreakpoints(context, counted)
    return { after: restored.after, applied: true, note: `${stored.note}; ${restored.note}` }
  } catch (error) {
    if (!(error instanceof UprobeError || isSystemCallError(error))) throw error
    return { ...stored, note: `${stored.note}; its breakpoints were left: ${error.message}` }
  }
}

async function subtractLeak(context: RepairContext, inspected: InspectedCounter): Promise<Outcome> {
  const { native, target } = context
  const { file, counter } = inspected
  if (counter.refCtrOffset === null) return left(inspected.value, 'the kernel does not count here, so nothing can be pinned')
  let pin: Pin
  try {
    pin = await Pin.take(native, file, target, counter, counter.refCtrOffset)
  } catch (error) {
    if (errnoOf(error) !== EINVAL) throw error
    const names = ownerNames([...inspected.owners, ...(await registrars(context, inspected))])
    return left(
      inspected.value,
      `a site of it is registered without the counter, here or in another process, so it cannot be pinned; ${whoHolds(names)}`,
    )
  }
  let leaked: number
  try {
    leaked = await withMemory(native, target, inspected, async (memory, place) => {
      const { value, armedSites } = await lookAgain(target, inspected)
      const above = value === null ? 0 : value - armedSites
      if (value !== null && above > 0) memory.replace(place, value, value - above)
      return above
    })
  } finally {
    await pin.release()
  }
  const { value: after } = await lookAgain(target, inspected)
  return leaked > 0
    ? {
        after,
        applied: true,
        note: `${leaked} subtracted under a pin of ${counter.sites.length === 1 ? 'its site' : `all ${counter.sites.length} sites`}`,
      }
    : left(after, 'pinned, it has no leak: a tracer was coming or going')
}

/** Who has registered a site of the counter, for whichever process, as far as the kernel tells. */
async function registrars({ owners, target }: RepairContext, { file, counter }: InspectedCounter): Promise<readonly CounterOwner[]> {
  const sites = counter.sites.map(({ fileOffset }) => fileOffset)
  try {
    return registrarsOf(await owners.holders(), file, target.pid, sites)
  } catch (error) {
    if (!(error instanceof UprobeError || isSystemCallError(error))) throw error
    return []
  }
}

function heldByWhom(inspected: InspectedCounter): string {
  return `a site of it is armed, and whoever has armed it may have claimed it; ${whoHolds(ownerNames(inspected.owners))}`
}

function whoHolds(names: readonly string[]): string {
  return names.length === 0
    ? 'the kernel does not list whose it is. Detach that tracer first'
    : `known here: ${names.join(', ')}. Detach that tracer first`
}

/** Registers the sites and closes, with the counter or, where the kernel remembers them without, without. */
async function restoreBreakpoints({ native, target }: RepairContext, inspected: InspectedCounter): Promise<Outcome> {
  const { file, counter } = inspected
  const offsets = counter.refCtrOffset === null ? [0n] : [counter.refCtrOffset, 0n]
  for (const offset of offsets) {
    let pin: Pin
    try {
      pin = await Pin.take(native, file, target, counter, offset)
    } catch (error) {
      if (errnoOf(error) === EINVAL && offset !== offsets.at(-1)) continue
      throw error
    }
    try {
      if (offset !== 0n) await raise(native, target, inspected)
    } finally {
      await pin.release()
    }
    break
  }
  const { value: after, armedSites } = await lookAgain(target, inspected)
  return armedSites === 0
    ? {
        after,
        applied: true,
        note: 'the breakpoints are out. Until the next boot the kernel may accept these sites with their counter only',
      }
    : left(after, `${armedSites} of ${counter.sites.length} breakpoints have a holder that lives, and were left to it`)
}

/**
 * Under a pin: gives a counter that is too low what the kernel will take away for the breakpoints that are in. It counts when a breakpoint goes in and not when one is in already, so
 * closing the pin would fail at 0, and leave the breakpoint.
 */
async function raise(native: Native, target: TargetProcess, inspected: InspectedCounter): Promise<void> {
  const { value, armedSites } = await lookAgain(target, inspected)
  if (value === null || (value & CLAIM) !== 0 || value >= armedSites) return
  await withMemory(native, target, inspected, (memory, place) => memory.replace(place, value, armedSites))
}

async function lookAgain(target: TargetProcess, { file, counter, address }: InspectedCounter): Promise<ReturnType<typeof inspectAt>> {
  const ofFile = mappingsOf(target.procDirectory, await target.maps(), file.identity)
  return inspectAt(target, ofFile, address, counter.sites)
}

/** Opens the counter for writing; its memory refuses when anything is not as it was. */
async function withMemory<T>(
  native: Native,
  target: TargetProcess,
  { file, counter, address }: InspectedCounter,
  use: (memory: CounterMemory, place: CounterPlace) => T | Promise<T>,
): Promise<T> {
  const all = await target.maps(true)
  const { places } = counterPlaces(all, mappingsOf(target.procDirectory, all, file.identity), counter)
  const place: CounterPlace | undefined = places.find((one) => one.address === address)
  if (place === undefined) throw target.goneError()
  const memFd = openSync(`${target.threadDirectory}/mem`, 'r+')
  try {
    const mapsFd = openSync(`${target.threadDirectory}/maps`, 'r')
    try {
      if (target.addressSpaceGone()) throw target.goneError()
      return await use(new native.CounterMemory({ memFd, mapsFd, own: target.pid === process.pid }), place)
    } finally {
      closeSync(mapsFd)
    }
  } finally {
    closeSync(memFd)
  }
}
