/**
 * BPF code of a filter: every comparison jumps, so that `&&` and `||` are where the jumps go.
 */
import { UprobeError } from '../errors.js'
import { type Assembler, HELPER, type JUMP, Label } from './bpf.js'
import type { FilterExpression, FilterRelation } from './filter.js'
import type { ReadingProgram } from './frame.js'
import { emitValue } from './operand-code.js'
import type { BoundOperand } from './operands.js'
import type { CaptureShape } from './shape.js'

/** Goes to `pass` or `reject`. An argument whose memory cannot be read fulfils no comparison. */
export function emitFilter(
  asm: Assembler,
  program: ReadingProgram,
  shape: CaptureShape,
  filter: FilterExpression,
  pass: Label,
  reject: Label,
): void {
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
  program: ReadingProgram,
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
    // The verifier refuses code that no jump leads to (check_cfg), so a jump that is always taken has to look as if it might not be.
    asm.load(1, 0)
    asm.jumpIf(1, 'jeq', 0, constant ? pass : reject)
    asm.jump(constant ? reject : pass)
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
