/**
 * `release()`: asks the agents of this package that hold claims to give way to another tool.
 */
import { askToGiveWay } from './counter/control.js'
import type { LeaseRecord } from './counter/lease.js'
import { defaultLeaseDirectory, LeaseDirectory } from './counter/lease-directory.js'
import { UprobeError } from './errors.js'
import { loadNative } from './native.js'

/** Options of {@link release}. */
export interface ReleaseOptions {
  /** Only claims in this process; default: all. */
  pid?: number | undefined
  /** Directory of the leases; default: that of the tracer. */
  leaseDir?: string | undefined
}

/** A claim on one counter in one process, and whether its owner gave it up. */
export interface ReleaseEntry {
  readonly pid: number
  readonly path: string
  readonly provider: string
  readonly name: string
  /** The agent that holds the claim. */
  readonly owner: { readonly pid: number; readonly comm: string; readonly kind: 'lease' }
  readonly released: boolean
}

/**
 * Asks every agent that holds a claim to give way: to clear it, and to close the registrations and guards by which it keeps kernel tracers away. Their probes are paused, and
 * take their counters again when they are resumed.
 *
 * Agents are found by their leases; one that does not answer keeps its claims, and its entries say so. A claim whose agent is dead is no business of anybody's
 * but `repair()`.
 * @throws {UprobeError} `ERR_UPROBE_LEASE` if the lease directory cannot be trusted; `ERR_UPROBE_BAD_OPTION`
 */
export async function release(options: ReleaseOptions = {}): Promise<ReleaseEntry[]> {
  const pid = options.pid ?? null
  if (pid !== null && (!Number.isInteger(pid) || pid < 1))
    throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'Option pid: give a positive pid.')
  const directory = LeaseDirectory.open(loadNative(), options.leaseDir ?? defaultLeaseDirectory(), 'ignore')
  if (directory === null) return []
  try {
    const byOwner = new Map<string, HeldLease[]>()
    for (const { name, lease, released, left, ownerId, ownerAlive } of directory.list()) {
      if (lease === null || released || left || !ownerAlive || (pid !== null && lease.target.pid !== pid)) continue
      byOwner.set(ownerId, [...(byOwner.get(ownerId) ?? []), { name, lease }])
    }
    const entries: ReleaseEntry[] = []
    for (const [ownerId, leases] of byOwner) entries.push(...(await releaseOf(directory, ownerId, leases, pid)))
    return entries
  } finally {
    directory.close()
  }
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
): Promise<ReleaseEntry[]> {
  try {
    await askToGiveWay(directory, ownerId, pid)
  } catch (error) {
    if (!(error instanceof UprobeError)) throw error
  }
  // What became of each lease says more than an answer: it is gone, or given back; or still there, or given up with something left (lease-owner.ts).
  const kept = new Set(directory.names())
  const isKept = (name: string): boolean => kept.has(name) || kept.has(name.replace(/^lease-/, 'left-'))
  return leases.flatMap(({ name: file, lease }) => entriesOf(lease, !isKept(file)))
}

function entriesOf({ target, file, counters, owner }: LeaseRecord, released: boolean): ReleaseEntry[] {
  return counters.map(({ provider, name }) => ({
    pid: target.pid,
    path: file.path,
    provider,
    name,
    owner: { pid: owner.pid, comm: owner.comm, kind: 'lease' as const },
    released,
  }))
}
