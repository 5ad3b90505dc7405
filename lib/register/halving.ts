/**
 * Finding which of many sites is refused, where the kernel says it of all of them together.
 */
import { EINVAL, EIO, ENOEXEC, ENOTSUPP } from '../errno.js'
import { errnoOf } from '../errors.js'

const SITE_ERRNOS: ReadonlySet<number | undefined> = new Set([EIO, ENOEXEC, EINVAL, ENOTSUPP])

/** Whether a refusal speaks of one site, and not of the whole call. */
export function saysOneSite(error: unknown): boolean {
  return SITE_ERRNOS.has(errnoOf(error))
}

/** One that is refused alone, and why. */
export interface Refused<T> {
  readonly one: T
  readonly error: unknown
}

/**
 * Those that are refused, found by halving, one after the other: whoever needs the first only goes no further. None, if the halves are taken that together were not.
 * @param error - why all together are
 * @param attempt - tries some, and takes them back; answers why they are refused, or `null`
 */
export async function* refusedAmong<T>(
  all: readonly T[],
  error: unknown,
  attempt: (some: readonly T[]) => Promise<unknown>,
): AsyncGenerator<Refused<T>, void, undefined> {
  const [only] = all
  if (only !== undefined && all.length === 1) {
    yield { one: only, error }
    return
  }
  const middle = all.length >> 1
  for (const half of [all.slice(0, middle), all.slice(middle)]) {
    const halfError = await attempt(half)
    if (halfError !== null) yield* refusedAmong(half, halfError, attempt)
  }
}
