/**
 * BPF code by which a program chooses the generation that it adds to, and says when it is done with it.
 *
 *     entry = per-CPU array[0]:  u64 entered[2], u64 left[2], by generation
 *     generation = *(u32 *)the array of one entry that JavaScript switches
 *     entry.entered[generation] += 1
 *     if the generation is another one by now: enter that one too, look again, leave the one that it is not
 *     add to the maps of the generation
 *     entry.left[generation] += 1
 *
 * A program adds only to a generation of which it has seen, after it had entered it, that it is the current one. So whoever makes another one current and then finds that as many have left as had entered knows that
 * nobody adds any more (store.ts, where it says how that is read). After a second switch in between the program has entered both, and may add to whichever it finds.
 *
 * The kernel waits for running programs too, but not so that it can be relied on. What user space can wait for is a grace period of RCU; programs on uprobes are under RCU tasks trace since Linux 6.0
 * (`bpf_prog_run_array_uprobe`, include/linux/bpf.h, 8c7dcb84e3b7), of which that says nothing (ef1b808e3b7c). Those that do not sleep may be under both, but nothing promises it.
 */
import { type Assembler, Label } from '../capture/bpf.js'
import { FRAME, STACK } from '../capture/frame.js'
import { emitLookup } from '../capture/lookup-code.js'
import { GENERATION, SCRATCH } from './frame.js'

/** The maps by which turns are taken. */
export interface TurnMaps {
  /** Array of one entry: which generation is added to, 0 or 1. */
  readonly generationFd: number
  /** Per-CPU array of one entry of {@link TURNS_BYTES}. */
  readonly turnsFd: number
}

/** Fields of the entry, of a word for each generation. Only the sums over all CPUs matter. */
export const TURNS = { entered: 0, left: 16 } as const

/** Size of the entry. */
export const TURNS_BYTES = 32

/** GENERATION = the one to add to; takes r0 to r4. */
export function emitEnter(asm: Assembler, maps: TurnMaps, none: Label): void {
  const inside = new Label()
  asm.storeImm(FRAME, STACK.key, 0, 4)
  emitLookup(asm, maps.turnsFd, STACK.key)
  asm.jumpIf(0, 'jeq', 0, none)
  asm.loadMapValue(4, maps.generationFd)
  emitCurrent(asm)
  emitCount(asm, TURNS.entered)
  asm.loadMemory(2, 4, 0, 4)
  asm.jumpIfRegister(2, 'jeq', GENERATION, inside)
  asm.xorImm(GENERATION, 1)
  emitCount(asm, TURNS.entered)
  emitCurrent(asm)
  asm.xorImm(GENERATION, 1)
  emitCount(asm, TURNS.left)
  asm.xorImm(GENERATION, 1)
  asm.place(inside)
  asm.mov(3, GENERATION)
  asm.shiftLeft(3, 3)
  asm.add(3, 0)
  asm.storeMemory(FRAME, SCRATCH.turn, 3, 8)
}

/** Is done with what was entered; takes r1 and r2. */
export function emitLeave(asm: Assembler): void {
  asm.loadMemory(2, FRAME, SCRATCH.turn, 8)
  asm.load(1, 1)
  asm.atomicAdd(2, TURNS.left, 1)
}

/** GENERATION = the current one. */
function emitCurrent(asm: Assembler): void {
  asm.loadMemory(GENERATION, 4, 0, 4)
  // It never is anything else, but the verifier does not know.
  asm.andImm(GENERATION, 1)
}

/** Counts for GENERATION in the entry at r0. */
function emitCount(asm: Assembler, field: number): void {
  asm.mov(3, GENERATION)
  asm.shiftLeft(3, 3)
  asm.add(3, 0)
  asm.load(1, 1)
  asm.atomicAdd(3, field, 1)
}
