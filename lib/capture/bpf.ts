/**
 * A small assembler for eBPF: the instructions that capture programs are made of, labels, and the encoding.
 *
 * An instruction is 8 bytes: opcode, destination and source register in one byte, a 16-bit offset, a 32-bit immediate (Documentation/bpf/standardization/instruction-set.rst in
 * the kernel). Names follow the kernel's macros without their prefix.
 */

/** r0 result, r1 to r5 arguments and scratch, r6 to r9 preserved over calls, r10 the frame pointer. */
export type Register = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10

/** Numbers of the helpers (include/uapi/linux/bpf.h, ___BPF_FUNC_MAPPER), with the version that brought the youngest ones. */
export const HELPER = {
  map_lookup_elem: 1,
  map_update_elem: 2,
  map_delete_elem: 3,
  ktime_get_ns: 5,
  get_smp_processor_id: 8,
  tail_call: 12,
  get_current_pid_tgid: 14,
  get_current_comm: 16,
  /** 5.5 */
  probe_read_user: 112,
  /** 5.5 */
  probe_read_user_str: 114,
  /** 5.8 */
  ringbuf_reserve: 131,
  /** 5.8 */
  ringbuf_submit: 132,
  /** 5.8 */
  ringbuf_discard: 133,
  /** 5.8 */
  ringbuf_query: 134,
  /** 5.10, only for programs that may sleep */
  copy_from_user: 148,
  /** 5.15 */
  get_attach_cookie: 174,
} as const

/** Conditions of jumps against an immediate. */
export const JUMP = {
  jeq: 0x15,
  jgt: 0x25,
  jge: 0x35,
  jset: 0x45,
  jne: 0x55,
  jsgt: 0x65,
  jsge: 0x75,
  jlt: 0xa5,
  jle: 0xb5,
  jslt: 0xc5,
  jsle: 0xd5,
} as const

/** Arithmetic between two registers, 64 bits wide and unsigned unless it says otherwise. */
export const OPERATION = {
  add: 0x0f,
  subtract: 0x1f,
  multiply: 0x2f,
  divide: 0x3f,
  or: 0x4f,
  and: 0x5f,
  shiftLeft: 0x6f,
  shiftRight: 0x7f,
  remainder: 0x9f,
  xor: 0xaf,
  shiftRightSigned: 0xcf,
} as const

/** Sizes of loads and stores. */
const SIZE = { 1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18 } as const

const BPF_LDX_MEM = 0x61
const BPF_STX_MEM = 0x63
const BPF_ST_MEM = 0x62
const BPF_STX_ATOMIC_DW = 0xdb
const BPF_LD_IMM64 = 0x18
const BPF_PSEUDO_MAP_FD = 1
const BPF_PSEUDO_MAP_VALUE = 2
/** BPF_CMPXCHG, which includes BPF_FETCH */
const BPF_CMPXCHG = 0xf1
const BPF_CALL = 0x85
const BPF_EXIT = 0x95
const BPF_JA = 0x05
const INSN_BYTES = 8

/** A place in a program that jumps go to. */
export class Label {
  /** Index of the instruction behind it; -1 until it is placed. */
  position = -1
}

interface Instruction {
  opcode: number
  dst: Register
  src: number
  offset: number
  imm: number
  target?: Label
}

/** Collects instructions. */
export class Assembler {
  readonly #insns: Instruction[] = []

  /** Instructions so far; a 64-bit load counts twice, as in the kernel. */
  get length(): number {
    return this.#insns.length
  }

  #emit(opcode: number, dst: Register, src: number, offset: number, imm: number, target?: Label): void {
    this.#insns.push({ opcode, dst, src, offset, imm, ...(target === undefined ? {} : { target }) })
  }

  /** dst = src */
  mov(dst: Register, src: Register): void {
    this.#emit(0xbf, dst, src, 0, 0)
  }

  /** dst = low 32 bits of dst, zero-extended */
  truncate(dst: Register): void {
    this.#emit(0xbc, dst, dst, 0, 0)
  }

  /** dst = imm, any 64-bit value, in one instruction if it fits */
  load(dst: Register, imm: bigint | number): void {
    const value = BigInt.asIntN(64, BigInt(imm))
    if (value === BigInt.asIntN(32, value)) this.#emit(0xb7, dst, 0, 0, Number(value))
    else this.#load64(dst, 0, value)
  }

  /** dst = the map behind a file descriptor */
  loadMap(dst: Register, fd: number): void {
    this.#load64(dst, BPF_PSEUDO_MAP_FD, BigInt(fd))
  }

  /** dst = address of the value of an array map with one entry; 5.2 and later */
  loadMapValue(dst: Register, fd: number): void {
    this.#load64(dst, BPF_PSEUDO_MAP_VALUE, BigInt(fd))
  }

  #load64(dst: Register, src: number, value: bigint): void {
    this.#emit(BPF_LD_IMM64, dst, src, 0, Number(BigInt.asIntN(32, value)))
    this.#emit(0, 0, 0, 0, Number(BigInt.asIntN(32, value >> 32n)))
  }

  /** dst += src */
  add(dst: Register, src: Register): void {
    this.#emit(0x0f, dst, src, 0, 0)
  }

  /** dst += imm */
  addImm(dst: Register, imm: number): void {
    if (imm !== 0) this.#emit(0x07, dst, 0, 0, imm)
  }

  /** dst = dst operation src, modulo 2^64; a divisor of 0 and more than 63 bits to shift are the caller's to avoid */
  operate(dst: Register, operation: keyof typeof OPERATION, src: Register): void {
    this.#emit(OPERATION[operation], dst, src, 0, 0)
  }

  /** dst = -dst */
  negate(dst: Register): void {
    this.#emit(0x87, dst, 0, 0, 0)
  }

  /** dst ^= imm, sign-extended */
  xorImm(dst: Register, imm: number): void {
    this.#emit(0xa7, dst, 0, 0, imm)
  }

  /** dst |= imm */
  orImm(dst: Register, imm: number): void {
    this.#emit(0x47, dst, 0, 0, imm)
  }

  /** dst &= imm, sign-extended */
  andImm(dst: Register, imm: number): void {
    this.#emit(0x57, dst, 0, 0, imm)
  }

  /** dst <<= bits */
  shiftLeft(dst: Register, bits: number): void {
    if (bits !== 0) this.#emit(0x67, dst, 0, 0, bits)
  }

  /** dst >>= bits, filling with zeros */
  shiftRight(dst: Register, bits: number): void {
    if (bits !== 0) this.#emit(0x77, dst, 0, 0, bits)
  }

  /** dst >>= bits, filling with the sign */
  shiftRightSigned(dst: Register, bits: number): void {
    if (bits !== 0) this.#emit(0xc7, dst, 0, 0, bits)
  }

  /** dst = *(base + offset), zero-extended */
  loadMemory(dst: Register, base: Register, offset: number, size: 1 | 2 | 4 | 8): void {
    this.#emit(BPF_LDX_MEM | SIZE[size], dst, base, offset, 0)
  }

  /** *(base + offset) = src */
  storeMemory(base: Register, offset: number, src: Register, size: 1 | 2 | 4 | 8): void {
    this.#emit(BPF_STX_MEM | SIZE[size], base, src, offset, 0)
  }

  /** *(base + offset) = imm */
  storeImm(base: Register, offset: number, imm: number, size: 1 | 2 | 4 | 8): void {
    this.#emit(BPF_ST_MEM | SIZE[size], base, 0, offset, imm)
  }

  /** *(u64 *)(base + offset) += src, atomically */
  atomicAdd(base: Register, offset: number, src: Register): void {
    this.#emit(BPF_STX_ATOMIC_DW, base, src, offset, 0)
  }

  /** if *(u64 *)(base + offset) is r0, it becomes src; r0 = what it was; fully ordered. 5.12 and later, later still on arm64 */
  compareExchange(base: Register, offset: number, src: Register): void {
    this.#emit(BPF_STX_ATOMIC_DW, base, src, offset, BPF_CMPXCHG)
  }

  /** Calls a helper; its result is in r0, and r1 to r5 are gone. */
  call(helper: number): void {
    this.#emit(BPF_CALL, 0, 0, 0, helper)
  }

  /** Returns r0. */
  exit(): void {
    this.#emit(BPF_EXIT, 0, 0, 0, 0)
  }

  /** goto target */
  jump(target: Label): void {
    this.#emit(BPF_JA, 0, 0, 0, 0, target)
  }

  /** if (dst condition imm) goto target; imm is sign-extended */
  jumpIf(dst: Register, condition: keyof typeof JUMP, imm: number, target: Label): void {
    this.#emit(JUMP[condition], dst, 0, 0, imm, target)
  }

  /** if (dst condition src) goto target */
  jumpIfRegister(dst: Register, condition: keyof typeof JUMP, src: Register, target: Label): void {
    // BPF_X instead of BPF_K
    this.#emit(JUMP[condition] | 0x08, dst, src, 0, 0, target)
  }

  /** Whether any jump so far goes to `label`. */
  isJumpedTo(label: Label): boolean {
    return this.#insns.some((insn) => insn.target === label)
  }

  /** Jumps to `label` come here. */
  place(label: Label): void {
    label.position = this.#insns.length
  }

  /**
   * Encodes the program.
   * @throws {RangeError} when a jump is too far for its 16 bits, which callers avoid by the size of what they assemble
   */
  encode(): Uint8Array {
    const bytes = new Uint8Array(this.#insns.length * INSN_BYTES)
    const view = new DataView(bytes.buffer)
    this.#insns.forEach((insn, index) => {
      const at = index * INSN_BYTES
      const offset = insn.target === undefined ? insn.offset : insn.target.position - index - 1
      if (offset < -0x8000 || offset > 0x7fff || insn.target?.position === -1)
        throw new RangeError(`BPF instruction ${index} has no reachable target`)
      view.setUint8(at, insn.opcode)
      view.setUint8(at + 1, insn.dst | (insn.src << 4))
      view.setInt16(at + 2, offset, true)
      view.setInt32(at + 4, insn.imm, true)
    })
    return bytes
  }
}
