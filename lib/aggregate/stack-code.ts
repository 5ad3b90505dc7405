/**
 * BPF code that keeps the beginnings of one thread: the time of each, and the key of the group it belongs to, from the oldest to the youngest.
 *
 *     u64 end, u64 start        how many beginnings there ever were, and how many of them are gone from the old end
 *     beginnings                64 places, of which number i has place i mod 64
 *
 * Only the thread itself reads and changes it, one program after the other, so nothing here is atomic. Of calls, what does not fit is not kept: the kernel, too, sees no more than 64 calls within each other return
 * (MAX_URETPROBE_DEPTH, include/linux/uprobes.h). Of two probes it pushes the oldest out, since there may be beginnings whose end never comes.
 *
 * Calls of a function are told apart by the stack pointer at their entry: it is where the return address is, and at the return it is there again. The stack grows downwards, so a beginning below the stack pointer of a
 * later entry or return belongs to a call that was left by longjmp or an exception; it is given up. An end without a beginning at its very place ends nothing.
 *
 * A tail call enters a function where the one before it did. Then the return address is that of the kernel's trampoline, which stands for the returns of both (`prepare_uretprobe`, kernel/events/uprobes.c) and has a page of its
 * own to begin at; otherwise a call at the same place means that the one before was left.
 */
import { type Assembler, HELPER, Label } from '../capture/bpf.js'
import { FRAME, type ReadingProgram, STACK } from '../capture/frame.js'
import { loadRegister } from '../capture/operand-code.js'
import { GROUP, KEY, SCRATCH } from './frame.js'

/** How many beginnings of a thread are kept; a power of two. */
export const DEPTH = 64

const HEAD = { end: 0, start: 8, bytes: 16 } as const
const BEGINNING = { place: 0, time: 8, key: 16 } as const
const PAGE_OFFSET = 4095

/** What the code of a stack depends on. */
export interface StackCode {
  /** Bytes of a key; 0 for none. */
  readonly keyBytes: number
}

/** Size of what is kept of a thread. */
export function stackBytes(keyBytes: number): number {
  return HEAD.bytes + DEPTH * (BEGINNING.key + keyBytes)
}

/** Whether an end finds its beginning by where the call began, or takes the youngest. */
export type Place = 'frame' | 'any'

/**
 * SCRATCH.match + 8 = the place of the call: the stack pointer at its entry.
 * @param at - which end of the call the program is at
 */
export function emitPlace(asm: Assembler, program: ReadingProgram, place: Place, at: 'entry' | 'return'): void {
  if (place === 'any') {
    asm.storeImm(FRAME, SCRATCH.match + 8, 0, 8)
    return
  }
  loadRegister(asm, program.arch, 1, program.arch === 'x64' ? 'rsp' : 'sp')
  // On x86-64 a return takes the return address from the stack.
  if (program.arch === 'x64' && at === 'return') asm.addImm(1, -8)
  asm.storeMemory(FRAME, SCRATCH.match + 8, 1, 8)
}

/** Gives up the beginnings of calls that were left, before a new one at the place in SCRATCH.match + 8. SCRATCH.count is how many. */
export function emitLeaveDead(asm: Assembler, program: ReadingProgram, code: StackCode): void {
  const live = new Label()
  emitDrop(asm, code, 'below')
  emitTop(asm, code, live)
  asm.loadMemory(1, 2, BEGINNING.place, 8)
  asm.loadMemory(4, FRAME, SCRATCH.match + 8, 8)
  asm.jumpIfRegister(1, 'jne', 4, live)
  if (program.arch === 'x64') {
    asm.mov(1, FRAME)
    asm.addImm(1, STACK.value)
    asm.load(2, 8)
    asm.mov(3, 4)
    asm.call(HELPER.probe_read_user)
    asm.jumpIf(0, 'jne', 0, live)
    asm.loadMemory(1, FRAME, STACK.value, 8)
  } else {
    loadRegister(asm, program.arch, 1, 'x30')
  }
  asm.andImm(1, PAGE_OFFSET)
  asm.jumpIf(1, 'jeq', 0, live)
  emitDrop(asm, code, 'at')
  asm.place(live)
}

/**
 * Gives up the youngest beginnings as long as they are below the place in SCRATCH.match + 8, or `at` it too, or `all` of them. Adds to SCRATCH.count how many that were, but for those that the filter rejected.
 */
export function emitDrop(asm: Assembler, code: StackCode, which: 'below' | 'at' | 'all'): void {
  const again = new Label()
  const next = new Label()
  const done = new Label()
  asm.load(0, 0)
  if (which !== 'all') asm.loadMemory(4, FRAME, SCRATCH.match + 8, 8)
  asm.place(again)
  emitTop(asm, code, done)
  if (which !== 'all') {
    asm.loadMemory(1, 2, BEGINNING.place, 8)
    asm.jumpIfRegister(1, which === 'below' ? 'jge' : 'jgt', 4, done)
  }
  asm.storeMemory(GROUP, HEAD.end, 3, 8)
  asm.loadMemory(1, 2, BEGINNING.time, 8)
  asm.jumpIf(1, 'jeq', 0, next)
  asm.loadMemory(1, FRAME, SCRATCH.count, 4)
  asm.addImm(1, 1)
  asm.storeMemory(FRAME, SCRATCH.count, 1, 4)
  asm.place(next)
  // There are no more, but the verifier wants to see the end of it.
  asm.addImm(0, 1)
  asm.jumpIf(0, 'jlt', DEPTH, again)
  asm.place(done)
}

/** r2 = the youngest beginning, r3 = its number; goes to `none` if there is none. Takes r1 and r5. */
function emitTop(asm: Assembler, code: StackCode, none: Label): void {
  asm.loadMemory(3, GROUP, HEAD.end, 8)
  asm.loadMemory(1, GROUP, HEAD.start, 8)
  asm.jumpIfRegister(3, 'jeq', 1, none)
  asm.addImm(3, -1)
  emitAddress(asm, code)
}

/** r2 = the beginning of the number in r3. Takes r5. */
function emitAddress(asm: Assembler, { keyBytes }: StackCode): void {
  asm.mov(2, 3)
  asm.andImm(2, DEPTH - 1)
  asm.load(5, BEGINNING.key + keyBytes)
  asm.operate(2, 'multiply', 5)
  asm.add(2, GROUP)
  asm.addImm(2, HEAD.bytes)
}

/**
 * Adds a beginning: the place in SCRATCH.match + 8, the key at KEY, the time in SCRATCH.now, 0 for one that was rejected. With `frame` it goes to `full` instead if there is no room; else afterwards, if the oldest had
 * to go for it and was not one that was rejected.
 */
export function emitPush(asm: Assembler, code: StackCode, place: Place, full: Label): void {
  const room = new Label()
  asm.loadMemory(3, GROUP, HEAD.end, 8)
  asm.loadMemory(4, GROUP, HEAD.start, 8)
  asm.addImm(4, DEPTH)
  if (place === 'frame') asm.jumpIfRegister(3, 'jeq', 4, full)
  emitAddress(asm, code)
  asm.loadMemory(5, 2, BEGINNING.time, 8)
  asm.loadMemory(1, FRAME, SCRATCH.match + 8, 8)
  asm.storeMemory(2, BEGINNING.place, 1, 8)
  asm.loadMemory(1, FRAME, SCRATCH.now, 8)
  asm.storeMemory(2, BEGINNING.time, 1, 8)
  for (let word = 0; word < code.keyBytes; word += 8) {
    asm.loadMemory(1, FRAME, KEY + word, 8)
    asm.storeMemory(2, BEGINNING.key + word, 1, 8)
  }
  asm.mov(1, 3)
  asm.addImm(1, 1)
  asm.storeMemory(GROUP, HEAD.end, 1, 8)
  if (place === 'frame') return
  asm.jumpIfRegister(3, 'jne', 4, room)
  asm.addImm(4, 1 - DEPTH)
  asm.storeMemory(GROUP, HEAD.start, 4, 8)
  asm.jumpIf(5, 'jne', 0, full)
  asm.place(room)
}

/** Takes the beginning of an end: its time to r1, its key to KEY; goes to `none` if there is none. With `frame` it is the one at the place in SCRATCH.match + 8. */
export function emitPop(asm: Assembler, code: StackCode, place: Place, none: Label): void {
  emitTop(asm, code, none)
  if (place === 'frame') {
    asm.loadMemory(1, 2, BEGINNING.place, 8)
    asm.loadMemory(4, FRAME, SCRATCH.match + 8, 8)
    asm.jumpIfRegister(1, 'jne', 4, none)
  }
  asm.storeMemory(GROUP, HEAD.end, 3, 8)
  for (let word = 0; word < code.keyBytes; word += 8) {
    asm.loadMemory(1, 2, BEGINNING.key + word, 8)
    asm.storeMemory(FRAME, KEY + word, 1, 8)
  }
  asm.loadMemory(1, 2, BEGINNING.time, 8)
}
