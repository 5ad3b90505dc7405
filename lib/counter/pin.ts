/**
 * Pinning a counter: all its sites registered, with the counter, in one process.
 *
 * The kernel adds to a counter when a site's breakpoint goes in, and takes away when it comes out. Where every site is registered by us, every breakpoint is in and stays in, so the
 * kernel leaves the counter alone whoever else comes or goes; and what is above the number of sites was counted by somebody else than the kernel.
 *
 * Taking the pins away again does the rest: a breakpoint that nobody else holds comes out, also one that the kernel had forgotten to take out.
 */
import type { Native } from '../native.js'
import { BPF_LICENSE, BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI, loadProgram } from '../register/bpf-objects.js'
import { closeRegistrations } from '../register/close.js'
import { multiSupport } from '../register/multi-support.js'
import { readUprobePmu } from '../register/pmu.js'
import type { TargetFile } from '../target/file.js'
import type { TargetProcess } from '../target/process.js'
import { IDLE_PROGRAM } from './guard.js'
import type { FileCounter } from './read.js'

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
      else for (const { fileOffset } of counter.sites) fds.push(await event(native, file, target, fileOffset, counterOffset))
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

function event(native: Native, file: TargetFile, target: TargetProcess, fileOffset: bigint, counterOffset: bigint): Promise<number> {
  return native.perfEventOpenUprobe({
    type: readUprobePmu().type,
    path: file.kernelPath,
    fileOffset,
    refCtrOffset: Number(counterOffset),
    retprobe: false,
    tid: target.tid,
  })
}
