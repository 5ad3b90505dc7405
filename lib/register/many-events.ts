/**
 * How many perf events one probe may take.
 *
 * Opening one takes the kernel a fifth of a millisecond, and closing it several grace periods, one event after another under one lock, whoever closes them: ten thousand took 804 seconds.
 * So a probe of so many sites is refused where there is no uprobe_multi link, before anything is registered, and one of a hundred says what it costs.
 */
import { UprobeError } from '../errors.js'

/** It takes the kernel two minutes to close these. */
const MOST_EVENTS = 1024
/** From so many on it is said what they cost. */
const MANY_EVENTS = 64
/** What closing a perf event takes the kernel: 68 ms on Linux 6.18, and 108 ms with a program on it, one after another, whoever closes them. */
const CLOSE_EVENT_MS = 108

/** Sites that are registered in one way. */
interface Registered {
  readonly via: 'perf' | 'multi'
  readonly sites: readonly unknown[]
}

/**
 * Checks how many perf events parts would take.
 * @returns what is to be said of it, as sentences
 * @throws {UprobeError} `ERR_UPROBE_TOO_MANY_SITES`
 */
export function checkEvents(parts: readonly Registered[]): string[] {
  const events = parts.reduce((sum, { via, sites }) => sum + (via === 'perf' ? sites.length : 0), 0)
  if (events < MANY_EVENTS) return []
  const seconds = Math.round((events * CLOSE_EVENT_MS) / 1000)
  const cost = `${events} sites need a perf event each, which the kernel closes one after another, so that detaching would take about ${seconds} seconds`
  const remedy = 'Linux 6.10 and later register them by one uprobe_multi link, unless registration says otherwise.'
  if (events <= MOST_EVENTS) return [`${cost}. ${remedy}`]
  throw new UprobeError(
    'ERR_UPROBE_TOO_MANY_SITES',
    `${cost}; ${MOST_EVENTS} is the most. Narrow the pattern, or name fewer processes. ${remedy}`,
  )
}
