/**
 * What another process has used, as the kernel has it in its books.
 *
 * /proc/PID/task/TID/schedstat has the time that each thread ran, in nanoseconds; /proc/PID/stat counts in ticks of 10 ms, which is too coarse here.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'

/** After its start, V8 collects garbage for some seconds more. A process counts as started when it has slept for this long. */
const QUIET_MS = 5000
/** A process that is still busy then does not get quiet at all, and is measured as it is. */
const PATIENCE_MS = 60_000

/** What a process did since it started. */
export interface Activity {
  readonly runNs: number
  /** How often a thread of it gave up a processor of its own accord, which is how often it had been woken. */
  readonly switches: number
}

export function activityOf(pid: number): Activity {
  let runNs = 0
  let switches = 0
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const directory = `/proc/${pid}/task/${thread}`
    try {
      runNs += Number(readFileSync(`${directory}/schedstat`, 'utf8').split(' ')[0])
      switches += Number(/^voluntary_ctxt_switches:\s*(\d+)/m.exec(readFileSync(`${directory}/status`, 'utf8'))?.[1] ?? 0)
    } catch (error) {
      if (!isGone(error)) throw error
    }
  }
  return { runNs, switches }
}

/** Whether it was a thread that ended since the listing. */
function isGone(error: unknown): boolean {
  return error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ESRCH')
}

/** Memory that a process has for itself and in use at this moment, in MiB: its resident pages without those of files. */
export function residentMib(pid: number): number {
  return Number(/^RssAnon:\s*(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? Number.NaN) / 1024
}

/** Waits until a process does nothing any more. */
export async function becomeQuiet(pid: number): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS
  let before = activityOf(pid)
  while (performance.now() < deadline) {
    await delay(QUIET_MS)
    const now = activityOf(pid)
    if (now.runNs === before.runNs) return
    before = now
  }
}
