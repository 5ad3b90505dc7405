/**
 * The other tracers: bpftrace, perf, and the same system calls from C (floor.c). Each holds one probe of the target until it is told to stop.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { isArmed } from '../../test/support/memory.js'
import type { Note } from '../../test/support/notes.js'
import { waitFor } from '../../test/support/wait.js'
import type { Workshop } from './workshop.js'

/** A probe of the running target. */
export interface Place {
  readonly pid: number
  readonly path: string
  readonly note: Note
}

/** A tracer that is attached. */
export interface Holder {
  /** Detaches. */
  stop(): Promise<void>
}

const TRACEFS = '/sys/kernel/tracing'

/** Whether a program is installed. */
export function isInstalled(program: string): boolean {
  return spawnSync(program, ['--version']).status === 0
}

/** A mode of floor.c. */
export function holdFloor(workshop: Workshop, floor: string, mode: 'count' | 'empty' | 'ints' | 'text', place: Place): Promise<Holder> {
  return hold(workshop, floor, [mode, place.path, offsetOf(place), String(place.pid)], place)
}

/** A bpftrace program with one probe. Output goes nowhere. */
export function holdBpftrace(workshop: Workshop, action: string, place: Place): Promise<Holder> {
  const { path, note, pid } = place
  const program = `usdt:${path}:${note.provider}:${note.name} { ${action} }`
  return hold(workshop, 'bpftrace', ['-p', String(pid), '-o', '/dev/null', '-e', program], place)
}

/**
 * `perf stat` or `perf record`. perf takes uprobes only as events of tracefs, so one is defined first. tracefs is mounted in a mount namespace of perf's own, since it need
 * not be mounted on the machine.
 */
export async function holdPerf(workshop: Workshop, command: readonly string[], place: Place): Promise<Holder> {
  const event = `uprobe_bench_${process.pid}/${place.note.name}`
  inTracefs(`echo 'p:${event} ${place.path}:${offsetOf(place)}' >> ${TRACEFS}/uprobe_events`)
  workshop.after(() => inTracefs(`echo '-:${event}' >> ${TRACEFS}/uprobe_events`))
  const perf = ['perf', ...command, '-e', event.replace('/', ':'), '-p', String(place.pid), '-o', '/dev/null']
  return hold(workshop, 'unshare', ['-m', 'sh', '-c', `mount -t tracefs tracefs ${TRACEFS} && exec "$@"`, 'sh', ...perf], place)
}

function inTracefs(script: string): void {
  const { status, stderr } = spawnSync('unshare', ['-m', 'sh', '-c', `mount -t tracefs tracefs ${TRACEFS} && ${script}`], {
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`tracefs refused ${script}: ${stderr}`)
}

function offsetOf({ note }: Place): string {
  return `0x${note.fileOffset.toString(16)}`
}

/** Starts a tracer and waits until its breakpoint is in the target. Closing its input or SIGINT ends it. */
async function hold(workshop: Workshop, program: string, args: readonly string[], place: Place): Promise<Holder> {
  const child = spawn(program, args, { stdio: ['pipe', 'ignore', 'pipe'] })
  let complaints = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaints += text
  })
  workshop.after(() => end(child, 'SIGKILL'))
  await waitFor(`${program} to attach`, () => {
    if (child.exitCode !== null) throw new Error(`${program} ${args.join(' ')} ended: ${complaints}`)
    return isArmed(place.pid, place.path, place.note.fileOffset)
  })
  return { stop: () => end(child, 'SIGINT') }
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('close', resolve))
  child.kill(signal)
  await ended
}
