/**
 * BPF code of a filter: every condition jumps, so that `&&` and `||` are where the jumps go.
 *
 * The verifier refuses code that no jump leads to (check_cfg, kernel/bpf/verifier.c), so every condition leads to both places, also one whose outcome is known.
 */
import { type Assembler, HELPER, type JUMP, Label } from './bpf.js'
import { type Filter, type FilterRelation, filterError } from './filter.js'
import { type BoundCondition, type BoundNumber, bindFilter } from './filter-bind.js'
import { emitNumber, emitPair } from './filter-number-code.js'
import { FRAME, type ReadingProgram, STACK } from './frame.js'
import { emitString, emitValue } from './operand-code.js'
import { COMM_BYTES } from './record.js'
import type { CaptureShape } from './shape.js'

/** Where a condition leads. `next` is the one that is placed behind its code, so that no jump is needed to go there. */
interface Ways {
  readonly pass: Label
  readonly reject: Label
  readonly next: 'pass' | 'reject'
}

/** Largest code of a filter, in instructions, so that the whole program stays within the jumps of BPF, which have 16 bits. */
const MAX_FILTER_INSNS = 16_000

/**
 * Goes to `pass` or, by falling through, to `reject`, which is to be placed behind. What cannot be read, and a division by 0, fulfils no comparison.
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` when the filter does not suit the operands, or is too large
 */
export function emitFilter(asm: Assembler, program: ReadingProgram, shape: CaptureShape, filter: Filter, pass: Label, reject: Label): void {
  const before = asm.length
  emitCondition(asm, program, bindFilter(filter, shape.operands), { pass, reject, next: 'reject' })
  const size = asm.length - before
  if (size > MAX_FILTER_INSNS)
    throw filterError(filter.text, 0, `the filter makes ${size} instructions, and ${MAX_FILTER_INSNS} are possible`)
}

function emitCondition(asm: Assembler, program: ReadingProgram, condition: BoundCondition, ways: Ways): void {
  switch (condition.kind) {
    case 'and':
    case 'or':
      emitChain(asm, program, condition.kind, condition.parts, ways)
      return
    case 'not':
      emitCondition(asm, program, condition.inner, { pass: ways.reject, reject: ways.pass, next: ways.next === 'pass' ? 'reject' : 'pass' })
      return
    case 'compare':
      emitComparison(asm, program, condition, ways)
      return
    case 'text':
      emitText(asm, program, condition, ways)
  }
}

function emitChain(asm: Assembler, program: ReadingProgram, kind: 'and' | 'or', parts: readonly BoundCondition[], ways: Ways): void {
  parts.forEach((part, index) => {
    if (index === parts.length - 1) {
      emitCondition(asm, program, part, ways)
      return
    }
    const following = new Label()
    if (kind === 'and') emitCondition(asm, program, part, { pass: following, reject: ways.reject, next: 'pass' })
    else emitCondition(asm, program, part, { pass: ways.pass, reject: following, next: 'reject' })
    asm.place(following)
  })
}

type Condition = keyof typeof JUMP

const SIGNED: Record<FilterRelation, Condition> = { '==': 'jeq', '!=': 'jne', '<': 'jslt', '<=': 'jsle', '>': 'jsgt', '>=': 'jsge' }
const UNSIGNED: Record<FilterRelation, Condition> = { '==': 'jeq', '!=': 'jne', '<': 'jlt', '<=': 'jle', '>': 'jgt', '>=': 'jge' }
const OPPOSITE: Record<FilterRelation, FilterRelation> = { '==': '!=', '!=': '==', '<': '>=', '<=': '>', '>': '<=', '>=': '<' }
const EXCHANGED: Record<FilterRelation, FilterRelation> = { '==': '==', '!=': '!=', '<': '>', '<=': '>=', '>': '<', '>=': '<=' }

function emitComparison(
  asm: Assembler,
  program: ReadingProgram,
  { left, relation, right }: Extract<BoundCondition, { kind: 'compare' }>,
  ways: Ways,
): void {
  if (right.kind === 'literal') {
    emitLiteralComparison(asm, program, left, relation, right.value, ways)
  } else if (left.kind === 'literal') {
    emitLiteralComparison(asm, program, right, EXCHANGED[relation], left.value, ways)
  } else {
    emitPair(asm, program, left, right, 0, ways.reject)
    // A negative number is below every unsigned one.
    if (left.signed && !right.signed) asm.jumpIf(1, 'jslt', 0, holdsFor(relation, 'smaller') ? ways.pass : ways.reject)
    if (!left.signed && right.signed) asm.jumpIf(2, 'jslt', 0, holdsFor(relation, 'larger') ? ways.pass : ways.reject)
    emitDecision(relation, left.signed && right.signed, ways, (condition, target) => asm.jumpIfRegister(1, condition, 2, target))
  }
}

function emitLiteralComparison(
  asm: Assembler,
  program: ReadingProgram,
  number: BoundNumber,
  relation: FilterRelation,
  value: bigint,
  ways: Ways,
): void {
  emitNumber(asm, program, number, 0, ways.reject)
  const tooSmall = !number.signed && value < 0n
  const tooLarge = number.signed && value >= 1n << 63n
  if (tooSmall || tooLarge) {
    const outcome = holdsFor(relation, tooSmall ? 'larger' : 'smaller')
    // It is always taken, and has to look as if it might not be.
    asm.load(1, 0)
    asm.jumpIf(1, 'jeq', 0, outcome ? ways.pass : ways.reject)
    asm.jump(outcome ? ways.reject : ways.pass)
    return
  }
  if (value === BigInt.asIntN(32, value)) {
    emitDecision(relation, number.signed, ways, (condition, target) => asm.jumpIf(1, condition, Number(value), target))
  } else {
    asm.load(2, value)
    emitDecision(relation, number.signed, ways, (condition, target) => asm.jumpIfRegister(1, condition, 2, target))
  }
}

/** Jumps where the comparison leads, or falls through. */
function emitDecision(
  relation: FilterRelation,
  signed: boolean,
  { pass, reject, next }: Ways,
  jumpIf: (condition: Condition, target: Label) => void,
): void {
  const conditions = signed ? SIGNED : UNSIGNED
  if (next === 'reject') jumpIf(conditions[relation], pass)
  else jumpIf(conditions[OPPOSITE[relation]], reject)
}

/** Whether a relation holds between a number and another, of which the number is known to be the smaller or larger one. */
function holdsFor(relation: FilterRelation, number: 'smaller' | 'larger'): boolean {
  return relation === '!=' || relation.startsWith(number === 'smaller' ? '<' : '>')
}

/** Reads the string, as much of it as matters, and compares it. */
function emitText(
  asm: Assembler,
  program: ReadingProgram,
  { subject, relation, text, prefix }: Extract<BoundCondition, { kind: 'text' }>,
  { pass, reject, next }: Ways,
): void {
  const [same, different] = relation === '==' ? [pass, reject] : [reject, pass]
  let compared = text
  if (subject === null) {
    asm.mov(1, FRAME)
    asm.addImm(1, STACK.string)
    asm.load(2, COMM_BYTES)
    asm.call(HELPER.get_current_comm)
    if (!prefix) compared = Buffer.concat([text, Buffer.of(0)])
  } else {
    emitValue(asm, program, subject, reject)
    asm.storeMemory(FRAME, STACK.address, 1, 8)
    // Room for the NUL, and to tell a longer string from an equal one. The length that comes back counts the NUL, which is put in place of the last byte of a longer one.
    emitString(asm, program, FRAME, STACK.string, text.length + (prefix ? 1 : 2))
    if (different !== reject) asm.jumpIf(0, 'jslt', 0, reject)
    // Of an empty string, kernels differ in the length they tell: 0 on 6.12, where strncpy_from_user_nofault (mm/maccess.c) leaves the NUL out, 1 on 6.18. Without its sign, an error is a large number.
    if (text.length === 0) asm.jumpIf(0, 'jgt', 1, different)
    else asm.jumpIf(0, 'jne', text.length + 1, different)
  }
  for (let at = 0; at < compared.length; ) {
    const size = ([8, 4, 2, 1] as const).find((bytes) => at + bytes <= compared.length) ?? 1
    asm.loadMemory(1, FRAME, STACK.string + at, size)
    // The bytes as a number, least significant first, as both architectures have them.
    const wanted = compared.subarray(at, at + size).reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n)
    if (size <= 2) {
      asm.jumpIf(1, 'jne', Number(wanted), different)
    } else {
      asm.load(2, wanted)
      asm.jumpIfRegister(1, 'jne', 2, different)
    }
    at += size
  }
  if ((next === 'pass') !== (same === pass)) asm.jump(same)
}
