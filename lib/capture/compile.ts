/**
 * From shapes to BPF: the program that runs at each hit of a probe.
 *
 * In outline, for every hit:
 *
 *     if this is our own reader thread: leave
 *     counts = per-CPU array[slot];  counts.hits += 1
 *     if only counting: leave
 *     read the operands that the filter needs; if it rejects: counts.filtered += 1, leave
 *     record = reserve(ring, size);  if there is no room: counts.lostRing += 1, leave
 *     fill in the head, each operand, each string
 *     submit, and wake the reader if the ring runs full
 *
 * Programs on uprobes run preemptible and pinned to their CPU since Linux 6.12, so two hits can interleave on one CPU: the counts are added to atomically, and nothing is
 * kept in per-CPU memory in between, only on the stack and in the record itself. The program returns 0, so that a perf event it is set on makes no sample.
 *
 * Wake-ups: a record that is submitted plainly wakes the reader only if the reader had caught up with it (`bpf_ringbuf_commit`, kernel/bpf/ringbuf.c); since the reader
 * then lets hits gather before it looks again, that is one wake-up a batch. In between a wake-up is forced when the waiting data passes a multiple of a quarter of
 * the ring, so that a burst does not overflow it while the reader sleeps.
 */
import { UprobeError } from '../errors.js'
import { Assembler, HELPER, type JUMP, Label, type Register } from './bpf.js'
import type { FilterExpression, FilterRelation } from './filter.js'
import type { Arch, BoundOperand } from './operands.js'
import { COMM_BYTES, FIELD, layoutOf, type RecordClass, SMALL_RECORD_BIT } from './record.js'
import { type CaptureShape, readableStrings } from './shape.js'

/** What a capture program is made from. */
export interface CaptureProgram {
  readonly arch: Arch
  /** How it is attached: a perf event has its slot built in, a uprobe_multi link passes a cookie. */
  readonly attach: 'perf' | 'multi'
  /** Number of the probe within its tracer; it stands in each record. */
  readonly probeId: number
  /** The site, for a perf event. */
  readonly slot: number
  /** What is recorded: for a perf event one shape; for a link those that the cookie chooses from. */
  readonly shapes: readonly CaptureShape[]
  /** The per-CPU array of counts, an entry a slot. */
  readonly statsFd: number
  /** The ring buffer; `null` to count only. */
  readonly ringFd: number | null
  readonly ringBytes: number
  /** A thread whose hits are ignored, by its id in the initial pid namespace. */
  readonly excludeTid: number | null
  readonly filter?: FilterExpression | null | undefined
  /** Whether the program is loaded as one that may sleep: memory that is not present is then paged in instead of being unreadable. */
  readonly sleepable?: boolean
}

/** Size of an entry of the counts: u64 hits, u64 filtered, u64 lostRing. */
export const STATS_VALUE_BYTES = 24

const COUNT = { hits: 0, filtered: 8, lostRing: 16 } as const

/** Registers that keep their meaning through the program. */
const CTX = 6
const COOKIE = 7
const COUNTS = 8
const RECORD = 9
const FRAME = 10

/** The stack, downwards from the frame pointer. */
const STACK = {
  /** u32 key of the map lookup. */
  key: -8,
  /** u64 address that is being read. */
  address: -16,
  /** u64 value read for the filter or a measured string. */
  value: -24,
  /** Strings are measured here before a class of record is chosen. */
  string: -24 - 256,
} as const
const MEASURED_BYTES = 256

/** Largest value of a jump that the 16 bits of its offset can hold, with room for what surrounds a shape's code. */
const MAX_PROGRAM_INSNS = 30_000

const BPF_RB_AVAIL_DATA = 0
const BPF_RB_FORCE_WAKEUP = 2
/** A record takes 8 bytes more in the ring. */
const RING_HEAD_BYTES = 8

/** What a link passes at a site: the slot in the low half, the index of its shape in the high half. */
export function cookieOf(slot: number, shape: number): bigint {
  return (BigInt(shape) << 32n) | BigInt(slot)
}

/** Offsets in the context of a uprobe program: `struct pt_regs` on x86-64, `struct user_pt_regs` on arm64. */
const REGISTERS: Record<Arch, ReadonlyMap<string, number>> = {
  x64: new Map(
    ['r15', 'r14', 'r13', 'r12', 'rbp', 'rbx', 'r11', 'r10', 'r9', 'r8', 'rax', 'rcx', 'rdx', 'rsi', 'rdi', 'orig_rax', 'pc', 'cs', 'eflags', 'rsp'].map(
      (name, index) => [name, 8 * index],
    ),
  ),
  arm64: new Map([...Array.from({ length: 31 }, (_, index): [string, number] => [`x${index}`, 8 * index]), ['sp', 248], ['pc', 256]]),
}

/**
 * Compiles a capture program.
 * @returns the encoded instructions
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` when the filter or the strings do not suit the operands
 */
export function compileCapture(program: CaptureProgram): Uint8Array {
  const asm = new Assembler()
  const leave = new Label()
  asm.mov(CTX, 1)
  if (program.excludeTid !== null) {
    asm.call(HELPER.get_current_pid_tgid)
    asm.truncate(0)
    asm.jumpIf(0, 'jeq', program.excludeTid, leave)
  }
  emitSlot(asm, program)
  asm.loadMap(1, program.statsFd)
  asm.mov(2, FRAME)
  asm.addImm(2, STACK.key)
  asm.call(HELPER.map_lookup_elem)
  asm.jumpIf(0, 'jeq', 0, leave)
  asm.mov(COUNTS, 0)
  emitCount(asm, COUNT.hits)
  // A program that only counts need not know what else it could have recorded.
  if (program.ringFd !== null || program.filter) emitShapes(asm, program, leave)
  asm.place(leave)
  asm.load(0, 0)
  asm.exit()
  return asm.encode()
}

/** Whether a program for these shapes reads memory of the target, so that it has something to sleep for. */
export function readsMemory(shapes: readonly CaptureShape[]): boolean {
  return shapes.some((shape) => readableStrings(shape).length > 0 || shape.operands.some(({ kind }) => kind === 'memory' || kind === 'pc-relative'))
}

/** Divides shapes into groups, each of which makes a program of a size that the kernel takes. The order is kept. */
export function splitShapes(shapes: readonly CaptureShape[], base: Omit<CaptureProgram, 'attach' | 'slot' | 'shapes'>): CaptureShape[][] {
  const groups: CaptureShape[][] = []
  let room = 0
  for (const shape of shapes) {
    const asm = new Assembler()
    emitShape(asm, { ...base, attach: 'multi', slot: 0, shapes: [shape] }, shape, new Label())
    const group = groups.at(-1)
    if (group === undefined || asm.length > room) {
      groups.push([shape])
      room = MAX_PROGRAM_INSNS - asm.length
    } else {
      group.push(shape)
      room -= asm.length
    }
  }
  return groups
}

function emitSlot(asm: Assembler, program: CaptureProgram): void {
  if (program.attach === 'perf') {
    asm.storeImm(FRAME, STACK.key, program.slot, 4)
    return
  }
  asm.mov(1, CTX)
  asm.call(HELPER.get_attach_cookie)
  asm.mov(COOKIE, 0)
  asm.storeMemory(FRAME, STACK.key, COOKIE, 4)
}

function emitCount(asm: Assembler, field: number): void {
  asm.load(1, 1)
  asm.atomicAdd(COUNTS, field, 1)
}

/** Chooses the code of the site's shape by halving. */
function emitShapes(asm: Assembler, program: CaptureProgram, leave: Label): void {
  const labels = program.shapes.map(() => new Label())
  const choose = (first: number, end: number): void => {
    if (end - first === 1) {
      const only = labels[first]
      if (only !== undefined) asm.jump(only)
      return
    }
    const middle = (first + end) >> 1
    const upper = new Label()
    asm.jumpIf(1, 'jge', middle, upper)
    choose(first, middle)
    asm.place(upper)
    choose(middle, end)
  }
  if (labels.length > 1) {
    asm.mov(1, COOKIE)
    asm.shiftRight(1, 32)
    choose(0, labels.length)
  }
  program.shapes.forEach((shape, index) => {
    const label = labels[index]
    if (label !== undefined) asm.place(label)
    emitShape(asm, program, shape, leave)
  })
}

/** The code of one shape; it ends by leaving. */
function emitShape(asm: Assembler, program: CaptureProgram, shape: CaptureShape, leave: Label): void {
  if (program.filter) {
    const pass = new Label()
    const reject = new Label()
    emitFilter(asm, program, shape, program.filter, pass, reject)
    asm.place(reject)
    emitCount(asm, COUNT.filtered)
    asm.jump(leave)
    asm.place(pass)
  }
  if (program.ringFd !== null) {
    const { full, small } = layoutOf(shape)
    if (small !== null) {
      const long = new Label()
      emitMeasure(asm, program, shape, long)
      emitRecord(asm, program, program.ringFd, shape, small, true, leave)
      asm.place(long)
    }
    emitRecord(asm, program, program.ringFd, shape, full, false, leave)
  } else {
    asm.jump(leave)
  }
}

/** Goes to `long` if any string may not fit a small record. */
function emitMeasure(asm: Assembler, program: CaptureProgram, shape: CaptureShape, long: Label): void {
  for (const index of readableStrings(shape)) {
    const operand = shape.operands[index]
    if (operand === undefined || operand.kind === 'unsupported') continue
    const unreadable = new Label()
    emitValue(asm, program, operand, unreadable)
    asm.storeMemory(FRAME, STACK.address, 1, 8)
    emitString(asm, program, FRAME, STACK.string, MEASURED_BYTES)
    asm.jumpIf(0, 'jeq', MEASURED_BYTES, long)
    asm.place(unreadable)
  }
}

function emitRecord(
  asm: Assembler,
  program: CaptureProgram,
  ringFd: number,
  shape: CaptureShape,
  record: RecordClass,
  small: boolean,
  leave: Label,
): void {
  const reserved = new Label()
  asm.loadMap(1, ringFd)
  asm.load(2, record.bytes)
  asm.load(3, 0)
  asm.call(HELPER.ringbuf_reserve)
  asm.jumpIf(0, 'jne', 0, reserved)
  emitCount(asm, COUNT.lostRing)
  asm.jump(leave)
  asm.place(reserved)
  asm.mov(RECORD, 0)
  emitHead(asm, program, small)
  shape.operands.forEach((operand, index) => emitOperand(asm, program, operand, index))
  for (const area of record.strings) {
    const done = new Label()
    const operand = shape.operands[area.operand]
    // Bytes that the ring had before must not be taken for a string.
    asm.storeImm(RECORD, area.lengthAt, -1, 8)
    asm.loadMemory(1, RECORD, FIELD.flags, 4)
    asm.jumpIf(1, 'jset', flagOf(area.operand), done)
    asm.loadMemory(1, RECORD, FIELD.operands + 8 * area.operand, 8)
    if (operand !== undefined && operand.kind !== 'unsupported') emitNarrow(asm, 1, operand.size)
    asm.storeMemory(FRAME, STACK.address, 1, 8)
    emitString(asm, program, RECORD, area.dataAt, area.bytes)
    asm.storeMemory(RECORD, area.lengthAt, 0, 8)
    asm.place(done)
  }
  emitSubmit(asm, ringFd, program.ringBytes, record.bytes)
  asm.jump(leave)
}

function emitHead(asm: Assembler, program: CaptureProgram, small: boolean): void {
  asm.call(HELPER.ktime_get_ns)
  asm.storeMemory(RECORD, FIELD.time, 0, 8)
  // The low half is the thread, the high half the process, as the two fields stand.
  asm.call(HELPER.get_current_pid_tgid)
  asm.storeMemory(RECORD, FIELD.tid, 0, 8)
  asm.storeImm(RECORD, FIELD.probeId, program.probeId, 4)
  if (program.attach === 'perf') asm.storeImm(RECORD, FIELD.slot, program.slot, 4)
  else asm.storeMemory(RECORD, FIELD.slot, COOKIE, 4)
  asm.call(HELPER.get_smp_processor_id)
  asm.storeMemory(RECORD, FIELD.cpu, 0, 4)
  asm.storeImm(RECORD, FIELD.flags, small ? 1 << SMALL_RECORD_BIT : 0, 4)
  asm.mov(1, RECORD)
  asm.addImm(1, FIELD.comm)
  asm.load(2, COMM_BYTES)
  asm.call(HELPER.get_current_comm)
}

/** Smallest page of the supported architectures, so that a step of this size misses none. */
const PAGE_BYTES = 4096

/**
 * Reads the string at the address on the stack to base + offset; r0 = its length with the NUL, or a negative errno. Where the program may sleep, pages that
 * are not present, such as constants that nobody has touched yet, are fetched by copying a byte of each, and the string is read again.
 */
function emitString(asm: Assembler, program: CaptureProgram, base: Register, offset: number, bytes: number): void {
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
  read()
  asm.place(done)
}

/** Reads memory at the address on the stack to base + offset; r0 = 0 if it could be read. */
function emitRead(asm: Assembler, program: CaptureProgram, base: Register, offset: number, bytes: number): void {
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

/** Writes one operand into the record: its raw value, or the address that could not be read and its flag. */
function emitOperand(asm: Assembler, program: CaptureProgram, operand: BoundOperand, index: number): void {
  const { arch } = program
  const at = FIELD.operands + 8 * index
  switch (operand.kind) {
    case 'unsupported':
      asm.storeImm(RECORD, at, 0, 8)
      return
    case 'constant':
    case 'register':
      emitDirect(asm, arch, operand)
      asm.storeMemory(RECORD, at, 1, 8)
      return
    case 'memory':
    case 'pc-relative': {
      const done = new Label()
      emitAddress(asm, arch, operand)
      // The helper fills what it could not read with zeros, so the address is kept aside.
      asm.storeMemory(FRAME, STACK.address, 3, 8)
      asm.storeImm(RECORD, at, 0, 8)
      emitRead(asm, program, RECORD, at, operand.size)
      asm.jumpIf(0, 'jeq', 0, done)
      asm.loadMemory(1, FRAME, STACK.address, 8)
      asm.storeMemory(RECORD, at, 1, 8)
      asm.loadMemory(1, RECORD, FIELD.flags, 4)
      asm.orImm(1, flagOf(index))
      asm.storeMemory(RECORD, FIELD.flags, 1, 4)
      asm.place(done)
    }
  }
}

function flagOf(index: number): number {
  return 1 << index
}

/** r1 = the raw constant or register. */
function emitDirect(asm: Assembler, arch: Arch, operand: Extract<BoundOperand, { kind: 'constant' | 'register' }>): void {
  if (operand.kind === 'constant') {
    asm.load(1, operand.value)
  } else {
    loadRegister(asm, arch, 1, operand.register)
    asm.shiftRight(1, operand.shift)
  }
}

/** r3 = the address of an operand in memory. */
function emitAddress(asm: Assembler, arch: Arch, operand: Extract<BoundOperand, { kind: 'memory' | 'pc-relative' }>): void {
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

function loadRegister(asm: Assembler, arch: Arch, dst: Register, name: string): void {
  const offset = REGISTERS[arch].get(name)
  if (offset === undefined) throw new RangeError(`there is no register ${name} on ${arch}`)
  asm.loadMemory(dst, CTX, offset, 8)
}

/** r1 = the raw value of an operand, of its size and zero-extended; goes to `unreadable` if its memory cannot be read. */
function emitValue(asm: Assembler, program: CaptureProgram, operand: Exclude<BoundOperand, { kind: 'unsupported' }>, unreadable: Label): void {
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
function emitNarrow(asm: Assembler, register: Register, bytes: number): void {
  if (bytes === 8) return
  asm.shiftLeft(register, 64 - 8 * bytes)
  asm.shiftRight(register, 64 - 8 * bytes)
}

function emitSubmit(asm: Assembler, ringFd: number, ringBytes: number, recordBytes: number): void {
  const watermark = ringBytes / 4
  const plain = new Label()
  const submit = new Label()
  asm.loadMap(1, ringFd)
  asm.load(2, BPF_RB_AVAIL_DATA)
  asm.call(HELPER.ringbuf_query)
  asm.jumpIf(0, 'jlt', watermark, plain)
  asm.andImm(0, watermark - 1)
  asm.jumpIf(0, 'jgt', recordBytes + RING_HEAD_BYTES, plain)
  asm.load(2, BPF_RB_FORCE_WAKEUP)
  asm.jump(submit)
  asm.place(plain)
  asm.load(2, 0)
  asm.place(submit)
  asm.mov(1, RECORD)
  asm.call(HELPER.ringbuf_submit)
}

/** Goes to `pass` or `reject`. An argument whose memory cannot be read fulfils no comparison. */
function emitFilter(asm: Assembler, program: CaptureProgram, shape: CaptureShape, filter: FilterExpression, pass: Label, reject: Label): void {
  switch (filter.kind) {
    case 'and':
    case 'or': {
      const second = new Label()
      if (filter.kind === 'and') emitFilter(asm, program, shape, filter.left, second, reject)
      else emitFilter(asm, program, shape, filter.left, pass, second)
      asm.place(second)
      emitFilter(asm, program, shape, filter.right, pass, reject)
      return
    }
    case 'not':
      emitFilter(asm, program, shape, filter.inner, reject, pass)
      return
    case 'compare':
      emitComparison(asm, program, shape, filter, pass, reject)
  }
}

type Condition = keyof typeof JUMP

const SIGNED: Record<FilterRelation, Condition> = { '==': 'jeq', '!=': 'jne', '<': 'jslt', '<=': 'jsle', '>': 'jsgt', '>=': 'jsge' }
const UNSIGNED: Record<FilterRelation, Condition> = { '==': 'jeq', '!=': 'jne', '<': 'jlt', '<=': 'jle', '>': 'jgt', '>=': 'jge' }

function emitComparison(
  asm: Assembler,
  program: CaptureProgram,
  shape: CaptureShape,
  { subject, relation, value }: Extract<FilterExpression, { kind: 'compare' }>,
  pass: Label,
  reject: Label,
): void {
  let signed = false
  if (subject.is === 'arg') {
    const operand = filterOperand(shape, subject.index)
    signed = operand.signed
    emitValue(asm, program, operand, reject)
    if (signed && operand.size < 8) {
      asm.shiftLeft(1, 64 - 8 * operand.size)
      asm.shiftRightSigned(1, 64 - 8 * operand.size)
    }
  } else {
    asm.call(HELPER.get_current_pid_tgid)
    asm.mov(1, 0)
    if (subject.is === 'pid') asm.shiftRight(1, 32)
    else asm.truncate(1)
  }
  const constant = constantOutcome(signed, relation, value)
  if (constant !== null) {
    asm.jump(constant ? pass : reject)
    return
  }
  asm.load(2, value)
  asm.jumpIfRegister(1, (signed ? SIGNED : UNSIGNED)[relation], 2, pass)
  asm.jump(reject)
}

/** The outcome of a comparison with a number that the argument's type cannot hold, such as an unsigned one with -1; `null` if it has to be compared. */
function constantOutcome(signed: boolean, relation: FilterRelation, value: bigint): boolean | null {
  const tooSmall = signed ? false : value < 0n
  const tooLarge = signed ? value >= 1n << 63n : false
  if (!tooSmall && !tooLarge) return null
  if (relation === '==' || relation === '!=') return relation === '!='
  return relation.startsWith('>') === tooSmall
}

function filterOperand(shape: CaptureShape, index: number): Exclude<BoundOperand, { kind: 'unsupported' }> {
  const operand = shape.operands[index]
  const refuse = (why: string): UprobeError =>
    new UprobeError('ERR_UPROBE_BAD_OPTION', `Option filter compares arg${index}, ${why}. Name an integer argument, counted from 0.`)
  if (operand === undefined) throw refuse(`and a site has ${shape.operands.length} arguments`)
  if (operand.kind === 'unsupported') throw refuse(`which cannot be read: ${operand.reason}`)
  if (operand.float) throw refuse('which is a floating-point number')
  return operand
}
