/**
 * The end of an aggregating program: its values are computed, then its key, then the group is added to.
 *
 * Where the kernel takes programs that may sleep, memory that is not present at the moment of the hit is waited for, as by the filter and by programs that make records. All of it has been read when the generation is entered, and from there on nothing
 * sleeps: whoever waits for a generation to stand still (turn-code.ts) does not wait for a page of the target. Values per CPU are those of the CPU that the program is on to its end, also if it has slept, since it is not moved to another
 * (migrate_disable in `bpf_prog_run_array_uprobe`, include/linux/bpf.h, and in `uprobe_prog_run`, kernel/trace/bpf_trace.c).
 */
import { type Assembler, Label } from '../capture/bpf.js'
import type { HitSink } from '../capture/compile.js'
import { emitNumber } from '../capture/filter-number-code.js'
import { FRAME, type ReadingProgram } from '../capture/frame.js'
import type { CaptureShape } from '../capture/shape.js'
import { SCRATCH } from './frame.js'
import { emitAdd, emitLoss, type GroupCode, LOSS } from './group-code.js'
import { emitKey, keyReadsMemory } from './key-code.js'
import { bindTerm, readsMemory } from './terms.js'

/** Adds every hit to a group by what it carries itself. */
export class ValueSink implements HitSink {
  constructor(private readonly code: GroupCode) {}

  readsMemory({ operands }: CaptureShape): boolean {
    const { values } = this.code.layout
    return keyReadsMemory(this.code.layout, operands) || values.some((term) => term !== 'latency' && readsMemory(term, operands))
  }

  emit(asm: Assembler, program: ReadingProgram, shape: CaptureShape, leave: Label): void {
    const { layout } = this.code
    const unreadable = new Label()
    const contended = new Label()
    layout.values.forEach((term, index) => {
      if (term === 'latency') return
      const bound = bindTerm(term, shape.operands)
      if (bound.is !== 'number') return
      emitNumber(asm, program, bound.number, 0, unreadable)
      asm.storeMemory(FRAME, SCRATCH.values + 8 * index, 1, 8)
    })
    emitKey(asm, program, layout, shape)
    emitAdd(asm, this.code, leave, contended)
    emitLosses(
      asm,
      this.code,
      [
        [unreadable, LOSS.unreadable],
        [contended, LOSS.contended],
      ],
      leave,
    )
  }
}

/** The places that losses jump to. The verifier refuses those that nothing jumps to, so they are left out. */
export function emitLosses(asm: Assembler, { maps }: GroupCode, places: ReadonlyArray<readonly [Label, number]>, leave: Label): void {
  for (const [label, reason] of places) {
    if (!asm.isJumpedTo(label)) continue
    asm.place(label)
    emitLoss(asm, maps, reason, leave)
  }
}
