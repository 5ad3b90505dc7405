/**
 * BPF code of the numbers of a filter. A number is computed in r1; helpers take r0 to r5, so that what has to outlast one is kept on the stack.
 */
import { type Assembler, HELPER, Label, type OPERATION } from './bpf.js'
import type { FilterOperator } from './filter.js'
import { type BoundNumber, isDirect } from './filter-bind.js'
import { FRAME, type ReadingProgram, STACK } from './frame.js'
import { emitValue } from './operand-code.js'

/**
 * r1 = the number, as 64 bits; goes to `fail` if it cannot be computed.
 * @param slot - the first place on the stack that is free
 */
export function emitNumber(asm: Assembler, program: ReadingProgram, number: BoundNumber, slot: number, fail: Label): void {
  switch (number.kind) {
    case 'literal':
      asm.load(1, number.value)
      return
    case 'operand': {
      const { operand } = number
      emitValue(asm, program, operand, fail)
      if (operand.signed && operand.size < 8) {
        asm.shiftLeft(1, 64 - 8 * operand.size)
        asm.shiftRightSigned(1, 64 - 8 * operand.size)
      }
      return
    }
    case 'pid':
      asm.call(HELPER.get_current_pid_tgid)
      asm.mov(1, 0)
      asm.shiftRight(1, 32)
      return
    case 'tid':
      asm.call(HELPER.get_current_pid_tgid)
      asm.mov(1, 0)
      asm.truncate(1)
      return
    case 'cpu':
      asm.call(HELPER.get_smp_processor_id)
      asm.mov(1, 0)
      return
    case '-':
      emitNumber(asm, program, number.inner, slot, fail)
      asm.negate(1)
      return
    case '~':
      emitNumber(asm, program, number.inner, slot, fail)
      asm.xorImm(1, -1)
      return
    case 'arithmetic':
      emitArithmetic(asm, program, number, slot, fail)
  }
}

/** r1 and r2 = two numbers; goes to `fail` if one cannot be computed. */
export function emitPair(asm: Assembler, program: ReadingProgram, left: BoundNumber, right: BoundNumber, slot: number, fail: Label): void {
  emitNumber(asm, program, left, slot, fail)
  if (right.kind === 'literal') {
    asm.load(2, right.value)
    return
  }
  if (isDirect(right)) {
    asm.mov(3, 1)
    emitNumber(asm, program, right, slot, fail)
    asm.mov(2, 1)
    asm.mov(1, 3)
    return
  }
  const at = STACK.results - 8 * (slot + 1)
  asm.storeMemory(FRAME, at, 1, 8)
  emitNumber(asm, program, right, slot + 1, fail)
  asm.mov(2, 1)
  asm.loadMemory(1, FRAME, at, 8)
}

const OPERATIONS: Record<Exclude<FilterOperator, '/' | '%' | '<<' | '>>'>, keyof typeof OPERATION> = {
  '+': 'add',
  '-': 'subtract',
  '*': 'multiply',
  '&': 'and',
  '|': 'or',
  '^': 'xor',
}

function emitArithmetic(
  asm: Assembler,
  program: ReadingProgram,
  { operator, left, right, signed }: Extract<BoundNumber, { kind: 'arithmetic' }>,
  slot: number,
  fail: Label,
): void {
  emitPair(asm, program, left, right, slot, fail)
  switch (operator) {
    case '<<':
    case '>>':
      // What a shift by more than 63 bits does is not defined.
      asm.andImm(2, 63)
      asm.operate(1, operator === '<<' ? 'shiftLeft' : signed ? 'shiftRightSigned' : 'shiftRight', 2)
      return
    case '/':
    case '%':
      asm.jumpIf(2, 'jeq', 0, fail)
      if (signed) emitSignedDivision(asm, operator)
      else asm.operate(1, operator === '/' ? 'divide' : 'remainder', 2)
      return
    default:
      asm.operate(1, OPERATIONS[operator], 2)
  }
}

/**
 * r1 = r1 / r2 or r1 % r2, signed, toward zero: BPF has it since Linux 6.6 (ec0e2da95f72, "bpf: Support new signed div/mod instructions"), so it is done without signs. The
 * quotient is negative if one of the two is, the remainder if the dividend is.
 */
function emitSignedDivision(asm: Assembler, operator: '/' | '%'): void {
  const positive = new Label()
  asm.mov(3, 1)
  if (operator === '/') asm.operate(3, 'xor', 2)
  emitAbsolute(asm, 1)
  emitAbsolute(asm, 2)
  asm.operate(1, operator === '/' ? 'divide' : 'remainder', 2)
  asm.jumpIf(3, 'jsge', 0, positive)
  asm.negate(1)
  asm.place(positive)
}

/** The least number is its own absolute value, which is right as an unsigned one. */
function emitAbsolute(asm: Assembler, register: 1 | 2): void {
  const positive = new Label()
  asm.jumpIf(register, 'jsge', 0, positive)
  asm.negate(register)
  asm.place(positive)
}
