/**
 * What the claims of one tracer share: the lease directory, the lease owner that stands for the tracer in it, and the socket at which others ask it to give way.
 *
 * Nothing of it exists before the first claim, so that a tracer that only counts with the kernel writes nothing to the disk.
 */
import type { Logger } from '../log.js'
import { loadNative } from '../native.js'
import { ControlServer, type ReleasedCounter } from './control.js'
import { defaultLeaseDirectory, LeaseDirectory } from './lease-directory.js'
import { LeaseOwner } from './lease-owner.js'
import { ActiveClaims, type ClaimContext } from './process-claim.js'
import { recoverOrphans } from './recover.js'

interface Open extends ClaimContext {
  readonly directory: LeaseDirectory
  readonly control: ControlServer
}

/** See the module's comment. */
export class TracerClaims {
  #open: Promise<Open> | null = null

  /**
   * @param path - the lease directory; `null` for the default
   * @param giveWay - releases the claims in one process, or all, and says which they were
   */
  constructor(
    private readonly path: string | null,
    private readonly log: Logger,
    private readonly giveWay: (pid: number | null) => Promise<ReleasedCounter[]>,
  ) {}

  /**
   * What a claim is made with.
   * @throws {UprobeError} `ERR_UPROBE_LEASE`
   */
  async context(): Promise<ClaimContext> {
    this.#open ??= this.#openAll()
    const opening = this.#open
    try {
      return await opening
    } catch (error) {
      // The reason may go away: a full disk, a directory with wrong rights.
      if (this.#open === opening) this.#open = null
      throw error
    }
  }

  /** Clears what agents that died have left. That it cannot be done does not keep a probe from being attached. */
  async recover(): Promise<void> {
    const native = loadNative()
    try {
      const directory = LeaseDirectory.open(native, this.#directory, 'ignore')
      if (directory === null) return
      try {
        await recoverOrphans(native, directory, this.log)
      } finally {
        directory.close()
      }
    } catch (error) {
      this.log.warn({ err: error }, 'leases that other agents may have left cannot be looked at')
    }
  }

  /** Removes what stands for the tracer. After its probes have ended. Idempotent. */
  async close(): Promise<void> {
    const open = this.#open
    this.#open = null
    if (open === null) return
    const [result] = await Promise.allSettled([open])
    if (result.status === 'rejected') return
    const { control, owner, directory } = result.value
    await control.close()
    owner.close()
    directory.close()
  }

  get #directory(): string {
    return this.path ?? defaultLeaseDirectory()
  }

  async #openAll(): Promise<Open> {
    const native = loadNative()
    const directory = LeaseDirectory.open(native, this.#directory, 'create')
    if (directory === null) throw new Error('a lease directory that was to be made is missing')
    try {
      const owner = LeaseOwner.create(directory, native, this.log)
      try {
        const control = await ControlServer.listen(directory, owner.id, this.giveWay, this.log)
        return { native, owner, active: new ActiveClaims(), directory, control }
      } catch (error) {
        owner.close()
        throw error
      }
    } catch (error) {
      directory.close()
      throw error
    }
  }
}
