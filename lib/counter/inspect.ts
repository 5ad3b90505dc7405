/**
 * Looking at every counter of a process: what it reads, what is armed, who is known to hold it, and what that means.
 *
 * Nothing is written, and nothing is believed at first sight: a tracer that comes or goes changes the counter and the breakpoint one after the other, so what looks like a leak
 * is looked at until it stands still.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { ElfFile } from '../elf/elf-file.js'
import { readUsdtNotes } from '../elf/stapsdt.js'
import { UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import type { TargetFile } from '../target/file.js'
import { type Mapping, mappingsOf } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import { resolveFiles } from '../target/resolve.js'
import type { LeaseDirectory, LeaseFile } from './lease-directory.js'
import { type CounterOwner, holdersOf, type KernelHolder } from './owners.js'
import { counterPlaces, kernelFindsCounter } from './places.js'
import { BREAKPOINT_BYTES, CLAIM, type FileCounter, inspectAt, type SharingSite } from './read.js'
import { readSpace, type SpaceId, sameSpace } from './space.js'

/**
 * What is the matter with a counter: the first of these that applies.
 * - `unreachable`: it cannot be read, or lies where the kernel never finds it;
 * - `claimed`: bit 15 is set, and a living agent has a lease for it;
 * - `orphan-claim`: bit 15 is set, and the agent that had the lease is dead;
 * - `foreign-claim`: it reads 0x8000, and there is no lease;
 * - `underflow`: it is negative otherwise;
 * - `leaked-count`: it is larger than the number of its armed sites;
 * - `stuck-breakpoint`: a site is armed, and nobody is known to hold it: a suspicion;
 * - `counted`: it is what the kernel counts; `idle`: it is 0, so that the probe is off. A site may be armed all the same, by a claim that is paused or a tracer that knows
 *   nothing of counters.
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
  /** Address of the counter; `null` if it has none in this process. */
  readonly address: bigint | null
  /** The 16 bits, unsigned; `null` if they cannot be read. */
  readonly value: number | null
  /** The low 15 bits; `null` if the value is negative without a claim, or cannot be read. */
  readonly kernelCount: number | null
  /** Whether bit 15 is set on account of a lease. */
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
  readonly names: ReadonlyArray<{ readonly provider: string; readonly name: string }>
  readonly address: bigint | null
  readonly value: number | null
  readonly armedSites: number
  readonly claimed: boolean
  readonly owners: readonly CounterOwner[]
  readonly state: CounterState
}

/** What is known of the machine when a process is looked at. */
export interface InspectContext {
  readonly native: Native
  readonly leases: readonly LeaseFile[]
  readonly holders: readonly KernelHolder[]
}

/** How often, and how far apart, something that looks wrong is looked at again. */
const LOOKS = 5
const LOOK_MS = 3

/**
 * Looks at all counters of a process. Calls back with each file's counters while the file is open.
 * @throws {UprobeError} `ERR_UPROBE_TARGET_DENIED`, `ERR_UPROBE_LIMIT`
 */
export async function inspectProcess(
  context: InspectContext,
  target: TargetProcess,
  onFile: (counters: readonly InspectedCounter[]) => void | Promise<void>,
): Promise<void> {
  const space = readSpace(target)
  const files = await resolveFiles(context.native, null, [target])
  try {
    for (const { file } of files) {
      const counters = await countersOf(file)
      if (counters.length === 0) continue
      const all = await target.maps(true)
      const view: View = { context, target, file, space, all, ofFile: mappingsOf(target.procDirectory, all, file.identity) }
      const found: InspectedCounter[] = []
      for (const each of counters) found.push(await inspectOne(view, each))
      await onFile(found)
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

/** The leases, or none where there is no directory. */
export function leasesIn(directory: LeaseDirectory | null): readonly LeaseFile[] {
  return directory === null ? [] : directory.list()
}

interface NamedCounter {
  readonly counter: FileCounter
  readonly names: ReadonlyArray<{ readonly provider: string; readonly name: string }>
}

interface View {
  readonly context: InspectContext
  readonly target: TargetProcess
  readonly file: TargetFile
  readonly space: SpaceId | null
  readonly all: readonly Mapping[]
  readonly ofFile: readonly Mapping[]
}

/** All counters of a file. A mapped file that is no ELF file has none. */
async function countersOf(file: TargetFile): Promise<NamedCounter[]> {
  let elf: ElfFile
  try {
    elf = await file.elf()
  } catch (error) {
    if (error instanceof UprobeError && error.code === 'ERR_UPROBE_BAD_ELF') return []
    throw error
  }
  const counters = new Map<bigint, { counter: FileCounter & { sites: SharingSite[] }; names: Array<{ provider: string; name: string }> }>()
  for (const { semaphoreVaddr, refCtrOffset, provider, name, vaddr, fileOffset } of await readUsdtNotes(elf)) {
    if (semaphoreVaddr === null || fileOffset === null) continue
    let known = counters.get(semaphoreVaddr)
    if (known === undefined) {
      const anonymousStart = refCtrOffset === null ? elf.anonymousStart(semaphoreVaddr) : null
      known = { counter: { vaddr: semaphoreVaddr, refCtrOffset, anonymousStart, provider, name, sites: [] }, names: [] }
      counters.set(semaphoreVaddr, known)
    }
    if (!known.names.some((one) => one.provider === provider && one.name === name)) known.names.push({ provider, name })
    if (known.counter.sites.some((site) => site.fileOffset === fileOffset)) continue
    known.counter.sites.push({ vaddr, fileOffset, original: await elf.read(fileOffset, BREAKPOINT_BYTES) })
  }
  return [...counters.values()]
}

async function inspectOne(view: View, named: NamedCounter): Promise<InspectedCounter> {
  let seen = look(view, named)
  for (let again = 1; again < LOOKS && isSuspect(seen.state); again++) {
    await delay(LOOK_MS)
    const next = look(view, named)
    const steady = next.value === seen.value && next.armedSites === seen.armedSites && next.state === seen.state
    seen = next
    // What moves is in transit: it begins anew, as long as there is patience.
    if (!steady && again === LOOKS - 1) return { ...next, state: 'counted' }
  }
  return seen
}

/** States that a tracer which is just coming or going can look like. */
function isSuspect(state: CounterState): boolean {
  return state === 'leaked-count' || state === 'stuck-breakpoint' || state === 'foreign-claim' || state === 'underflow'
}

function look({ context, target, file, space, all, ofFile }: View, { counter, names }: NamedCounter): InspectedCounter {
  const [place] = counterPlaces(all, ofFile, counter).places
  const address = place?.address ?? null
  const { value, armedSites, steady } = inspectAt(target, ofFile, address, counter.sites)
  const leased = value === null || space === null ? null : claimOf(context.leases, space, address, value)
  const claim = value !== null && (value & CLAIM) !== 0 ? leased : null
  const fileOffsets = counter.sites.map((site) => site.fileOffset)
  // Whoever has a lease keeps others away, also while its claim is paused.
  const owners = [...(leased?.owners ?? []), ...holdersOf(context.holders, file.identity, fileOffsets, target.pid)]
  const reachable = kernelFindsCounter(ofFile, counter)
  const state = steady ? stateOf(value, armedSites, claim, owners.length > 0, reachable) : 'counted'
  return { file, counter, names, address, value, armedSites, claimed: claim !== null, owners, state }
}

interface Claim {
  readonly alive: boolean
  readonly owners: readonly CounterOwner[]
}

/** The leases on a counter: for this very space, or, if it reads exactly 0x8000, one under which the process was forked. */
function claimOf(leases: readonly LeaseFile[], space: SpaceId, address: bigint | null, value: number): Claim | null {
  const matching = leases.filter(({ lease }) => {
    if (lease === null || !lease.counters.some((counter) => counter.address === address)) return false
    const { space: claimed } = lease.target
    return sameSpace(claimed, space) || (value === CLAIM && claimed.fingerprint === space.fingerprint)
  })
  if (matching.length === 0) return null
  const alive = matching.filter(({ ownerAlive, released }) => ownerAlive && !released)
  return {
    alive: alive.length > 0,
    owners: alive.flatMap(({ lease }) =>
      lease === null ? [] : [{ pid: lease.owner.pid, comm: lease.owner.comm, kind: 'lease' as const }],
    ),
  }
}

function stateOf(value: number | null, armedSites: number, claim: Claim | null, held: boolean, reachable: boolean): CounterState {
  if (value === null) return 'unreachable'
  if (claim !== null) return claim.alive ? 'claimed' : 'orphan-claim'
  // Where the kernel never counts, what somebody else has written is still worth saying.
  if (!reachable && value === 0) return 'unreachable'
  if (value === CLAIM) return 'foreign-claim'
  if ((value & CLAIM) !== 0) return 'underflow'
  if (value > armedSites) return 'leaked-count'
  if (armedSites > 0 && !held) return 'stuck-breakpoint'
  return value > 0 ? 'counted' : 'idle'
}
