/**
 * Whether this kernel's uprobe_multi link can be relied on, found by trying it on ourselves.
 *
 * The link came with 6.6, but until 6.10 its filter compared threads instead of processes, so a link for one process missed the hits of all
 * threads but one (`uprobe_prog_run`, kernel/trace/bpf_trace.c). Distributions backport such fixes, so the version says little. Instead
 * a link is put on a probe of our own addon, for our own process; another thread fires the probe, and the program must have counted each time.
 */

import { compileCapture, cookieOf, STATS_VALUE_BYTES } from '../capture/compile.js'
import { readUsdtNotes } from '../elf/usdt-notes.js'
import { UprobeError } from '../errors.js'
import { addonPath, type Native } from '../native.js'
import { once } from '../once.js'
import { TargetFile } from '../target/file.js'
import {
  BPF_LICENSE,
  BPF_MAP_TYPE_PERCPU_ARRAY,
  BPF_PROG_TYPE_KPROBE,
  BPF_TRACE_UPROBE_MULTI,
  createMap,
  loadProgram,
} from './bpf-objects.js'
import { closeRegistrations } from './close.js'
import { readHits } from './stats.js'

/** What the uprobe_multi link is good for. */
export interface MultiSupport {
  /** A link for every process works. */
  readonly allProcesses: boolean
  /** A link for one process works, and sees all of its threads. */
  readonly oneProcess: boolean
  /** Why not, when one of them is false. */
  readonly reason: string | null
}

const TRIES = 3

/** Tries the link once in the life of this process. Takes about 30 ms. */
export const multiSupport: (native: Native) => Promise<MultiSupport> = once(tryLink)

async function tryLink(native: Native): Promise<MultiSupport> {
  const none = (reason: string): MultiSupport => ({ allProcesses: false, oneProcess: false, reason })
  const file = TargetFile.open(native, addonPath())
  const fds: number[] = []
  try {
    const note = (await readUsdtNotes(await file.elf())).find((n) => n.provider === 'uprobe' && n.name === 'selftest')
    if (note === undefined || note.fileOffset === null) return none('the addon carries no usdt:uprobe:selftest')
    const statsFd = createMap(native, {
      type: BPF_MAP_TYPE_PERCPU_ARRAY,
      keyBytes: 4,
      valueBytes: STATS_VALUE_BYTES,
      maxEntries: 1,
      name: 'uprobe_selftest',
    })
    fds.push(statsFd)
    const arch = process.arch === 'arm64' ? 'arm64' : 'x64'
    const insns = compileCapture({
      arch,
      attach: 'multi',
      probeId: 0,
      slot: 0,
      shapes: [{ operands: [], strings: [], stringLimit: 0 }],
      statsFd,
      ringFd: null,
      ringBytes: 0,
      excludeTid: null,
      filter: null,
      sleepable: false,
    })
    const program = {
      type: BPF_PROG_TYPE_KPROBE,
      expectedAttachType: BPF_TRACE_UPROBE_MULTI,
      insns,
      license: BPF_LICENSE,
      name: 'uprobe_selftest',
    }
    try {
      const progFd = await loadProgram(native, program)
      fds.push(progFd)
      fds.push(
        await native.bpfLinkCreateUprobeMulti({
          progFd,
          path: file.kernelPath,
          fileOffsets: BigUint64Array.of(note.fileOffset),
          refCtrOffsets: null,
          cookies: BigUint64Array.of(cookieOf(0, 0)),
          retprobe: false,
          pid: process.pid,
        }),
      )
    } catch (error) {
      if (error instanceof UprobeError && error.code !== 'ERR_UPROBE_BPF_REJECTED') throw error
      return none(`the kernel refuses the link (${error instanceof Error ? error.message.split('.')[0] : String(error)})`)
    }
    native.fireSelfTest(TRIES)
    const hits = readHits(native, statsFd)
    // More are those of another Worker that tries at the same moment.
    if (hits >= TRIES) return { allProcesses: true, oneProcess: true, reason: null }
    return { allProcesses: true, oneProcess: false, reason: `its process filter misses threads (${hits} of ${TRIES} hits seen)` }
  } finally {
    await closeRegistrations(native, fds)
    file.close()
  }
}
