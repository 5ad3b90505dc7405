/**
 * BPF code that fills a record (record.ts says how it looks) and hands it over.
 *
 * What can fail at a hit is reading user memory: the page may not be there, and a program may not wait for it. The operand's flag is then set, its value is the
 * address that was tried, and the rest of the record is filled all the same.
 */
import { type Assembler, HELPER, Label } from './bpf.js'
import { COOKIE, FRAME, MEASURED_BYTES, RECORD, type ReadingProgram, STACK } from './frame.js'
import { emitAddress, emitDirect, emitNarrow, emitRead, emitString, emitValue } from './operand-code.js'
import type { BoundOperand } from './operands.js'
import { COMM_BYTES, FIELD, type RecordClass, SMALL_RECORD_BIT } from './record.js'
import { type CaptureShape, readableStrings } from './shape.js'
import { emitStackKey } from './stack-code.js'

/** What of a capture program goes into its records. */
export interface RecordProgram extends ReadingProgram {
  readonly attach: 'perf' | 'multi'
  readonly probeId: number
  readonly slot: number
}

const BPF_RB_AVAIL_DATA = 0
const BPF_RB_FORCE_WAKEUP = 2

/** A record takes 8 bytes more in the ring. */
const RING_HEAD_BYTES = 8

/** The reader is woken when the waiting data passes a multiple of this part of the ring. */
const WAKE_FRACTION = 4

/**
 * How far above a multiple the waiting data may be to have just passed it, in records. More than one, since other CPUs may add theirs between our reserving and
 * our asking, and then nobody would see the crossing as his own. Further wake-ups while one is pending cost little.
 */
const WAKE_WINDOW_RECORDS = 4

/**
 * Goes to `long` if any string may not fit a small record. Another thread may change a string before it is read again: one that has grown meanwhile is then
 * reported as truncated.
 */
export function emitMeasure(asm: Assembler, program: ReadingProgram, shape: CaptureShape, long: Label): void {
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

/**
 * Fills the record, without waiting for memory that is not present: as long as a record is not submitted, the reader sees none of those behind it, and how
 * long a page takes to come may be up to the target (a file system in user space).
 */
export function emitFill(asm: Assembler, program: RecordProgram, shape: CaptureShape, record: RecordClass): void {
  const present = { ...program, sleepable: false }
  emitHead(asm, program, record.small)
  if (record.stackAt !== null) emitStackKey(asm, record.stackAt)
  if (program.sleepable) asm.storeImm(FRAME, STACK.absent, 0, 8)
  for (const [index, operand] of shape.operands.entries()) emitOperand(asm, present, operand, index)
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
    emitString(asm, present, RECORD, area.dataAt, area.bytes)
    asm.storeMemory(RECORD, area.lengthAt, 0, 8)
    asm.jumpIf(0, 'jsge', 0, done)
    emitAbsent(asm)
    asm.place(done)
  }
}

/** Nothing is mapped below, so null pointers and the fields behind them are not waited for (vm.mmap_min_addr is 65536 on most systems). */
const LOWEST_MAPPED = 4096

/** Notes that memory at the address on the stack may be absent. */
function emitAbsent(asm: Assembler): void {
  const unmapped = new Label()
  asm.loadMemory(1, FRAME, STACK.address, 8)
  asm.jumpIf(1, 'jlt', LOWEST_MAPPED, unmapped)
  asm.storeImm(FRAME, STACK.absent, 1, 8)
  asm.place(unmapped)
}

function emitHead(asm: Assembler, program: RecordProgram, small: boolean): void {
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

/** Writes one operand into the record: its raw value, or the address that could not be read and its flag. */
function emitOperand(asm: Assembler, program: RecordProgram, operand: BoundOperand, index: number): void {
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
      emitAbsent(asm)
      asm.place(done)
    }
  }
}

function flagOf(index: number): number {
  return 1 << index
}

/** Submits the record, and says whether the reader is to be woken in any case. */
export function emitSubmit(asm: Assembler, ringFd: number, ringBytes: number, record: Pick<RecordClass, 'bytes'>): void {
  const step = ringBytes / WAKE_FRACTION
  const submit = new Label()
  asm.loadMap(1, ringFd)
  asm.load(2, BPF_RB_AVAIL_DATA)
  asm.call(HELPER.ringbuf_query)
  asm.load(2, 0)
  asm.jumpIf(0, 'jlt', step, submit)
  asm.andImm(0, step - 1)
  asm.jumpIf(0, 'jge', Math.min(WAKE_WINDOW_RECORDS * (record.bytes + RING_HEAD_BYTES), step), submit)
  asm.load(2, BPF_RB_FORCE_WAKEUP)
  asm.place(submit)
  asm.mov(1, RECORD)
  asm.call(HELPER.ringbuf_submit)
}

/**
 * Gives the record up. The reader is woken as by a submit: it may have been waiting for this very record, and if it did not skip it, the next one would not
 * find it waiting and not wake it.
 */
export function emitDiscard(asm: Assembler): void {
  asm.mov(1, RECORD)
  asm.load(2, 0)
  asm.call(HELPER.ringbuf_discard)
}
