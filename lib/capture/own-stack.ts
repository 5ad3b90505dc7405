/**
 * Keeping a program's stack its own.
 *
 * From 6.13 on, x86-64 gives a BPF program whose stack has 64 bytes or more one stack for each CPU instead of room on the stack of the thread ("private stack", `bpf_enable_priv_stack`,
 * kernel/bpf/verifier.c; arm64 followed). That is safe where a second run on the same CPU is refused while the first is under way. It is for kprobes, whose program type uprobes share; but for uprobes
 * nothing refuses it (`bpf_prog_run_array_uprobe`, include/linux/bpf.h; `uprobe_prog_run`, kernel/trace/bpf_trace.c), and their programs are preempted, and sleep while memory is
 * fetched. So a hit of another thread could overwrite what a program has put on its stack: strings that a filter compares, or which stack a hit has. Seen on 6.18, by a program that slept, and on 7.3.
 *
 * The kernel gives no such stack to a program in which there is a call of another program (a tail call) somewhere. So there is one here, where it is never reached. The verifier knows that it is not, and takes it
 * out (`opt_hard_wire_dead_code_branches`), so that it costs nothing at a hit.
 */
import { type Assembler, HELPER, Label } from './bpf.js'

/** At the beginning of a program, of which it takes r0. */
export function emitOwnStack(asm: Assembler): void {
  const past = new Label()
  asm.load(0, 0)
  asm.jumpIf(0, 'jeq', 0, past)
  asm.call(HELPER.tail_call)
  asm.place(past)
}
