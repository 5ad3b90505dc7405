/** What to say of a counter that cannot be held where it lies. */
import { UprobeError } from '../errors.js'
import type { PlaceProblem } from './places.js'

const WHY: Record<PlaceProblem, string> = {
  'not-mapped': 'the process does not map it',
  'read-only': 'it lies in memory that is mapped read-only',
  shared: 'it lies in a shared mapping, which is the file itself',
  odd: 'its address is not a multiple of 2',
  lost: 'it lies in no mapping of the process',
}

/**
 * A counter that the kernel never finds: it would arm the site and leave the probe switched off, without an error.
 * @param pid - `null` for every process
 * @param claimable - whether the package could claim it instead
 */
export function unreachableByKernel(where: string, pid: number | null, claimable: boolean): UprobeError {
  const help = claimable
    ? "Use counter: 'msb', with which the package switches the probe on itself."
    : 'The program has to be built with the semaphore in a private, writable section of the file.'
  return new UprobeError(
    'ERR_UPROBE_COUNTER_UNREACHABLE',
    `${where}: its counter lies where the kernel never finds it (in .bss, or in a read-only or shared mapping), so the probe would not be switched on. ${help}`,
    { site: where, ...(pid === null ? {} : { pid }) },
  )
}

/** A counter that the package must not write. */
export function unclaimable(where: string, pid: number, problem: PlaceProblem): UprobeError {
  return new UprobeError(
    'ERR_UPROBE_COUNTER_PLACE',
    `${where}: its counter cannot be claimed in process ${pid}: ${WHY[problem]}. ` +
      'The program has to be built with the semaphore in a private, writable section.',
    { site: where, pid },
  )
}
