/**
 * Everybody who is known to hold counters: agents by their leases, and registrations by the kernel's lists. Asked for when it is needed, kept for all processes that are looked at, and asked
 * for anew when something looks wrong, since whoever came meanwhile is in no old list.
 */
import type { Native } from '../native.js'
import { type FileIdentity, sameFile } from '../target/maps.js'
import type { LeaseRecord } from './lease.js'
import type { LeaseDirectory, LeaseFile } from './lease-directory.js'
import { type CounterOwner, type KernelHolder, kernelHolders } from './owners.js'
import { CLAIM } from './read.js'
import { type SpaceId, sameSpace } from './space.js'

/** Where a claim is looked for. */
export interface ClaimedPlace {
  /** The address space. */
  readonly space: SpaceId
  /** Since when the process runs, in clock ticks. */
  readonly startTime: bigint
  readonly file: FileIdentity
  readonly address: bigint
  /** The 16 bits that are there. */
  readonly value: number
}

/** What leases say of a counter. */
export interface KnownClaim {
  /** Whether an agent that lives has one. Otherwise there are only those of dead agents, or some that were given back. */
  readonly alive: boolean
  /** The living agents, each once. */
  readonly owners: readonly CounterOwner[]
}

/** See the module's comment. */
export class KnownOwners {
  #leases: readonly LeaseFile[] | null = null
  #holders: Promise<readonly KernelHolder[]> | null = null

  /** @param directory - where leases are; `null` if there is no such directory, and so no lease */
  constructor(
    readonly native: Native,
    private readonly directory: LeaseDirectory | null,
  ) {}

  /**
   * What the kernel lists.
   * @throws {UprobeError} `ERR_UPROBE_BPF_PERMISSION`
   */
  holders(): Promise<readonly KernelHolder[]> {
    this.#holders ??= kernelHolders(this.native)
    return this.#holders
  }

  /** The claim on a counter; `null` if there is no lease for it. */
  claimOn(place: ClaimedPlace): KnownClaim | null {
    this.#leases ??= this.directory?.list() ?? []
    const found = this.#leases.flatMap(({ lease, released, left, ownerAlive }) =>
      lease !== null && covers(lease, place) ? [{ lease, alive: ownerAlive && !released && !left }] : [],
    )
    if (found.length === 0) return null
    const owners = new Map<number, CounterOwner>()
    for (const { alive, lease } of found) {
      const { pid, comm } = lease.owner
      if (alive) owners.set(pid, { pid, comm, kind: 'lease' })
    }
    return { alive: owners.size > 0, owners: [...owners.values()] }
  }

  /** Forgets what was listed, so that the next question is asked anew. */
  forget(): void {
    this.#leases = null
    this.#holders = null
  }
}

/**
 * Whether a lease is for a counter: for that very space, or for the one that the process was forked from. A child is born with its parent's bit, and with nothing else of the claim: its counter reads
 * exactly 0x8000.
 */
function covers({ target, file, counters }: LeaseRecord, place: ClaimedPlace): boolean {
  if (!counters.some(({ address }) => address === place.address) || !sameFile(file, place.file)) return false
  if (sameSpace(target.space, place.space)) return true
  return place.value === CLAIM && target.space.fingerprint === place.space.fingerprint && place.startTime >= target.startTime
}
