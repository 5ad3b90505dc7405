/**
 * Whether programs can compare and exchange, found by loading one that does: BPF has it since Linux 5.12 on x86-64, and where the instruction is compiled for arm64 since 5.18.
 */
import { Assembler } from '../capture/bpf.js'
import { FRAME, STACK } from '../capture/frame.js'
import { UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import { once } from '../once.js'
import { BPF_LICENSE, BPF_PROG_TYPE_KPROBE, loadProgram } from '../register/bpf-objects.js'

/** Tries it once in the life of this process. */
export const hasCompareExchange: (native: Native) => Promise<boolean> = once(tryLoading)

async function tryLoading(native: Native): Promise<boolean> {
  const asm = new Assembler()
  asm.storeImm(FRAME, STACK.value, 0, 8)
  asm.load(0, 0)
  asm.load(1, 1)
  asm.compareExchange(FRAME, STACK.value, 1)
  asm.load(0, 0)
  asm.exit()
  try {
    const fd = await loadProgram(native, {
      type: BPF_PROG_TYPE_KPROBE,
      expectedAttachType: 0,
      insns: asm.encode(),
      license: BPF_LICENSE,
      name: 'uprobe_trial',
    })
    native.closeFd(fd)
    return true
  } catch (error) {
    if (error instanceof UprobeError && error.code === 'ERR_UPROBE_BPF_REJECTED') return false
    throw error
  }
}
