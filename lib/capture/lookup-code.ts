/**
 * BPF code that looks for, adds and removes the entries of maps, by keys on the stack.
 */
import { type Assembler, HELPER } from './bpf.js'
import { FRAME } from './frame.js'

const BPF_NOEXIST = 1

/** r0 = the value of the key on the stack, or 0. */
export function emitLookup(asm: Assembler, mapFd: number, key: number): void {
  asm.loadMap(1, mapFd)
  asm.mov(2, FRAME)
  asm.addImm(2, key)
  asm.call(HELPER.map_lookup_elem)
}

/** Adds an entry unless there is one; r3 must be its value. r0 = 0 if it was added. */
export function emitInsert(asm: Assembler, mapFd: number, key: number): void {
  asm.loadMap(1, mapFd)
  asm.mov(2, FRAME)
  asm.addImm(2, key)
  asm.load(4, BPF_NOEXIST)
  asm.call(HELPER.map_update_elem)
  // An int, of which the upper half of the register may be anything (before d7ba4cc900bf, Linux 6.4).
  asm.truncate(0)
}

/** Removes an entry; r0 = 0 if it was there, so that of several who do it one is told so. */
export function emitDelete(asm: Assembler, mapFd: number, key: number): void {
  asm.loadMap(1, mapFd)
  asm.mov(2, FRAME)
  asm.addImm(2, key)
  asm.call(HELPER.map_delete_elem)
  asm.truncate(0)
}
