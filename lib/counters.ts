/**
 * `counters()`: every USDT counter of a process, what it reads, and who holds it.
 */
import { type CounterInfo, inspectProcess, toInfo } from './counter/inspect.js'
import { KnownOwners } from './counter/known-owners.js'
import { defaultLeaseDirectory, LeaseDirectory } from './counter/lease-directory.js'
import { UprobeError } from './errors.js'
import { loadNative } from './native.js'
import { TargetProcess } from './target/process.js'

/** Options of {@link counters}. */
export interface CountersOptions {
  /** Directory of the leases; default: that of the tracer. */
  leaseDir?: string | undefined
}

/**
 * Lists the counters of every file that a process maps, one entry for each probe that has one. Nothing is written.
 *
 * @param pid - the process
 * @throws {UprobeError} `ERR_UPROBE_TARGET_GONE`, `ERR_UPROBE_TARGET_DENIED`, `ERR_UPROBE_BPF_PERMISSION`, `ERR_UPROBE_BAD_OPTION`; `ERR_UPROBE_LEASE` if the lease directory cannot be trusted, so that
 *   claims could not be told apart
 */
export async function counters(pid: number, options: CountersOptions = {}): Promise<CounterInfo[]> {
  if (!Number.isInteger(pid) || pid < 1) throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'Name the process by its positive pid.')
  const native = loadNative()
  const target = TargetProcess.open(native, pid)
  try {
    const directory = LeaseDirectory.open(native, options.leaseDir ?? defaultLeaseDirectory(), 'ignore')
    try {
      const found: CounterInfo[] = []
      await inspectProcess(new KnownOwners(native, directory), target, (inspected) => {
        for (const one of inspected) found.push(...toInfo(target.pid, one))
      })
      if (target.addressSpaceGone()) throw target.goneError()
      return found
    } finally {
      directory?.close()
    }
  } finally {
    target.close()
  }
}
