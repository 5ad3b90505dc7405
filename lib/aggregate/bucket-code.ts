/**
 * BPF code that finds the bucket of a value (buckets.ts says which it is).
 *
 * The exponent is found by halving, six comparisons; from scale 1 on the bound within the power of two by a search through constants in the code, one comparison for each step of the scale. There is no table to look
 * up, no division and no rounding.
 *
 * What the verifier knows of the result would make it check all that follows for each outcome by itself, thousands of times. So it goes over the stack as a number of four bytes in the upper half of a word, of which
 * the verifier keeps no more than that it is one (check_stack_write_fixed_off, kernel/bpf/verifier.c: only what begins where a word does is followed).
 */
import { type Assembler, Label, type Register } from '../capture/bpf.js'
import { FRAME } from '../capture/frame.js'
import { mantissaBounds } from './buckets.js'
import { SCRATCH } from './frame.js'

const STEPS = [32, 16, 8, 4, 2, 1] as const

/** r2 = the position of the value in r1, which is above 0; takes r3. */
export function emitPosition(asm: Assembler, scale: number): void {
  if (scale > 0) emitFinePosition(asm, scale)
  else emitCoarsePosition(asm, -scale)
}

/** The number of bits of value - 1, and `shift` bits of that less, rounded up. */
function emitCoarsePosition(asm: Assembler, shift: number): void {
  asm.addImm(1, -1)
  asm.load(2, 0)
  for (const step of STEPS) {
    const small = new Label()
    asm.mov(3, 1)
    asm.shiftRight(3, step)
    asm.jumpIf(3, 'jeq', 0, small)
    asm.mov(1, 3)
    asm.addImm(2, step)
    asm.place(small)
  }
  asm.add(2, 1)
  asm.addImm(2, 2 ** shift - 1)
  asm.shiftRight(2, shift)
}

/** Exponent · 2^scale, and how many of the bounds within the power of two lie below. */
function emitFinePosition(asm: Assembler, scale: number): void {
  asm.load(2, 63)
  for (const step of STEPS) {
    const large = new Label()
    asm.mov(3, 1)
    asm.shiftRight(3, 64 - step)
    asm.jumpIf(3, 'jne', 0, large)
    asm.shiftLeft(1, step)
    asm.addImm(2, -step)
    asm.place(large)
  }
  emitForget(asm, 2)
  asm.shiftLeft(2, scale)
  const bounds = mantissaBounds(scale)
  const done = new Label()
  const search = (least: number, most: number): void => {
    if (least === most) {
      asm.addImm(2, least)
      asm.jump(done)
      return
    }
    const middle = (least + most) >> 1
    const above = new Label()
    asm.load(3, bounds[middle] ?? 0n)
    asm.jumpIfRegister(1, 'jgt', 3, above)
    search(least, middle)
    asm.place(above)
    search(middle + 1, most)
  }
  search(0, bounds.length)
  asm.place(done)
}

/** Makes the verifier forget what it knows of a register that holds fewer than 2^32. */
export function emitForget(asm: Assembler, register: Register): void {
  asm.storeMemory(FRAME, SCRATCH.forget + 4, register, 4)
  asm.loadMemory(register, FRAME, SCRATCH.forget + 4, 4)
}
