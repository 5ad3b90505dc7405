/**
 * The clocks of the machine: the one by which the kernel says when a process began, time since boot, time asleep included, in ticks; and the monotonic one, which BPF programs read.
 *
 * A process in a time namespace sees both moved by offsets (time_namespaces(7)), and so it sees the start times of others. What one agent writes down for another to compare is
 * therefore the machine's own time, and so is what it tells a program in the kernel.
 */
import { readFileSync } from 'node:fs'
import { readTextOrNull } from '../read-text.js'

/** USER_HZ: the unit of times in /proc, 100 a second on every supported architecture. */
export const NS_PER_TICK = 10_000_000n

/** The machine's time since boot, in ticks, rounded down as start times are: what is born after the call has one that is not smaller. */
export function ticksSinceBoot(): bigint {
  // `uptime_proc_show`, fs/proc/uptime.c, and `do_task_stat`, fs/proc/array.c: the same clock.
  const [, seconds = '0', hundredths = '0'] = /^(\d+)\.(\d\d) /.exec(readFileSync('/proc/uptime', 'utf8')) ?? []
  return machineTicks(BigInt(seconds) * 100n + BigInt(hundredths))
}

/** A start time, as /proc/PID/stat gives it to us, in the machine's time. */
export function machineTicks(startTime: bigint): bigint {
  return startTime - OFFSET_TICKS
}

/** The machine's monotonic time, in nanoseconds, as bpf_ktime_get_ns has it. */
export function machineMonotonicNs(): bigint {
  return process.hrtime.bigint() - MONOTONIC_OFFSET_NS
}

/** How far our time namespace is ahead. Kernels before 5.6 have none; a process cannot change its own. */
const OFFSET_TICKS = readOffsetNs('boottime') / NS_PER_TICK
const MONOTONIC_OFFSET_NS = readOffsetNs('monotonic')

function readOffsetNs(clock: 'boottime' | 'monotonic'): bigint {
  const offsets = readTextOrNull('/proc/self/timens_offsets') ?? ''
  const [, seconds = '0', nanoseconds = '0'] = new RegExp(`^${clock}\\s+(-?\\d+)\\s+(\\d+)`, 'm').exec(offsets) ?? []
  return BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds)
}
