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

/** What to say of a counter that the kernel takes for negative. */
export function negativeMessage(where: string, pid: number, value: number): string {
  return (
    `${where}: its counter reads 0x${value.toString(16)} in process ${pid}. The kernel takes that as negative and refuses to count. ` +
    `Another tool set the most significant bit, or subtracted too much. \`uprobe repair ${pid}\` says what can be done.`
  )
}

/** A counter that the kernel could not count on. */
export function negativeCounter(where: string, pid: number, value: number): UprobeError {
  return new UprobeError('ERR_UPROBE_COUNTER_NEGATIVE', negativeMessage(where, pid, value), { site: where, pid })
}
