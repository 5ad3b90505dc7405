/**
 * BPF code that adds a hit to its group.
 *
 *     enter the current generation (turn-code.ts)
 *     group = generation 0 ? lookup(groups 0, key) : lookup(groups 1, key)
 *     none: add a group of zeros unless somebody was quicker; look again; still none, for want of room: group = lookup(others, generation)
 *     least and largest value by compare and exchange; sum, bucket or count by addition
 *     leave the generation
 *
 * Programs on uprobes may be preempted by others on the same CPU, so that every change of a group is one atomic instruction, though no other CPU touches it. Before Linux 5.12 there is none that compares and exchanges,
 * but there programs run with preemption off (trace_call_bpf, kernel/trace/bpf_trace.c), and comparing and then storing is as good.
 */
import { type Assembler, Label } from '../capture/bpf.js'
import { FRAME, STACK } from '../capture/frame.js'
import { emitInsert, emitLookup } from '../capture/lookup-code.js'
import { emitForget, emitPosition } from './bucket-code.js'
import { GENERATION, GROUP, KEY, SCRATCH } from './frame.js'
import type { GroupLayout, HistogramLayout, Measure } from './layout.js'
import { emitEnter, emitLeave, type TurnMaps } from './turn-code.js'

/** The maps that programs add to. */
export interface GroupMaps extends TurnMaps {
  /** Per-CPU array of two entries: by generation, everything if there is no key, else what has no group. */
  readonly othersFd: number
  /** Per-CPU hashes by generation; `null` without a key. */
  readonly groupFds: readonly [number, number] | null
  /** Array of one entry that is zeros: a new group. */
  readonly zerosFd: number | null
  /** Per-CPU array of one entry: hits that were not added, by reason. */
  readonly lossFd: number
}

/** Why a hit is not added: fields of the entry of losses, which are words. */
export const LOSS = {
  /** A value could not be read. */
  unreadable: 0,
  /** The extremes of the group were changed without pause by others on this CPU. */
  contended: 8,
  /** Latency: the beginning was not kept, for want of room. */
  start: 16,
  /** Latency: an end for which no beginning was kept. */
  unmatched: 24,
  /** Latency: beginnings that were given up, since their end cannot come any more. */
  unfinished: 32,
  /** Latency: ends that have found a beginning which counts. Those that are not lost are added; it is here that they can be counted before. */
  ended: 40,
} as const

/** Size of the entry of losses. */
export const LOSS_BYTES = 48

/** How often an extreme is tried to be stored. Each failure takes another program between two instructions. */
const TRIES = 8

/** What the code depends on. */
export interface GroupCode {
  readonly layout: GroupLayout
  readonly maps: GroupMaps
  /** Whether there is an instruction that compares and exchanges. */
  readonly compareExchange: boolean
}

/** Adds the values at SCRATCH.values to the group whose key is at KEY; goes to `leave` or `contended`. */
export function emitAdd(asm: Assembler, code: GroupCode, leave: Label, contended: Label): void {
  const { layout } = code
  const done = new Label()
  const given = new Label()
  emitEnter(asm, code.maps, leave)
  emitFindGroup(asm, code, done)
  const extremes = layout.measures.filter(({ kind }) => kind === 'min' || kind === 'max')
  // First, since only these can fail. If a later one does, an earlier one shows the hit already; it is not taken back, since others may have been compared with it since.
  for (const measure of extremes) emitExtreme(asm, code, measure, given)
  for (const measure of layout.measures) {
    if (measure.kind === 'sum') {
      asm.loadMemory(1, FRAME, SCRATCH.values + 8 * measure.value, 8)
      asm.atomicAdd(GROUP, measure.at, 1)
    }
    if (measure.kind === 'histogram' && layout.histogram !== null) emitBucket(asm, layout.histogram, measure, done)
  }
  if (layout.countAt !== null) {
    asm.load(1, 1)
    asm.atomicAdd(GROUP, layout.countAt, 1)
  }
  asm.place(done)
  emitLeave(asm)
  asm.jump(leave)
  // The verifier refuses what nothing jumps to.
  if (!asm.isJumpedTo(given)) return
  asm.place(given)
  emitLeave(asm)
  asm.jump(contended)
}

/** GROUP = what is added to. */
function emitFindGroup(asm: Assembler, { maps }: GroupCode, leave: Label): void {
  const found = new Label()
  if (maps.groupFds !== null && maps.zerosFd !== null) {
    const other = new Label()
    const second = new Label()
    asm.jumpIf(GENERATION, 'jne', 0, second)
    emitFindOrAdd(asm, maps.groupFds[0], maps.zerosFd, found)
    asm.jump(other)
    asm.place(second)
    emitFindOrAdd(asm, maps.groupFds[1], maps.zerosFd, found)
    asm.place(other)
  }
  asm.storeMemory(FRAME, STACK.key, GENERATION, 4)
  emitLookup(asm, maps.othersFd, STACK.key)
  asm.jumpIf(0, 'jeq', 0, leave)
  asm.place(found)
  asm.mov(GROUP, 0)
}

function emitFindOrAdd(asm: Assembler, mapFd: number, zerosFd: number, found: Label): void {
  emitLookup(asm, mapFd, KEY)
  asm.jumpIf(0, 'jne', 0, found)
  asm.loadMapValue(3, zerosFd)
  emitInsert(asm, mapFd, KEY)
  // Whether it was added, by us or by somebody else, shows when it is looked for.
  emitLookup(asm, mapFd, KEY)
  asm.jumpIf(0, 'jne', 0, found)
}

/** Stores the value if it is beyond what is there. */
function emitExtreme(asm: Assembler, { compareExchange }: GroupCode, measure: Measure, contended: Label): void {
  const done = new Label()
  asm.loadMemory(1, FRAME, SCRATCH.values + 8 * measure.value, 8)
  if (measure.signed) {
    asm.load(2, 1n << 63n)
    asm.operate(1, 'xor', 2)
  }
  if (measure.kind === 'min') asm.xorImm(1, -1)
  asm.loadMemory(0, GROUP, measure.at, 8)
  if (!compareExchange) {
    asm.jumpIfRegister(0, 'jge', 1, done)
    asm.storeMemory(GROUP, measure.at, 1, 8)
    asm.place(done)
    return
  }
  for (let attempt = 0; attempt < TRIES; attempt++) {
    asm.jumpIfRegister(0, 'jge', 1, done)
    asm.mov(2, 0)
    asm.compareExchange(GROUP, measure.at, 1)
    asm.jumpIfRegister(0, 'jeq', 2, done)
  }
  asm.jump(contended)
  asm.place(done)
}

/** Adds 1 to the bucket of the value. */
function emitBucket(asm: Assembler, { at, scale, positives, negatives }: HistogramLayout, measure: Measure, leave: Label): void {
  const zero = new Label()
  const positive = new Label()
  asm.loadMemory(1, FRAME, SCRATCH.values + 8 * measure.value, 8)
  asm.load(2, 0)
  asm.jumpIf(1, 'jeq', 0, zero)
  asm.load(4, 1)
  if (negatives > 0) {
    asm.jumpIf(1, 'jsgt', 0, positive)
    asm.negate(1)
    asm.load(4, 1 + positives)
    asm.place(positive)
  }
  emitPosition(asm, scale)
  asm.add(2, 4)
  asm.place(zero)
  emitForget(asm, 2)
  // It never is, but the verifier has forgotten that.
  asm.jumpIf(2, 'jgt', positives + negatives, leave)
  asm.shiftLeft(2, 3)
  asm.add(2, GROUP)
  asm.load(1, 1)
  asm.atomicAdd(2, at, 1)
}

/** Counts the hit among those that were not added. */
export function emitLoss(asm: Assembler, { lossFd }: Pick<GroupMaps, 'lossFd'>, reason: number, leave: Label): void {
  emitFindLosses(asm, lossFd, leave)
  asm.load(1, 1)
  asm.atomicAdd(0, reason, 1)
  asm.jump(leave)
}

/** Counts an end that has found its beginning, and goes on. */
export function emitEnded(asm: Assembler, { lossFd }: Pick<GroupMaps, 'lossFd'>): void {
  const none = new Label()
  emitFindLosses(asm, lossFd, none)
  asm.load(1, 1)
  asm.atomicAdd(0, LOSS.ended, 1)
  asm.place(none)
}

/** Counts the beginnings that were given up, as many as SCRATCH.count says, and goes on. */
export function emitUnfinished(asm: Assembler, { lossFd }: Pick<GroupMaps, 'lossFd'>): void {
  const none = new Label()
  asm.loadMemory(1, FRAME, SCRATCH.count, 4)
  asm.jumpIf(1, 'jeq', 0, none)
  emitFindLosses(asm, lossFd, none)
  asm.loadMemory(1, FRAME, SCRATCH.count, 4)
  asm.atomicAdd(0, LOSS.unfinished, 1)
  asm.place(none)
}

/** r0 = the entry of losses. */
function emitFindLosses(asm: Assembler, lossFd: number, none: Label): void {
  asm.storeImm(FRAME, STACK.key, 0, 4)
  emitLookup(asm, lossFd, STACK.key)
  asm.jumpIf(0, 'jeq', 0, none)
}
