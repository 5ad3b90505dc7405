import { EFAULT, ESRCH, ESTALE } from '../errno.js'
import { errnoOf } from '../errors.js'

/** Whether a store failed since the memory is not there any more: the address space, the mapping, or what was mapped. The bit went with it. */
export function isGone(error: unknown): boolean {
  const errno = errnoOf(error)
  return errno === ESRCH || errno === EFAULT || errno === ESTALE
}
