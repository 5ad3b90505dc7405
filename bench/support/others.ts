/**
 * The other tracers: bpftrace, perf, bcc (peer-bcc.py), and the same system calls from C (floor.c). Each holds one probe of the target until it is told to stop.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { isArmed } from '../../test/support/memory.js'
import type { Note } from '../../test/support/notes.js'
import type { Workshop } from './workshop.js'

/** Sites of the running target: one, or a pair. */
export interface Place {
  readonly pid: number
  readonly path: string
  readonly note: Note
  /** The second of a pair. */
  readonly second?: Note
}

/** A tracer that is attached. */
export interface Holder {
  /** Detaches. */
  stop(): Promise<void>
}

/** What floor.c and peer-bcc.py can be told to do. */
export type FloorMode = 'count' | 'empty' | 'tally' | 'filter' | 'ints' | 'text' | 'histogram' | 'pair' | 'stack'
export type BccMode = Exclude<FloorMode, 'count' | 'empty'>

/** bpftrace takes half a second to attach or detach a site, where there are many. */
const ATTACH_TIMEOUT_MS = 180_000
const END_TIMEOUT_MS = 120_000

const TRACEFS = '/sys/kernel/tracing'
const MOUNT_TRACEFS = `{ mountpoint -q ${TRACEFS} || mount -t tracefs tracefs ${TRACEFS}; }`

/** Whether a program is installed. */
export function isInstalled(program: string, harmless = '--version'): boolean {
  return spawnSync(program, [harmless]).status === 0
}

/** A mode of floor.c. */
export function holdFloor(workshop: Workshop, floor: string, mode: FloorMode, place: Place): Promise<Holder> {
  const second = place.second === undefined ? [] : [offsetOf(place.second)]
  return hold(workshop, floor, [mode, place.path, offsetOf(place.note), String(place.pid), ...second], place)
}

/** A bpftrace program: one action for the site, or two for the pair. Output goes nowhere. */
export function holdBpftrace(workshop: Workshop, place: Place, action: string, secondAction?: string): Promise<Holder> {
  const { path, note, second, pid } = place
  const clauses = [`usdt:${path}:${note.provider}:${note.name} ${action}`]
  if (second !== undefined) clauses.push(`usdt:${path}:${second.provider}:${second.name} ${secondAction}`)
  return hold(workshop, 'bpftrace', ['-p', String(pid), '-o', '/dev/null', '-e', clauses.join(' ')], place)
}

/** Registers of the first three arguments, as tracefs has them. */
const ARGUMENTS = process.arch === 'arm64' ? ['%x0', '%x1', '%x2'] : ['%di', '%si', '%dx']

/** How many events were defined. An event is taken back with the workshop, and until then its name is taken. */
let events = 0

/**
 * `perf stat` or `perf record`. perf takes uprobes only as events of tracefs, so one is defined first. Where tracefs is not mounted on the machine, it is in a mount
 * namespace of perf's own.
 * @param reads - what the event reads: so many of the arguments a, b and text
 */
export async function holdPerf(workshop: Workshop, command: readonly string[], place: Place, reads = 0): Promise<Holder> {
  const event = `uprobe_bench_${process.pid}/${place.note.name}_${++events}`
  const [a, b, text] = ARGUMENTS
  const fields = [`a=${a}:s32`, `b=${b}:s32`, `text=+0(${text}):ustring`].slice(0, reads).join(' ')
  inTracefs(`echo 'p:${event} ${place.path}:${offsetOf(place.note)} ${fields}' >> ${TRACEFS}/uprobe_events`)
  workshop.after(() => inTracefs(`echo '-:${event}' >> ${TRACEFS}/uprobe_events`))
  const [verb = '', ...options] = command
  const perf = ['perf', verb, '-e', event.replace('/', ':'), '-p', String(place.pid), '-o', '/dev/null', ...options]
  return hold(workshop, 'unshare', ['-m', 'sh', '-c', `${MOUNT_TRACEFS} && exec "$@"`, 'sh', ...perf], place)
}

/** Debian's Python, for which its bcc is made; another one may come first in the PATH. */
const PYTHON = '/usr/bin/python3'

/**
 * Why bcc cannot run here, or how. It compiles C against kernel headers at run time and looks for those of the running kernel. Our programs use nothing of them that differs between
 * kernels, so any that are installed will do; they are put in the place of the right ones in a mount namespace of bcc's own.
 */
export function findBcc(): { readonly headers: string } | { readonly missing: string } {
  if (spawnSync(PYTHON, ['-c', 'import bcc']).status !== 0) return { missing: 'python3-bpfcc is not installed' }
  if (existsSync(`/lib/modules/${release()}/build`)) return { headers: '' }
  const known = existsSync('/usr/src') ? readdirSync('/usr/src').filter((name) => name.startsWith('linux-headers-')) : []
  const build = known.find((name) => existsSync(`/usr/src/${name}/include/generated/autoconf.h`))
  const source = known.find((name) => existsSync(`/usr/src/${name}/include/linux/kconfig.h`))
  if (build === undefined || source === undefined) return { missing: 'bcc needs kernel headers, and none are installed' }
  return {
    headers: `mount -t tmpfs tmpfs /lib/modules && mkdir /lib/modules/${release()} && cd /lib/modules/${release()} && ln -s /usr/src/${build} build && ln -s /usr/src/${source} source && cd / &&`,
  }
}

/** A mode of peer-bcc.py. */
export function holdBcc(workshop: Workshop, headers: string, mode: BccMode, place: Place): Promise<Holder> {
  const probes = [place.note, place.second].flatMap((note) => (note === undefined ? [] : [note.name]))
  const command = [PYTHON, join(__dirname, '..', 'peer-bcc.py'), mode, String(place.pid), ...probes]
  return hold(workshop, 'unshare', ['-m', 'sh', '-c', `${headers} exec "$@"`, 'sh', ...command], place)
}

function inTracefs(script: string): void {
  const { status, stderr } = spawnSync('unshare', ['-m', 'sh', '-c', `${MOUNT_TRACEFS} && ${script}`], {
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`tracefs refused ${script}: ${stderr}`)
}

function offsetOf({ fileOffset }: Note): string {
  return `0x${fileOffset.toString(16)}`
}

/** Starts a tracer and waits until its breakpoints are in the target. Closing its input or SIGINT ends it. */
async function hold(workshop: Workshop, program: string, args: readonly string[], place: Place): Promise<Holder> {
  const child = spawn(program, args, { stdio: ['pipe', 'ignore', 'pipe'] })
  let complaints = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaints += text
  })
  workshop.after(() => end(child, 'SIGKILL'))
  const isAttached = (): boolean =>
    [place.note, place.second].every((note) => note === undefined || isArmed(place.pid, place.path, note.fileOffset))
  for (const deadline = Date.now() + ATTACH_TIMEOUT_MS; !isAttached(); await delay(1)) {
    if (child.exitCode !== null) throw new Error(`${program} ${args.join(' ')} ended: ${complaints}`)
    if (Date.now() > deadline) throw new Error(`waited in vain for ${program} to attach`)
  }
  return { stop: () => end(child, 'SIGINT') }
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('close', resolve))
  child.kill(signal)
  // One that does not mind must not keep the benchmark from its end.
  const timer = setTimeout(() => child.kill('SIGKILL'), END_TIMEOUT_MS)
  await ended
  clearTimeout(timer)
}
