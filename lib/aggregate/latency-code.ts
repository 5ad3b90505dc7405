/**
 * BPF code that measures the time from one probe to another: what runs where it begins, where it ends, and where a thread or a program is over.
 *
 * The key of the group and the filter are decided at the beginning, where the arguments are, and the key is kept with it. A beginning that the filter rejects is kept too, with the time 0: its end must not be taken for that of
 * another. Ends are timed first thing, beginnings last, so that what the programs take themselves is not measured. Beginnings that are only to be marked (paired-arming.ts) are kept like rejected ones.
 */
import { Assembler, HELPER, Label } from '../capture/bpf.js'
import type { HitSink } from '../capture/compile.js'
import { emitNumber } from '../capture/filter-number-code.js'
import { CTX, FRAME, type ReadingProgram, STACK } from '../capture/frame.js'
import { emitDelete, emitInsert, emitLookup } from '../capture/lookup-code.js'
import type { CaptureShape } from '../capture/shape.js'
import { GENERATION, GROUP, KEY, SCRATCH } from './frame.js'
import { emitAdd, emitEnded, emitLoss, emitUnfinished, type GroupCode, LOSS } from './group-code.js'
import { emitKey, keyReadsMemory } from './key-code.js'
import { emitDrop, emitLeaveDead, emitPlace, emitPop, emitPush, type Place } from './stack-code.js'
import { bindTerm, readsMemory, type Term } from './terms.js'
import { emitLosses } from './value-code.js'

/** The maps in which a latency keeps what has begun. */
export type StartMaps = KeptBy & {
  /** Since when beginnings and ends are seen, where one may be later than another. */
  readonly since: SinceMap | null
}

/** Array by process, of u64: the moment from which on its beginnings and ends are seen. What has begun before may have ended unseen. */
export interface SinceMap {
  readonly fd: number
  /** How many entries there are, a power of two. Processes whose numbers differ by a multiple of it have one in common. */
  readonly entries: number
}

type KeptBy =
  | {
      readonly by: Place
      /** Hash by thread: a stack of beginnings (stack-code.ts). */
      readonly threadsFd: number
      /** Array of one entry that is zeros: a new stack. */
      readonly zerosFd: number
    }
  | {
      readonly by: 'argument'
      /** Hash by argument and life of the process: u64 time, and the key. The least recently used one goes when it is full. */
      readonly startsFd: number
      /** Hash by process: u64 that no other life of a process has, the moment of its first beginning. The least recently used one goes when it is full. */
      readonly livesFd: number
    }

/** Adds to the stack on which it is: u64 time before the key, so that both are one value. */
const START_VALUE = KEY - 8

/** What runs where the time begins. */
export class StartSink implements HitSink {
  readonly marks = true

  constructor(
    private readonly code: GroupCode,
    private readonly maps: StartMaps,
    private readonly term: Term | null,
  ) {}

  readsMemory({ operands }: CaptureShape): boolean {
    return keyReadsMemory(this.code.layout, operands) || (this.term !== null && readsMemory(this.term, operands))
  }

  emit(asm: Assembler, program: ReadingProgram, shape: CaptureShape, leave: Label): void {
    emitKey(asm, program, this.code.layout, shape)
    this.#begin(asm, program, shape, leave, true)
  }

  emitRejected(asm: Assembler, program: ReadingProgram, shape: CaptureShape, leave: Label): void {
    // The key is copied, whatever it is.
    for (let word = 0; word < this.code.layout.keyBytes; word += 8) asm.storeImm(FRAME, KEY + word, 0, 8)
    this.#begin(asm, program, shape, leave, false)
  }

  #begin(asm: Assembler, program: ReadingProgram, shape: CaptureShape, leave: Label, accepted: boolean): void {
    const full = new Label()
    const unreadable = new Label()
    if (this.maps.by === 'argument') this.#beginByArgument(asm, program, shape, leave, full, unreadable, accepted)
    else this.#beginByThread(asm, program, leave, full, accepted)
    // One that was rejected is no loss.
    const places: Array<readonly [Label, number | null]> = accepted
      ? [
          [full, LOSS.start],
          [unreadable, LOSS.unreadable],
        ]
      : [
          [full, this.maps.by === 'any' ? LOSS.start : null],
          [unreadable, null],
        ]
    for (const [label, reason] of places) {
      if (!asm.isJumpedTo(label)) continue
      asm.place(label)
      if (reason === null) asm.jump(leave)
      else emitLoss(asm, this.code.maps, reason, leave)
    }
  }

  #beginByThread(asm: Assembler, program: ReadingProgram, leave: Label, full: Label, accepted: boolean): void {
    const { maps } = this
    if (maps.by === 'argument') return
    const found = new Label()
    const code = { keyBytes: this.code.layout.keyBytes }
    asm.storeImm(FRAME, SCRATCH.count, 0, 4)
    emitPlace(asm, program, maps.by, 'entry')
    emitThread(asm)
    emitLookup(asm, maps.threadsFd, SCRATCH.match)
    asm.jumpIf(0, 'jne', 0, found)
    asm.loadMapValue(3, maps.zerosFd)
    emitInsert(asm, maps.threadsFd, SCRATCH.match)
    emitLookup(asm, maps.threadsFd, SCRATCH.match)
    asm.jumpIf(0, 'jeq', 0, accepted ? full : leave)
    asm.place(found)
    asm.mov(GROUP, 0)
    if (maps.by === 'frame') {
      emitLeaveDead(asm, program, code)
      emitUnfinished(asm, this.code.maps)
    }
    emitNow(asm, accepted)
    emitPush(asm, code, maps.by, full)
    asm.jump(leave)
  }

  #beginByArgument(
    asm: Assembler,
    program: ReadingProgram,
    shape: CaptureShape,
    leave: Label,
    full: Label,
    unreadable: Label,
    accepted: boolean,
  ): void {
    const { maps, term } = this
    if (maps.by !== 'argument' || term === null) return
    const alone = new Label()
    emitArgument(asm, program, shape, term, unreadable)
    const known = new Label()
    emitProcess(asm)
    emitLookup(asm, maps.livesFd, STACK.value)
    asm.jumpIf(0, 'jne', 0, known)
    emitNow(asm, true)
    asm.mov(3, FRAME)
    asm.addImm(3, SCRATCH.now)
    emitInsert(asm, maps.livesFd, STACK.value)
    emitLookup(asm, maps.livesFd, STACK.value)
    asm.jumpIf(0, 'jeq', 0, full)
    asm.place(known)
    asm.loadMemory(1, 0, 0, 8)
    asm.storeMemory(FRAME, SCRATCH.match + 8, 1, 8)
    emitNow(asm, accepted)
    asm.loadMemory(1, FRAME, SCRATCH.now, 8)
    asm.storeMemory(FRAME, START_VALUE, 1, 8)
    const insert = (): void => {
      asm.mov(3, FRAME)
      asm.addImm(3, START_VALUE)
      emitInsert(asm, maps.startsFd, SCRATCH.match)
      asm.jumpIf(0, 'jeq', 0, leave)
    }
    insert()
    // One that began with the same argument has not ended, and is given up: whoever removes it has it.
    emitLookup(asm, maps.startsFd, SCRATCH.match)
    asm.jumpIf(0, 'jeq', 0, alone)
    asm.loadMemory(GENERATION, 0, 0, 8)
    emitDelete(asm, maps.startsFd, SCRATCH.match)
    asm.jumpIf(0, 'jne', 0, alone)
    asm.jumpIf(GENERATION, 'jeq', 0, alone)
    asm.storeImm(FRAME, SCRATCH.count, 1, 4)
    emitUnfinished(asm, this.code.maps)
    asm.place(alone)
    insert()
    asm.jump(full)
  }
}

/** What runs where the time ends. */
export class EndSink implements HitSink {
  constructor(
    private readonly code: GroupCode,
    private readonly maps: StartMaps,
    private readonly term: Term | null,
  ) {}

  /** It does not wait for its argument: another thread could begin anew with the same one meanwhile, and this end would take that beginning. */
  readsMemory(): boolean {
    return false
  }

  emit(asm: Assembler, program: ReadingProgram, shape: CaptureShape, leave: Label): void {
    const unmatched = new Label()
    const contended = new Label()
    const later = new Label()
    emitNow(asm, true)
    if (this.maps.by === 'argument') this.#endByArgument(asm, program, shape, unmatched)
    else this.#endByThread(asm, program, unmatched)
    // r1 is when it began; 0 if that does not count.
    asm.jumpIf(1, 'jeq', 0, leave)
    if (this.maps.since !== null) this.#checkSince(asm, this.maps.since, unmatched)
    asm.loadMemory(2, FRAME, SCRATCH.now, 8)
    // Its beginning may be later: the clock that programs read may step back a little from one CPU to another (ktime_get_mono_fast_ns, kernel/time/timekeeping.c), and by an argument it may have begun
    // while we were looking.
    asm.jumpIfRegister(2, 'jge', 1, later)
    asm.mov(2, 1)
    asm.place(later)
    asm.operate(2, 'subtract', 1)
    asm.storeMemory(FRAME, SCRATCH.values, 2, 8)
    emitEnded(asm, this.code.maps)
    emitAdd(asm, this.code, leave, contended)
    const places = [
      [unmatched, LOSS.unmatched],
      [contended, LOSS.contended],
    ] as const
    emitLosses(asm, this.code, places, leave)
  }

  /** Gives the beginning up if it is from when not all was seen in this process. r1 is when it began, before and after. */
  #checkSince(asm: Assembler, { fd, entries }: SinceMap, unmatched: Label): void {
    const seen = new Label()
    asm.mov(GENERATION, 1)
    asm.call(HELPER.get_current_pid_tgid)
    asm.shiftRight(0, 32)
    asm.andImm(0, entries - 1)
    asm.storeMemory(FRAME, STACK.key, 0, 4)
    emitLookup(asm, fd, STACK.key)
    asm.jumpIf(0, 'jeq', 0, seen)
    asm.loadMemory(1, 0, 0, 8)
    asm.jumpIfRegister(GENERATION, 'jgt', 1, seen)
    asm.storeImm(FRAME, SCRATCH.count, 1, 4)
    emitUnfinished(asm, this.code.maps)
    asm.jump(unmatched)
    asm.place(seen)
    asm.mov(1, GENERATION)
  }

  #endByThread(asm: Assembler, program: ReadingProgram, unmatched: Label): void {
    const { maps } = this
    if (maps.by === 'argument') return
    const code = { keyBytes: this.code.layout.keyBytes }
    asm.storeImm(FRAME, SCRATCH.count, 0, 4)
    emitPlace(asm, program, maps.by, 'return')
    emitThread(asm)
    emitLookup(asm, maps.threadsFd, SCRATCH.match)
    asm.jumpIf(0, 'jeq', 0, unmatched)
    asm.mov(GROUP, 0)
    if (maps.by === 'frame') {
      emitDrop(asm, code, 'below')
      emitUnfinished(asm, this.code.maps)
    }
    emitPop(asm, code, maps.by, unmatched)
  }

  #endByArgument(asm: Assembler, program: ReadingProgram, shape: CaptureShape, unmatched: Label): void {
    const { maps, term } = this
    if (maps.by !== 'argument' || term === null) return
    emitArgument(asm, program, shape, term, unmatched)
    emitProcess(asm)
    emitLookup(asm, maps.livesFd, STACK.value)
    asm.jumpIf(0, 'jeq', 0, unmatched)
    asm.loadMemory(1, 0, 0, 8)
    asm.storeMemory(FRAME, SCRATCH.match + 8, 1, 8)
    emitLookup(asm, maps.startsFd, SCRATCH.match)
    asm.jumpIf(0, 'jeq', 0, unmatched)
    asm.loadMemory(GENERATION, 0, 0, 8)
    for (let word = 0; word < this.code.layout.keyBytes; word += 8) {
      asm.loadMemory(1, 0, 8 + word, 8)
      asm.storeMemory(FRAME, KEY + word, 1, 8)
    }
    emitDelete(asm, maps.startsFd, SCRATCH.match)
    asm.jumpIf(0, 'jne', 0, unmatched)
    asm.mov(1, GENERATION)
  }
}

/** SCRATCH.match = process and thread. */
function emitThread(asm: Assembler): void {
  asm.call(HELPER.get_current_pid_tgid)
  asm.storeMemory(FRAME, SCRATCH.match, 0, 8)
}

/** STACK.value = the process. */
function emitProcess(asm: Assembler): void {
  asm.call(HELPER.get_current_pid_tgid)
  asm.shiftRight(0, 32)
  asm.storeMemory(FRAME, STACK.value, 0, 8)
}

/** SCRATCH.now = the time, or 0. */
function emitNow(asm: Assembler, wanted: boolean): void {
  if (!wanted) {
    asm.storeImm(FRAME, SCRATCH.now, 0, 8)
    return
  }
  asm.call(HELPER.ktime_get_ns)
  asm.storeMemory(FRAME, SCRATCH.now, 0, 8)
}

/** SCRATCH.match = the argument. */
function emitArgument(asm: Assembler, program: ReadingProgram, shape: CaptureShape, term: Term, unreadable: Label): void {
  const bound = bindTerm(term, shape.operands)
  if (bound.is !== 'number') throw new TypeError('probes are matched by a number')
  emitNumber(asm, program, bound.number, 0, unreadable)
  asm.storeMemory(FRAME, SCRATCH.match, 1, 8)
}

/** Where threads and programs are over. */
export type Tracepoint = 'sched_process_exit' | 'sched_process_exec'

/** Which thread's exit is the end of its process: the last one's, as Linux 6.16 and later tell, or the leader's. */
export type LastExit = 'told' | 'leader'

/**
 * A program for the tracepoints sched_process_exit and sched_process_exec, which run in the thread that is over: what it began will not end, and whoever gets its number next must not find it.
 *
 * The second argument of the tracepoint is, at an exec, the number that the thread had, since it takes that of the leader; at an exit, whether it is the last thread of its process (include/trace/events/sched.h). Before Linux 6.16
 * there is none at an exit, and a program that reads it cannot be attached (`bpf_probe_register`, kernel/trace/bpf_trace.c).
 */
export function compileOver(maps: StartMaps, keyBytes: number, lossFd: number, tracepoint: Tracepoint, last: LastExit): Uint8Array {
  const asm = new Assembler()
  const leave = new Label()
  asm.mov(CTX, 1)
  if (maps.by === 'argument') {
    asm.call(HELPER.get_current_pid_tgid)
    asm.mov(1, 0)
    asm.truncate(1)
    asm.shiftRight(0, 32)
    asm.storeMemory(FRAME, STACK.value, 0, 8)
    if (tracepoint === 'sched_process_exit' && last === 'leader') asm.jumpIfRegister(0, 'jne', 1, leave)
    if (tracepoint === 'sched_process_exit' && last === 'told') {
      asm.loadMemory(1, CTX, 8, 8)
      asm.jumpIf(1, 'jeq', 0, leave)
    }
    emitDelete(asm, maps.livesFd, STACK.value)
  } else {
    emitThread(asm)
    emitForgetThread(asm, maps.threadsFd, keyBytes, lossFd)
    if (tracepoint === 'sched_process_exec') {
      emitThread(asm)
      asm.loadMemory(1, CTX, 8, 8)
      asm.storeMemory(FRAME, SCRATCH.match, 1, 4)
      emitForgetThread(asm, maps.threadsFd, keyBytes, lossFd)
    }
  }
  asm.place(leave)
  asm.load(0, 0)
  asm.exit()
  return asm.encode()
}

function emitForgetThread(asm: Assembler, threadsFd: number, keyBytes: number, lossFd: number): void {
  const unknown = new Label()
  asm.storeImm(FRAME, SCRATCH.count, 0, 4)
  emitLookup(asm, threadsFd, SCRATCH.match)
  asm.jumpIf(0, 'jeq', 0, unknown)
  asm.mov(GROUP, 0)
  emitDrop(asm, { keyBytes }, 'all')
  emitUnfinished(asm, { lossFd })
  emitDelete(asm, threadsFd, SCRATCH.match)
  asm.place(unknown)
}
