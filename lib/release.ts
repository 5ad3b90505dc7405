/**
 * `release()`: asks the agents of this package that hold claims to give way to another tool.
 */
import { askToGiveWay } from './counter/control.js'
import type { LeaseRecord } from './counter/lease.js'
import { defaultLeaseDirectory, hiddenLeases, LeaseDirectory } from './counter/lease-directory.js'
import { recoverOrphans } from './counter/recover.js'
import { UprobeError } from './errors.js'
import { childLogger } from './log.js'
import { loadNative, type Native } from './native.js'
import { TargetProcess } from './target/process.js'

/** Options of {@link release}. */
export interface ReleaseOptions {
  /** Only claims in this process; default: all. */
  pid?: number | undefined
  /** Directory of the leases; default: that of the tracer. */
  leaseDir?: string | undefined
  /** Called with `ERR_UPROBE_LEASE` where the leases of root's agents may not be read, so that those agents are not asked. */
  onUnseen?: ((error: UprobeError) => void) | undefined
  /** Called for each agent that has not answered within a second. It is waited for, 10 seconds in all. */
  onWaiting?: ((owner: ReleaseOwner) => void) | undefined
}

/** The agent that holds a claim. */
export interface ReleaseOwner {
  readonly pid: number
  readonly comm: string
  readonly kind: 'lease'
}

/** A claim on one counter in one process, and whether its owner gave it up. */
export interface ReleaseEntry {
  readonly pid: number
  readonly path: string
  readonly provider: string
  readonly name: string
  readonly owner: ReleaseOwner
  readonly released: boolean
  /** Why it was not, and what helps; `null` if it was. */
  readonly reason: string | null
}

/** When whoever asks is told that an agent is waited for. */
const SAY_MS = 1000

/**
 * Asks every agent that holds a claim to give way: to clear it, and to close the registrations and guards by which it keeps kernel tracers away. Their probes are paused, and
 * take their counters again when they are resumed.
 *
 * Agents are found by their leases; one that does not answer within 10 seconds keeps its claims for now, and its entries say so: once it runs again, it gives way all the same. A claim whose agent is dead,
 * or could not clear it, is listed as not released, and is for `repair()`.
 * @throws {UprobeError} `ERR_UPROBE_LEASE` if the lease directory cannot be trusted; `ERR_UPROBE_TARGET_GONE` if there is no process `pid`, and no claim on it either; `ERR_UPROBE_BAD_OPTION`
 */
export async function release(options: ReleaseOptions = {}): Promise<ReleaseEntry[]> {
  const pid = options.pid ?? null
  if (pid !== null && (!Number.isInteger(pid) || pid < 1))
    throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'Option pid: give a positive pid.')
  const native = loadNative()
  const hidden = hiddenLeases(options.leaseDir)
  if (hidden !== null) options.onUnseen?.(hidden)
  const directory = LeaseDirectory.open(native, options.leaseDir ?? defaultLeaseDirectory(), 'ignore')
  const entries = directory === null ? [] : await releaseIn(native, directory, pid, options.onWaiting)
  // An agent in another pid namespace may have a claim on a process by a number that is nobody's here.
  if (pid !== null && entries.length === 0) TargetProcess.open(native, pid).close()
  return entries
}

/** Asks the agents whose leases are in a directory, and closes it. */
async function releaseIn(
  native: Native,
  directory: LeaseDirectory,
  pid: number | null,
  onWaiting: ReleaseOptions['onWaiting'],
): Promise<ReleaseEntry[]> {
  try {
    const byOwner = new Map<string, HeldLease[]>()
    const held = directory.list(({ released, left, ownerAlive }) => ownerAlive && !released && !left)
    for (const { name, lease, ownerId } of held) {
      if (lease === null || (pid !== null && lease.target.pid !== pid)) continue
      byOwner.set(ownerId, [...(byOwner.get(ownerId) ?? []), { name, lease }])
    }
    const asked = await Promise.all([...byOwner].map(([ownerId, leases]) => releaseOf(directory, ownerId, leases, pid, onWaiting)))
    const names = new Set([...byOwner.values()].flat().flatMap(({ name }) => [name, leftName(name)]))
    return [...asked.flat(), ...(await orphans(native, directory, pid, names))]
  } finally {
    directory.close()
  }
}

/** The claims that agents have left, but for those of leases that were asked for. */
async function orphans(
  native: Native,
  directory: LeaseDirectory,
  pid: number | null,
  except: ReadonlySet<string>,
): Promise<ReleaseEntry[]> {
  const found = await recoverOrphans(native, directory, childLogger(false, 'release'), { pid: pid ?? undefined, dryRun: true })
  return found.flatMap(({ name, lease, outcome }) => {
    if (lease === null || except.has(name) || (outcome !== 'cleared' && outcome !== 'unreachable')) return []
    return entriesOf(lease, `the agent has left it; \`uprobe repair ${lease.target.pid} --apply\` clears it`)
  })
}

/** What a lease is called that its owner gives up with something left to do (lease-owner.ts). */
function leftName(name: string): string {
  return name.replace(/^lease-/, 'left-')
}

interface HeldLease {
  readonly name: string
  readonly lease: LeaseRecord
}

async function releaseOf(
  directory: LeaseDirectory,
  ownerId: string,
  leases: readonly HeldLease[],
  pid: number | null,
  onWaiting: ReleaseOptions['onWaiting'],
): Promise<ReleaseEntry[]> {
  const [first] = leases
  const timer = setTimeout(() => {
    if (first !== undefined) onWaiting?.(ownerOf(first.lease))
  }, SAY_MS)
  let refusal = 'the agent could not clear it'
  try {
    await askToGiveWay(directory, ownerId, pid)
  } catch (error) {
    if (!(error instanceof UprobeError)) throw error
    refusal = error.message
  } finally {
    clearTimeout(timer)
  }
  // What became of each lease says more than an answer: it is gone, or given back; or still there, or given up with something left.
  const kept = new Set(directory.names())
  const isKept = (name: string): boolean => kept.has(name) || kept.has(leftName(name))
  return leases.flatMap(({ name: file, lease }) => entriesOf(lease, isKept(file) ? refusal : null))
}

function entriesOf(lease: LeaseRecord, reason: string | null): ReleaseEntry[] {
  const { target, file, counters } = lease
  return counters.map(({ provider, name }) => ({
    pid: target.pid,
    path: file.path,
    provider,
    name,
    owner: ownerOf(lease),
    released: reason === null,
    reason,
  }))
}

function ownerOf({ owner: { pid, comm } }: LeaseRecord): ReleaseOwner {
  return { pid, comm, kind: 'lease' }
}
