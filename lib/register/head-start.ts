/**
 * A head start for the registrations of an attach: the kernel makes ready for them while files are still read.
 *
 * Whoever registers a uprobe takes a lock of the kernel's that each fork takes for reading (`dup_mmap_sem`, kernel/events/uprobes.c). The first one to take it after a while waits until every processor
 * knows of that, some 5 ms; those that come in the next milliseconds do not (`rcu_sync_enter`, kernel/rcu/sync.c). So at the beginning of an attach a link is made on a page of memory that no process
 * maps, and closed again. It puts a breakpoint nowhere, and takes nothing but its descriptor.
 *
 * It is a matter of time only. Where there is no uprobe_multi link (before 6.6) nothing is done, since closing a perf event would take longer than is gained; and nobody is told of a failure, since the
 * attach does the same in earnest, and says so.
 */
import { Assembler } from '../capture/bpf.js'
import type { Logger } from '../log.js'
import type { Native } from '../native.js'
import { isLimit, limitError } from '../shortage.js'
import { BPF_LICENSE, BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI, loadProgram } from './bpf-objects.js'
import { closeRegistrations } from './close.js'

const PAGE_BYTES = 4096

/** The one that is under way in this process; whoever begins another has this one. */
let running: Promise<void> | null = null
/** Whether this kernel has such links, as far as known. */
let works = true

/** Begins one. Resolves, some 40 ms later, when nothing is left of it; never rejects. */
export function headStart(native: Native, log: Logger): Promise<void> {
  if (running !== null || !works) return running ?? Promise.resolve()
  running = run(native, log).finally(() => {
    running = null
  })
  return running
}

async function run(native: Native, log: Logger): Promise<void> {
  try {
    await closeRegistrations(native, [await linkPage(native)])
  } catch (error) {
    works = isLimit(limitError(error, '') ?? error)
    log.debug({ err: error }, 'an attach has no head start')
  }
}

/** Links a page of memory to a program that is never run. */
async function linkPage(native: Native): Promise<number> {
  const fileFd = native.memfdCreate('uprobe', PAGE_BYTES)
  try {
    const asm = new Assembler()
    asm.load(0, 0)
    asm.exit()
    const progFd = await loadProgram(native, {
      type: BPF_PROG_TYPE_KPROBE,
      expectedAttachType: BPF_TRACE_UPROBE_MULTI,
      insns: asm.encode(),
      license: BPF_LICENSE,
      name: 'uprobe_start',
    })
    try {
      return await native.bpfLinkCreateUprobeMulti({
        progFd,
        path: `/proc/self/fd/${fileFd}`,
        fileOffsets: BigUint64Array.of(0n),
        refCtrOffsets: null,
        cookies: BigUint64Array.of(0n),
        retprobe: false,
        pid: process.pid,
      })
    } finally {
      native.closeFd(progFd)
    }
  } finally {
    native.closeFd(fileFd)
  }
}
