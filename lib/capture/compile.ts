/**
 * From shapes to BPF: the program that runs at each hit of a probe.
 *
 * In outline, for every hit:
 *
 *     if this is our own reader thread: leave
 *     if hits are to be ignored, since the probe is paused, or is being put in or taken out: pause.hits += 1, leave
 *     if it is to mark its hits (where a latency begins): pause.hits += 1, count nothing below, and do what is done with hits that the filter rejects
 *     counts = per-CPU array[slot];  counts.hits += 1
 *     if only counting: leave
 *     read the operands that the filter needs; if it rejects: counts.filtered += 1, leave
 *     if hits are added up (lib/aggregate): do that, leave
 *     if stacks are wanted: walk the stack; if it is new: send a record of its addresses
 *     record = reserve(ring, size);  if there is no room: counts.lostRing += 1, leave
 *     fill in the head, each operand, each string
 *     if memory was absent and we may sleep: discard(record), fetch the memory, reserve and fill in another
 *     submit, and wake the reader if the ring runs full
 *
 * Programs on uprobes run preemptible and pinned to their CPU since Linux 6.12, so two hits can interleave on one CPU: the counts are added to atomically, and nothing is
 * kept in per-CPU memory in between, only on the stack and in the record itself. The program returns 0, so that a perf event it is set on makes no sample.
 *
 * Wake-ups: a record that is submitted plainly wakes the reader only if the reader had caught up with it (`bpf_ringbuf_commit`, kernel/bpf/ringbuf.c), and the reader says that it
 * has when it wants to be woken (native/bpf_ring.h). Beside that a wake-up is forced when the waiting data passes a multiple of a quarter of the ring, so that a burst does
 * not overflow it while the reader sleeps.
 */

import { atOnce } from '../elf/time-slice.js'
import { Assembler, HELPER, Label } from './bpf.js'
import type { Filter } from './filter.js'
import { bindFilter, filterReadsMemory } from './filter-bind.js'
import { emitFilter } from './filter-code.js'
import { COOKIE, COUNTS, CTX, FRAME, RECORD, type ReadingProgram, STACK } from './frame.js'
import { emitLookup } from './lookup-code.js'
import { emitPageIn, isInMemory } from './operand-code.js'
import { emitOwnStack } from './own-stack.js'
import { layoutOf, type RecordClass } from './record.js'
import { emitDiscard, emitFill, emitMeasure, emitSubmit } from './record-code.js'
import { type CaptureShape, readableStrings } from './shape.js'
import { emitStack, type StackProgram } from './stack-code.js'

/** What becomes of a hit where it is not made a record of: it is added up in maps (lib/aggregate). Its code may use the registers from `COOKIE` on. Where the program may sleep it sleeps only before it looks anything up: a page may be long in coming. */
export interface HitSink {
  /** The code for a hit that the filter let through; it ends by going to `leave`. */
  emit(asm: Assembler, program: CaptureProgram, shape: CaptureShape, leave: Label): void
  /** The code for one that was rejected, and has been counted; it ends likewise. Default: none. */
  emitRejected?(asm: Assembler, program: CaptureProgram, shape: CaptureShape, leave: Label): void
  /** Whether the code for this shape reads memory of the target that is worth waiting for. */
  readsMemory(shape: CaptureShape): boolean
  /** Whether the probe may be told to mark its hits ({@link PAUSE_STATE}): then they go to {@link emitRejected}, without being counted. */
  readonly marks?: boolean
}

/** What a capture program is made from. */
export interface CaptureProgram extends ReadingProgram {
  /** How it is attached: a perf event has its slot built in, a uprobe_multi link passes a cookie. */
  readonly attach: 'perf' | 'multi'
  /** Number of the probe within its tracer; it stands in each record. */
  readonly probeId: number
  /** The site, for a perf event. */
  readonly slot: number
  /** What is recorded: for a perf event one shape; for a link those that the cookie chooses from. */
  readonly shapes: readonly CaptureShape[]
  /** The per-CPU array of counts: an entry a slot, or one for several. */
  readonly statsFd: number
  /** How many slots an entry of the counts is for: a power of two. Default: 1. */
  readonly slotsAnEntry?: number | undefined
  /** The ring buffer; `null` to count only. */
  readonly ringFd: number | null
  readonly ringBytes: number
  /** A thread whose hits are ignored, by its id in the initial pid namespace. */
  readonly excludeTid: number | null
  readonly filter?: Filter | null | undefined
  /** Where stacks go; needed for shapes that record them. */
  readonly stacks?: StackProgram | null | undefined
  /** Takes the hits instead of the ring. */
  readonly sink?: HitSink | null | undefined
  /** An array with one entry of {@link PAUSE_VALUE_BYTES}, by which hits are ignored; `null` for a program that counts whatever it is hit by. */
  readonly pauseFd?: number | null | undefined
}

/** Size of the entry that says whether the probe is paused: u64 state, u64 hits since. */
export const PAUSE_VALUE_BYTES = 16

const PAUSE = { state: 0, hits: 8 } as const

/** What becomes of hits: they are counted, they are ignored, or they are marked, if the sink can do that. */
export const PAUSE_STATE = { live: 0, paused: 1, marking: 2 } as const

/** Size of the counts of a slot: u64 hits, u64 filtered, u64 lostRing. */
export const STATS_VALUE_BYTES = 24

const COUNT = { hits: 0, filtered: 8, lostRing: 16 } as const

/** Largest value of a jump that the 16 bits of its offset can hold, with room for what surrounds a shape's code. */
const MAX_PROGRAM_INSNS = 30_000

/** What a link passes at a site: the slot in the low half, the index of its shape in the high half. */
export function cookieOf(slot: number, shape: number): bigint {
  return BigInt(shape * 2 ** 32 + slot)
}

/** The halves of a cookie in memory, as 32-bit words. Both supported architectures are little-endian. */
export const COOKIE_WORD = { slot: 0, shape: 1 } as const

/**
 * Compiles a capture program.
 * @returns the encoded instructions
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` when the filter or the strings do not suit the operands
 */
export function compileCapture(program: CaptureProgram): Uint8Array {
  return atOnce(compileSteps(program))
}

/** The same, a shape at a step: of a server with some dozens of probes nearly each has a shape of its own. */
export function* compileSteps(program: CaptureProgram): Generator<undefined, Uint8Array> {
  const asm = new Assembler()
  const leave = new Label()
  asm.mov(CTX, 1)
  emitOwnStack(asm)
  if (program.excludeTid !== null) {
    asm.call(HELPER.get_current_pid_tgid)
    asm.truncate(0)
    asm.jumpIf(0, 'jeq', program.excludeTid, leave)
  }
  const marks = marksHits(program)
  if (program.pauseFd != null) emitPause(asm, program.pauseFd, marks, leave)
  emitSlot(asm, program)
  emitLookup(asm, program.statsFd, STACK.key)
  asm.jumpIf(0, 'jeq', 0, leave)
  asm.mov(COUNTS, 0)
  emitPlaceInEntry(asm, program)
  const marked = new Label()
  if (marks) emitIfMarking(asm, marked)
  emitCount(asm, COUNT.hits)
  if (marks) asm.place(marked)
  // A program that only counts need not know what else it could have recorded.
  if (program.ringFd !== null || program.filter || program.sink) yield* emitShapes(asm, program, leave)
  asm.place(leave)
  asm.load(0, 0)
  asm.exit()
  return asm.encode()
}

/** Whether a program for these shapes reads memory of the target, so that it has something to sleep for, and may. */
export function readsMemory({ filter, sink }: Pick<CaptureProgram, 'filter' | 'sink'>, shapes: readonly CaptureShape[]): boolean {
  return shapes.some(
    (shape) => (sink?.readsMemory(shape) ?? recordsMemory(shape)) || (filter && filterReadsMemory(bindFilter(filter, shape.operands))),
  )
}

function recordsMemory(shape: CaptureShape): boolean {
  return readableStrings(shape).length > 0 || shape.operands.some(isInMemory)
}

/** Divides shapes into groups, each of which makes a program of a size that the kernel takes. The order is kept. */
export function splitShapes(shapes: readonly CaptureShape[], base: Omit<CaptureProgram, 'attach' | 'slot' | 'shapes'>): CaptureShape[][] {
  return atOnce(splitSteps(shapes, base))
}

/** The same, a shape at a step. */
export function* splitSteps(
  shapes: readonly CaptureShape[],
  base: Omit<CaptureProgram, 'attach' | 'slot' | 'shapes'>,
): Generator<undefined, CaptureShape[][]> {
  if (shapes.length === 1) return [[...shapes]]
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
    yield
  }
  return groups
}

function marksHits({ pauseFd, sink }: Pick<CaptureProgram, 'pauseFd' | 'sink'>): boolean {
  return pauseFd != null && sink?.marks === true
}

function emitPause(asm: Assembler, pauseFd: number, marks: boolean, leave: Label): void {
  const live = new Label()
  asm.loadMapValue(0, pauseFd)
  asm.loadMemory(1, 0, PAUSE.state, 8)
  // It is looked at once, since it may change while the program runs.
  if (marks) asm.storeMemory(FRAME, STACK.marking, 1, 8)
  asm.jumpIf(1, 'jeq', PAUSE_STATE.live, live)
  asm.load(2, 1)
  asm.atomicAdd(0, PAUSE.hits, 2)
  if (marks) asm.jumpIf(1, 'jeq', PAUSE_STATE.marking, live)
  asm.jump(leave)
  asm.place(live)
}

/** Goes to `marked` if the hit is only to be marked; takes r1. */
function emitIfMarking(asm: Assembler, marked: Label): void {
  asm.loadMemory(1, FRAME, STACK.marking, 8)
  asm.jumpIf(1, 'jne', PAUSE_STATE.live, marked)
}

/** The key of the entry in which the counts of the slot are. */
function emitSlot(asm: Assembler, program: CaptureProgram): void {
  const { attach, slot, slotsAnEntry = 1 } = program
  if (attach === 'perf') {
    asm.storeImm(FRAME, STACK.key, Math.floor(slot / slotsAnEntry), 4)
    return
  }
  asm.mov(1, CTX)
  asm.call(HELPER.get_attach_cookie)
  asm.mov(COOKIE, 0)
  asm.truncate(0)
  asm.shiftRight(0, Math.log2(slotsAnEntry))
  asm.storeMemory(FRAME, STACK.key, 0, 4)
}

/** From the counts of the entry's first slot to those of ours. */
function emitPlaceInEntry(asm: Assembler, program: CaptureProgram): void {
  const { attach, slot, slotsAnEntry = 1 } = program
  if (slotsAnEntry === 1) return
  if (attach === 'perf') {
    asm.addImm(COUNTS, (slot % slotsAnEntry) * STATS_VALUE_BYTES)
    return
  }
  // By 24, in a way that every verifier can follow: times 8, and that times 2 once more.
  asm.mov(1, COOKIE)
  asm.andImm(1, slotsAnEntry - 1)
  asm.shiftLeft(1, 3)
  asm.mov(2, 1)
  asm.shiftLeft(1, 1)
  asm.add(1, 2)
  asm.add(COUNTS, 1)
}

function emitCount(asm: Assembler, field: number): void {
  asm.load(1, 1)
  asm.atomicAdd(COUNTS, field, 1)
}

/** Chooses the code of the site's shape by halving. */
function* emitShapes(asm: Assembler, program: CaptureProgram, leave: Label): Generator<undefined, void> {
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
  for (const [index, shape] of program.shapes.entries()) {
    const label = labels[index]
    if (label !== undefined) asm.place(label)
    emitShape(asm, program, shape, leave)
    yield
  }
}

/** The code of one shape; it ends by leaving. */
function emitShape(asm: Assembler, program: CaptureProgram, shape: CaptureShape, leave: Label): void {
  const marks = marksHits(program)
  if (program.filter || marks) {
    const pass = new Label()
    const reject = new Label()
    const mark = new Label()
    if (marks) emitIfMarking(asm, mark)
    if (program.filter) {
      emitFilter(asm, program, shape, program.filter, pass, reject)
      asm.place(reject)
      emitCount(asm, COUNT.filtered)
    } else {
      asm.jump(pass)
    }
    if (marks) asm.place(mark)
    if (program.sink?.emitRejected) program.sink.emitRejected(asm, program, shape, leave)
    else asm.jump(leave)
    asm.place(pass)
  }
  if (program.sink) {
    program.sink.emit(asm, program, shape, leave)
  } else if (program.ringFd !== null) {
    const { ringFd, stacks } = program
    const { full, small } = layoutOf(shape)
    if (shape.stack && stacks) {
      const reserve = (bytes: number): void => emitReserve(asm, ringFd, bytes, leave)
      emitStack(asm, { ...program, stacks }, shape.stack, reserve, (bytes) => emitSubmit(asm, ringFd, program.ringBytes, { bytes }))
    }
    if (small !== null) {
      const long = new Label()
      emitMeasure(asm, program, shape, long)
      emitRecord(asm, program, program.ringFd, shape, small, leave)
      asm.place(long)
    }
    emitRecord(asm, program, program.ringFd, shape, full, leave)
  } else {
    asm.jump(leave)
  }
}

/**
 * Writes a record, or counts the loss. If memory was absent and the program may sleep, the record is given up, the memory fetched, and another one filled;
 * what is unreadable then is.
 */
function emitRecord(asm: Assembler, program: CaptureProgram, ringFd: number, shape: CaptureShape, record: RecordClass, leave: Label): void {
  const submit = new Label()
  emitReserve(asm, ringFd, record.bytes, leave)
  emitFill(asm, program, shape, record)
  if (program.sleepable && recordsMemory(shape)) {
    asm.loadMemory(1, FRAME, STACK.absent, 8)
    asm.jumpIf(1, 'jeq', 0, submit)
    emitDiscard(asm)
    emitPageIn(asm, program, shape, Math.max(0, ...record.strings.map(({ bytes }) => bytes)))
    emitReserve(asm, ringFd, record.bytes, leave)
    emitFill(asm, program, shape, record)
  }
  asm.place(submit)
  emitSubmit(asm, ringFd, program.ringBytes, record)
  asm.jump(leave)
}

function emitReserve(asm: Assembler, ringFd: number, bytes: number, leave: Label): void {
  const reserved = new Label()
  asm.loadMap(1, ringFd)
  asm.load(2, bytes)
  asm.load(3, 0)
  asm.call(HELPER.ringbuf_reserve)
  asm.jumpIf(0, 'jne', 0, reserved)
  emitCount(asm, COUNT.lostRing)
  asm.jump(leave)
  asm.place(reserved)
  asm.mov(RECORD, 0)
}
