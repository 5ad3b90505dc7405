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
import { BPF_LICENSE, BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI, loadProgram } from './bpf-objects.js'
import { closeRegistrations } from './close.js'

const PAGE_BYTES = 4096

/** What a tracer keeps for it. */
interface Page {
  readonly path: string
  /** Returns 0, and is never run. */
  readonly progFd: number
  close(): void
}

/** The head starts of one tracer. `close` when no attach is under way. */
export class HeadStart {
  #page: Promise<Page> | null = null
  /** The one that is under way. Others need none at the same time. */
  #running: Promise<void> | null = null
  #works = true

  constructor(private readonly log: Logger) {}

  /** Begins one, unless one is under way. Returns at once. */
  begin(native: Native): void {
    if (!this.#works || this.#running !== null) return
    this.#running = this.#run(native).finally(() => {
      this.#running = null
    })
  }

  async #run(native: Native): Promise<void> {
    const fds: number[] = []
    try {
      this.#page ??= makePage(native)
      const { path, progFd } = await this.#page
      fds.push(
        await native.bpfLinkCreateUprobeMulti({
          progFd,
          path,
          fileOffsets: BigUint64Array.of(0n),
          refCtrOffsets: null,
          cookies: BigUint64Array.of(0n),
          retprobe: false,
          pid: process.pid,
        }),
      )
    } catch (error) {
      this.#works = false
      this.log.debug({ err: error }, 'attaches have no head start')
    }
    try {
      await closeRegistrations(native, fds)
    } catch (error) {
      this.#works = false
      this.log.warn({ err: error }, 'a link on memory that nobody maps could not be closed')
    }
  }

  /** Waits for what is under way, and gives everything back. */
  async close(): Promise<void> {
    this.#works = false
    await this.#running
    const page = await this.#page?.catch(() => null)
    this.#page = null
    page?.close()
  }
}

async function makePage(native: Native): Promise<Page> {
  const asm = new Assembler()
  asm.load(0, 0)
  asm.exit()
  const fileFd = native.memfdCreate('uprobe', PAGE_BYTES)
  try {
    const progFd = await loadProgram(native, {
      type: BPF_PROG_TYPE_KPROBE,
      expectedAttachType: BPF_TRACE_UPROBE_MULTI,
      insns: asm.encode(),
      license: BPF_LICENSE,
      name: 'uprobe_start',
    })
    return {
      path: `/proc/self/fd/${fileFd}`,
      progFd,
      close: () => {
        native.closeFd(progFd)
        native.closeFd(fileFd)
      },
    }
  } catch (error) {
    native.closeFd(fileFd)
    throw error
  }
}
