/**
 * BPF code that reads an operand: a register from the context, memory through `bpf_probe_read_user`.
 *
 * The context of a program on a uprobe holds the registers of the thread at the hit, of which the verifier allows aligned loads. Where each one is, is ABI
 * (arch/x86/include/uapi/asm/ptrace.h, arch/arm64/include/uapi/asm/ptrace.h).
 */
import { type Assembler, HELPER, Label, type Register } from './bpf.js'
import { CTX, FRAME, type ReadingProgram, STACK } from './frame.js'
import type { Arch, BoundOperand } from './operands.js'
import { type CaptureShape, readableStrings } from './shape.js'

/** Offsets in the context of a uprobe program: `struct pt_regs` on x86-64, `struct user_pt_regs` on arm64. */
const REGISTERS: Record<Arch, ReadonlyMap<string, number>> = {
  x64: new Map(
    [
      'r15',
      'r14',
      'r13',
      'r12',
      'rbp',
      'rbx',
      'r11',
      'r10',
      'r9',
      'r8',
      'rax',
      'rcx',
      'rdx',
      'rsi',
      'rdi',
      'orig_rax',
      'pc',
      'cs',
      'eflags',
      'rsp',
    ].map((name, index) => [name, 8 * index]),
  ),
  arm64: new Map([...Array.from({ length: 31 }, (_, index): [string, number] => [`x${index}`, 8 * index]), ['sp', 248], ['pc', 256]]),
}

/** r1 = the raw constant or register. */
export function emitDirect(asm: Assembler, arch: Arch, operand: Extract<BoundOperand, { kind: 'constant' | 'register' }>): void {
  if (operand.kind === 'constant') {
    asm.load(1, operand.value)
  } else {
    loadRegister(asm, arch, 1, operand.register)
    asm.shiftRight(1, operand.shift)
  }
}

/** r3 = the address of an operand in memory. */
export function emitAddress(asm: Assembler, arch: Arch, operand: Extract<BoundOperand, { kind: 'memory' | 'pc-relative' }>): void {
  if (operand.kind === 'pc-relative') {
    // At the hit the kernel has set the instruction pointer back to the probed address (handle_swbp, kernel/events/uprobes.c).
    loadRegister(asm, arch, 3, 'pc')
    asm.load(1, operand.delta)
    asm.add(3, 1)
    return
  }
  if (operand.base === null) asm.load(3, 0)
  else loadRegister(asm, arch, 3, operand.base)
  if (operand.index !== null) {
    loadRegister(asm, arch, 1, operand.index)
    asm.shiftLeft(1, Math.log2(operand.scale))
    asm.add(3, 1)
  }
  if (operand.displacement !== 0n) {
    asm.load(1, operand.displacement)
    asm.add(3, 1)
  }
}

/** dst = a register of the thread. */
export function loadRegister(asm: Assembler, arch: Arch, dst: Register, name: string): void {
  const offset = REGISTERS[arch].get(name)
  if (offset === undefined) throw new RangeError(`there is no register ${name} on ${arch}`)
  asm.loadMemory(dst, CTX, offset, 8)
}

/** r1 = the raw value of an operand, of its size and zero-extended; goes to `unreadable` if its memory cannot be read. */
export function emitValue(
  asm: Assembler,
  program: ReadingProgram,
  operand: Exclude<BoundOperand, { kind: 'unsupported' }>,
  unreadable: Label,
): void {
  const { arch } = program
  if (operand.kind === 'constant' || operand.kind === 'register') {
    emitDirect(asm, arch, operand)
    emitNarrow(asm, 1, operand.size)
    return
  }
  emitAddress(asm, arch, operand)
  asm.storeMemory(FRAME, STACK.address, 3, 8)
  asm.storeImm(FRAME, STACK.value, 0, 8)
  emitRead(asm, program, FRAME, STACK.value, operand.size)
  asm.jumpIf(0, 'jne', 0, unreadable)
  asm.loadMemory(1, FRAME, STACK.value, 8)
}

/** Keeps the low bytes of a register. */
export function emitNarrow(asm: Assembler, register: Register, bytes: number): void {
  if (bytes === 8) return
  asm.shiftLeft(register, 64 - 8 * bytes)
  asm.shiftRight(register, 64 - 8 * bytes)
}

/** Smallest page of the supported architectures, so that a step of this size misses none. */
const PAGE_BYTES = 4096

/**
 * Reads the string at the address on the stack to base + offset; r0 = its length with the NUL, or a negative errno. Where the program may sleep, pages that
 * are not present, such as constants that nobody has touched yet, are fetched by copying a byte of each, and the string is read again.
 */
export function emitString(asm: Assembler, program: ReadingProgram, base: Register, offset: number, bytes: number): void {
  const done = new Label()
  const read = (): void => {
    asm.mov(1, base)
    asm.addImm(1, offset)
    asm.load(2, bytes)
    asm.loadMemory(3, FRAME, STACK.address, 8)
    asm.call(HELPER.probe_read_user_str)
  }
  read()
  if (!program.sleepable) return
  asm.jumpIf(0, 'jsge', 0, done)
  emitPageInString(asm, bytes)
  read()
  asm.place(done)
}

/** Fetches the pages of a string of at most `bytes` at the address on the stack, by copying a byte of each. */
function emitPageInString(asm: Assembler, bytes: number): void {
  for (let page = 0; page <= Math.ceil(bytes / PAGE_BYTES); page++) {
    asm.storeImm(FRAME, STACK.value, 0, 8)
    asm.mov(1, FRAME)
    asm.addImm(1, STACK.value)
    asm.load(2, 1)
    asm.loadMemory(3, FRAME, STACK.address, 8)
    if (page > 0) {
      asm.addImm(3, page * PAGE_BYTES)
      asm.andImm(3, -PAGE_BYTES)
    }
    asm.call(HELPER.copy_from_user)
  }
}

/**
 * Fetches all memory that the operands of a shape lie in, as far as it is mapped.
 * @param areaBytes - how much of each string is read
 */
export function emitPageIn(asm: Assembler, program: ReadingProgram, shape: CaptureShape, areaBytes: number): void {
  const strings = new Set(readableStrings(shape))
  for (const [index, operand] of shape.operands.entries()) {
    if (operand.kind === 'unsupported' || !(strings.has(index) || isInMemory(operand))) continue
    const unreadable = new Label()
    emitValue(asm, program, operand, unreadable)
    if (strings.has(index)) {
      asm.storeMemory(FRAME, STACK.address, 1, 8)
      emitPageInString(asm, areaBytes)
    }
    asm.place(unreadable)
  }
}

/** Whether an operand lies in the target's memory. */
export function isInMemory(operand: BoundOperand): boolean {
  return operand.kind === 'memory' || operand.kind === 'pc-relative'
}

/** Reads memory at the address on the stack to base + offset; r0 = 0 if it could be read. */
export function emitRead(asm: Assembler, program: ReadingProgram, base: Register, offset: number, bytes: number): void {
  const done = new Label()
  const read = (helper: number): void => {
    asm.mov(1, base)
    asm.addImm(1, offset)
    asm.load(2, bytes)
    asm.loadMemory(3, FRAME, STACK.address, 8)
    asm.call(helper)
  }
  read(HELPER.probe_read_user)
  if (!program.sleepable) return
  asm.jumpIf(0, 'jeq', 0, done)
  read(HELPER.copy_from_user)
  asm.place(done)
}
