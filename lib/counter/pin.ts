/**
 * Pinning a counter: all its sites registered, with the counter, in one process.
 *
 * The kernel adds to a counter when a site's breakpoint goes in, and takes away when it comes out. Where every site is registered by us, every breakpoint is in and stays in, so the
 * kernel leaves the counter alone whoever else comes or goes; and what is above the number of sites was counted by somebody else than the kernel.
 *
 * A counter that is too low under a pin is not right either: the kernel refuses to count below 0, and then leaves the breakpoint in (`uprobe_write_opcode`). So whoever pins makes it right,
 * in both directions, before the pins go.
 *
 * Taking the pins away again does the rest: a breakpoint that nobody else holds comes out, also one that the kernel had forgotten to take out.
 */
import { EINVAL } from '../errno.js'
import { errnoOf } from '../errors.js'
import type { Native } from '../native.js'
import { BPF_LICENSE, BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI, loadProgram } from '../register/bpf-objects.js'
import { closeRegistrations } from '../register/close.js'
import { multiSupport } from '../register/multi-support.js'
import { readUprobePmu } from '../register/pmu.js'
import type { TargetFile } from '../target/file.js'
import type { TargetProcess } from '../target/process.js'
import { IDLE_PROGRAM } from './guard.js'
import type { FileCounter, SharingSite } from './read.js'

/** Pins on one counter. */
export class Pin {
  #fds: readonly number[]

  private constructor(
    private readonly native: Native,
    fds: readonly number[],
  ) {
    this.#fds = fds
  }

  /**
   * Registers all sites of a counter in one process, or none.
   * @param counterOffset - the counter's offset in the file; 0 to register without it, which takes breakpoints out and counts nothing
   * @throws what the kernel refuses with: `EINVAL` if somebody has registered a site with another counter offset, or the counter is negative
   */
  static async take(native: Native, file: TargetFile, target: TargetProcess, counter: FileCounter, counterOffset: bigint): Promise<Pin> {
    const fds: number[] = []
    try {
      if (!target.leaderExited && (await multiSupport(native)).oneProcess)
        fds.push(await link(native, file, target, counter, counterOffset))
      else for (const { fileOffset } of counter.sites) fds.push(await event(native, file, target.tid, fileOffset, counterOffset))
      return new Pin(native, fds)
    } catch (error) {
      await closeRegistrations(native, fds)
      throw error
    }
  }

  /** Takes them away. Idempotent. */
  async release(): Promise<void> {
    const fds = this.#fds
    this.#fds = []
    await closeRegistrations(this.native, fds)
  }
}

/** Sites that count, registered as long as nobody releases them. */
export interface CountingSites {
  readonly sites: readonly SharingSite[]
  /** Takes the registrations away. */
  release(): Promise<void>
}

/**
 * The sites of a counter that count on it, or would: all but those that somebody has registered without it. A site is registered with one counter offset only, whatever process it is for
 * (`alloc_uprobe`, kernel/events/uprobes.c); so each is tried for our own process, which does not map the file, and nothing is written anywhere.
 *
 * They stay registered. Whoever takes a registration away has the kernel take out the breakpoints that nobody wants any more, in every process (`register_for_each_vma`), and where the counter is
 * negative it cannot count them down, and leaks the uprobe. So the counter is put right first.
 * @throws what the kernel refuses with for another reason
 */
export async function registerCountingSites(
  native: Native,
  file: TargetFile,
  counter: FileCounter,
  counterOffset: bigint,
): Promise<CountingSites> {
  const fds: number[] = []
  const sites: SharingSite[] = []
  try {
    for (const site of counter.sites) {
      try {
        fds.push(await event(native, file, process.pid, site.fileOffset, counterOffset))
        sites.push(site)
      } catch (error) {
        if (errnoOf(error) !== EINVAL) throw error
      }
    }
    return { sites, release: () => closeRegistrations(native, fds) }
  } catch (error) {
    await closeRegistrations(native, fds)
    throw error
  }
}

async function link(native: Native, file: TargetFile, target: TargetProcess, counter: FileCounter, counterOffset: bigint): Promise<number> {
  const progFd = await loadProgram(native, {
    type: BPF_PROG_TYPE_KPROBE,
    expectedAttachType: BPF_TRACE_UPROBE_MULTI,
    insns: IDLE_PROGRAM,
    license: BPF_LICENSE,
    name: 'uprobe_pin',
  })
  try {
    return await native.bpfLinkCreateUprobeMulti({
      progFd,
      path: file.kernelPath,
      fileOffsets: BigUint64Array.from(counter.sites, ({ fileOffset }) => fileOffset),
      refCtrOffsets: counterOffset === 0n ? null : BigUint64Array.from(counter.sites, () => counterOffset),
      cookies: new BigUint64Array(counter.sites.length),
      retprobe: false,
      pid: target.pid,
    })
  } finally {
    native.closeFd(progFd)
  }
}

function event(native: Native, file: TargetFile, tid: number, fileOffset: bigint, counterOffset: bigint): Promise<number> {
  return native.perfEventOpenUprobe({
    type: readUprobePmu().type,
    path: file.kernelPath,
    fileOffset,
    refCtrOffset: Number(counterOffset),
    retprobe: false,
    tid,
  })
}
