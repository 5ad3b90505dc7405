/**
 * BPF code that walks the stack of the thread that hit a site, and sends each stack once.
 *
 * The walk follows frame pointers, as the kernel does for perf (`perf_callchain_user`, arch/x86/events/core.c and arch/arm64/kernel/perf_callchain.c), and it is done here for
 * the sake of what is sure to be right. The kernel's own way, `bpf_get_stackid`, can give a wrong stack: programs on uprobes are preemptible since 6.0, and the buffer
 * that it fills belongs to the CPU and is given back before it is copied (`get_perf_callchain`, kernel/events/callchain.c), so that another thread can overwrite it; two hits that
 * store at once under one id exchange their stacks (`__bpf_get_stackid`, kernel/bpf/stackmap.c); and reading a stack from user space takes it out of the map for a moment, in which another
 * one can get its id (`bpf_stackmap_copy`). Besides, it leaves out the caller where a function has not made its frame yet, before 6.11.
 *
 * A stack is known by 128 bits computed from its addresses and its process with secret, random multipliers, so that no target can choose two stacks that are taken for one. The first walk only
 * computes them. If they are in the map of seen stacks, the addresses were sent before, and this record need not carry them. Otherwise a second walk writes the addresses to a record of
 * their own, and marks as seen what it has written. So a record of a stack is always in the ring before any record of a hit that refers to it: it is reserved before it is marked.
 *
 *      0  u64  unused
 *      8  u32  unused, then u32 process id
 *     16  u32  number of the stacks' sink within the tracer, where other records have the number of their probe
 *     20  u32  how many addresses
 *     24  u32  1 if it is marked as seen, so that the addresses will not be sent again
 *     28  u32  unused
 *     32  u64  twice: what it is known by
 *     48  u64  one an address, innermost first
 */
import { type Assembler, HELPER, Label, type Register } from './bpf.js'
import { FRAME, RECORD, type ReadingProgram, STACK } from './frame.js'
import { emitLookup } from './lookup-code.js'
import { loadRegister } from './operand-code.js'
import type { StackShape } from './shape.js'

/** Offsets of the fields of a stack's record, in bytes. */
export const STACK_FIELD = { pid: 12, sinkId: 16, count: 20, kept: 24, key: 32, addresses: 48 } as const

/** Size of what a stack is known by. */
export const STACK_KEY_BYTES = 16

/** What the programs of a probe need to send stacks. */
export interface StackProgram {
  /** A hash map from what a stack is known by to nothing of interest: the stacks that were sent. */
  readonly seenFd: number
  /** Who gets the records of stacks, in the place of a probe's number. */
  readonly sinkId: number
  /** Secret 64-bit numbers: two to begin with, and two odd ones to multiply by. */
  readonly secrets: readonly [bigint, bigint, bigint, bigint]
}

/** Size of a stack's record. */
export function stackRecordBytes({ depth }: StackShape): number {
  return STACK_FIELD.addresses + 8 * depth
}

/** Nothing is mapped below, so smaller numbers are no addresses of code or frames. */
const LOWEST_ADDRESS = 4096

/**
 * Return addresses in memory may be signed in their upper bits (pointer authentication). Addresses of programs have 48 bits, unless a program asks for more by a hint to mmap
 * (Documentation/arch/arm64/memory.rst); the rest is the signature.
 */
const ARM64_ADDRESS_BITS = 48

/** The registers to begin with. */
const REGISTERS = { x64: { frame: 'rbp', stack: 'rsp' }, arm64: { frame: 'x29', stack: 'sp' } } as const

/** BPF_NOEXIST, include/uapi/linux/bpf.h */
const BPF_NOEXIST = 1
const EEXIST = 17

/** Sends the stack unless it was sent before; leaves on the program's stack what it is known by. */
export function emitStack(
  asm: Assembler,
  program: ReadingProgram & { readonly stacks: StackProgram },
  shape: StackShape,
  reserve: (bytes: number) => void,
  submit: (bytes: number) => void,
): void {
  const { seenFd, sinkId } = program.stacks
  const bytes = stackRecordBytes(shape)
  const known = new Label()
  const marked = new Label()
  emitWalk(asm, program, shape, false)
  emitLookup(asm, seenFd, STACK.stackKey)
  asm.jumpIf(0, 'jne', 0, known)
  reserve(bytes)
  emitWalk(asm, program, shape, true)
  asm.call(HELPER.get_current_pid_tgid)
  asm.storeMemory(RECORD, STACK_FIELD.pid - 4, 0, 8)
  asm.storeImm(RECORD, STACK_FIELD.sinkId, sinkId, 4)
  asm.loadMemory(1, FRAME, STACK.walkCount, 8)
  asm.storeMemory(RECORD, STACK_FIELD.count, 1, 4)
  for (const half of [0, 8]) {
    asm.loadMemory(1, FRAME, STACK.stackKey + half, 8)
    asm.storeMemory(RECORD, STACK_FIELD.key + half, 1, 8)
  }
  asm.loadMap(1, seenFd)
  asm.mov(2, FRAME)
  asm.addImm(2, STACK.stackKey)
  asm.mov(3, FRAME)
  asm.addImm(3, STACK.stackKey)
  asm.load(4, BPF_NOEXIST)
  asm.call(HELPER.map_update_elem)
  // Full, or busy on this CPU: the next hit with this stack sends it again. Or another CPU was quicker, which is as good.
  asm.storeImm(RECORD, STACK_FIELD.kept, 1, 4)
  asm.jumpIf(0, 'jeq', 0, marked)
  asm.jumpIf(0, 'jeq', -EEXIST, marked)
  asm.storeImm(RECORD, STACK_FIELD.kept, 0, 4)
  asm.place(marked)
  submit(bytes)
  asm.place(known)
}

/** Copies what the stack is known by into the record of the hit. */
export function emitStackKey(asm: Assembler, at: number): void {
  for (const half of [0, 8]) {
    asm.loadMemory(1, FRAME, STACK.stackKey + half, 8)
    asm.storeMemory(RECORD, at + half, 1, 8)
  }
}

/**
 * Goes from frame to frame, outwards, as long as there are any and there is room. A frame begins with the address of the next one, which must lie above, and the address that its function
 * returns to.
 */
function emitWalk(asm: Assembler, program: ReadingProgram & { readonly stacks: StackProgram }, shape: StackShape, storing: boolean): void {
  const { arch, stacks } = program
  const next = new Label()
  const done = new Label()
  const address = (): void => emitAddress(asm, stacks, storing)
  // By way of a register: what is stored so the verifier of 5.10 remembers as a number.
  asm.load(1, 0)
  asm.storeMemory(FRAME, STACK.walkCount, 1, 8)
  asm.call(HELPER.get_current_pid_tgid)
  asm.shiftRight(0, 32)
  for (const [half, secret] of [stacks.secrets[0], stacks.secrets[1]].entries()) {
    asm.load(1, secret)
    asm.operate(1, 'xor', 0)
    asm.storeMemory(FRAME, STACK.stackKey + 8 * half, 1, 8)
  }
  loadRegister(asm, arch, 3, 'pc')
  address()
  if (shape.atEntry) emitCaller(asm, program, address)
  loadRegister(asm, arch, 1, REGISTERS[arch].frame)
  asm.storeMemory(FRAME, STACK.walkFrame, 1, 8)
  asm.place(next)
  asm.loadMemory(1, FRAME, STACK.walkCount, 8)
  asm.jumpIf(1, 'jge', shape.depth, done)
  asm.loadMemory(3, FRAME, STACK.walkFrame, 8)
  asm.jumpIf(3, 'jlt', LOWEST_ADDRESS, done)
  asm.jumpIf(3, 'jset', 7, done)
  emitReadUser(asm, STACK.walkPair, 16)
  asm.jumpIf(0, 'jne', 0, done)
  asm.loadMemory(3, FRAME, STACK.walkPair + 8, 8)
  emitStrip(asm, arch)
  asm.jumpIf(3, 'jlt', LOWEST_ADDRESS, done)
  address()
  asm.loadMemory(1, FRAME, STACK.walkPair, 8)
  asm.loadMemory(2, FRAME, STACK.walkFrame, 8)
  asm.jumpIfRegister(1, 'jle', 2, done)
  asm.storeMemory(FRAME, STACK.walkFrame, 1, 8)
  asm.jump(next)
  asm.place(done)
}

/**
 * At the first instruction of a function the frame pointer still is the caller's, so the way to the caller's caller begins there, and the caller is where the call has left it: on top of the stack, or in
 * the link register.
 */
function emitCaller(asm: Assembler, { arch }: ReadingProgram, address: () => void): void {
  const none = new Label()
  if (arch === 'arm64') {
    loadRegister(asm, arch, 3, 'x30')
    emitStrip(asm, arch)
  } else {
    loadRegister(asm, arch, 3, REGISTERS[arch].stack)
    emitReadUser(asm, STACK.walkPair, 8)
    asm.jumpIf(0, 'jne', 0, none)
    asm.loadMemory(3, FRAME, STACK.walkPair, 8)
  }
  asm.jumpIf(3, 'jlt', LOWEST_ADDRESS, none)
  address()
  asm.place(none)
}

/** Reads the target's memory at r3. A page that is not there ends the walk: the frames of what runs were written a moment ago. */
function emitReadUser(asm: Assembler, to: number, bytes: number): void {
  asm.mov(1, FRAME)
  asm.addImm(1, to)
  asm.load(2, bytes)
  asm.call(HELPER.probe_read_user)
}

/** Takes what is no address out of r3. */
function emitStrip(asm: Assembler, arch: ReadingProgram['arch']): void {
  if (arch !== 'arm64') return
  asm.shiftLeft(3, 64 - ARM64_ADDRESS_BITS)
  asm.shiftRight(3, 64 - ARM64_ADDRESS_BITS)
}

/** Adds the address in r3 to what the stack is known by, and to the record. */
function emitAddress(asm: Assembler, { secrets }: StackProgram, storing: boolean): void {
  asm.loadMemory(1, FRAME, STACK.walkCount, 8)
  if (storing) {
    asm.mov(2, 1)
    asm.shiftLeft(2, 3)
    asm.add(2, RECORD)
    asm.storeMemory(2, STACK_FIELD.addresses, 3, 8)
  }
  asm.addImm(1, 1)
  asm.storeMemory(FRAME, STACK.walkCount, 1, 8)
  emitMix(asm, STACK.stackKey, secrets[2], 'xor', 32)
  emitMix(asm, STACK.stackKey + 8, secrets[3], 'add', 29)
}

/** One half of what a stack is known by: combine with the address, multiply, and let the high bits act on the low ones. */
function emitMix(asm: Assembler, at: number, multiplier: bigint, combine: 'xor' | 'add', shift: number): void {
  const half: Register = 1
  asm.loadMemory(half, FRAME, at, 8)
  asm.operate(half, combine, 3)
  asm.load(2, multiplier)
  asm.operate(half, 'multiply', 2)
  asm.mov(2, half)
  asm.shiftRight(2, shift)
  asm.operate(half, 'xor', 2)
  asm.storeMemory(FRAME, at, half, 8)
}
