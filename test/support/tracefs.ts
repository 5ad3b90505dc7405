/**
 * Events of tracefs at a site, as `perf probe` and scripts make them.
 *
 * tracefs need not be mounted on the machine: where it is not, it is mounted in a mount namespace of the command's own. The events in it are the kernel's all the same, so that each has a name that no other test has, and
 * goes when the test is over.
 */
import { execFileSync } from 'node:child_process'
import type { Cleanup } from './temp.js'

const ROOT = '/sys/kernel/tracing'

/** A command that runs another one where tracefs is mounted; it keeps the process id. */
export const WITH_TRACEFS: readonly string[] = [
  ...['unshare', '-m', 'sh', '-c'],
  `{ [ -e ${ROOT}/uprobe_events ] || mount -t tracefs tracefs ${ROOT}; } && exec "$@"`,
  'sh',
]

function shell(script: string): void {
  const [program = '', ...args] = [...WITH_TRACEFS, 'sh', '-c', script]
  execFileSync(program, args)
}

let made = 0

/** Writes an event at a site down; it is not switched on. Returns its name, `GROUP/NAME`. The path may have no blank. */
export function addEvent(t: Cleanup, path: string, fileOffset: bigint, refCtrOffset: bigint): string {
  const event = `uprobe_test_${process.pid}/event_${made++}`
  shell(`echo 'p:${event} ${path}:0x${fileOffset.toString(16)}(0x${refCtrOffset.toString(16)})' >> ${ROOT}/uprobe_events`)
  t.after(() => shell(`echo 0 > ${ROOT}/events/${event}/enable; echo '-:${event}' >> ${ROOT}/uprobe_events`))
  return event
}

/** Switches an event on or off. */
export function switchEvent(event: string, on: boolean): void {
  shell(`echo ${on ? 1 : 0} > ${ROOT}/events/${event}/enable`)
}
