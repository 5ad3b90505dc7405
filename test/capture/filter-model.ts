/**
 * What a filter means, said once more in JavaScript: the model that the programs in the kernel are compared with.
 */
import type { FilterCondition, FilterNumber } from '../../lib/capture/filter.js'

/** What a hit has. */
export interface Facts {
  /** The arguments; `null` where one cannot be read. */
  readonly args: ReadonlyArray<{ readonly value: bigint; readonly signed: boolean } | null>
  /** The string that each argument points to; `null` where there is none. */
  readonly strings: ReadonlyArray<Buffer | null>
  readonly comm: Buffer
  readonly pid: number
  readonly tid: number
}

/** Whether the filter lets the hit pass. */
export function passes(condition: FilterCondition, facts: Facts): boolean {
  switch (condition.kind) {
    case 'and':
      return condition.parts.every((part) => passes(part, facts))
    case 'or':
      return condition.parts.some((part) => passes(part, facts))
    case 'not':
      return !passes(condition.inner, facts)
    case 'text': {
      const string = condition.subject.kind === 'comm' ? facts.comm : facts.strings[condition.subject.index]
      if (string == null) return false
      const text = Buffer.from(condition.text)
      const same = condition.prefix ? string.subarray(0, text.length).equals(text) : string.equals(text)
      return same === (condition.relation === '==')
    }
    case 'compare': {
      const left = compute(condition.left, facts)?.value
      const right = compute(condition.right, facts)?.value
      if (left === undefined || right === undefined) return false
      const outcomes = {
        '==': left === right,
        '!=': left !== right,
        '<': left < right,
        '<=': left <= right,
        '>': left > right,
        '>=': left >= right,
      }
      return outcomes[condition.relation]
    }
  }
}

interface Value {
  readonly value: bigint
  readonly signed: boolean
}

function wrapped(value: bigint, signed: boolean): Value {
  return { value: signed ? BigInt.asIntN(64, value) : BigInt.asUintN(64, value), signed }
}

function compute(number: FilterNumber, facts: Facts): Value | null {
  switch (number.kind) {
    case 'literal':
      return { value: number.value, signed: number.value < 0n }
    case 'arg':
      return facts.args[number.index] ?? null
    case 'pid':
    case 'tid':
      return { value: BigInt(facts[number.kind]), signed: false }
    case 'cpu':
      throw new Error('the model does not know the cpu')
    case '-':
    case '~': {
      const inner = compute(number.inner, facts)
      if (inner === null) return null
      return number.kind === '-' ? wrapped(-inner.value, true) : wrapped(~inner.value, inner.signed)
    }
    case 'arithmetic':
      return arithmetic(number.operator, compute(number.left, facts), compute(number.right, facts))
  }
}

function arithmetic(operator: string, left: Value | null, right: Value | null): Value | null {
  if (left === null || right === null) return null
  const signed = left.signed || right.signed
  switch (operator) {
    case '+':
      return wrapped(left.value + right.value, signed)
    case '-':
      return wrapped(left.value - right.value, true)
    case '*':
      return wrapped(left.value * right.value, signed)
    case '&':
      return wrapped(left.value & right.value, signed)
    case '|':
      return wrapped(left.value | right.value, signed)
    case '^':
      return wrapped(left.value ^ right.value, signed)
    case '<<':
      return wrapped(left.value << (right.value & 63n), left.signed)
    case '>>':
      return wrapped(left.value >> (right.value & 63n), left.signed)
    default: {
      if (right.value === 0n) return null
      // Both are of the type of the result.
      const [dividend, divisor] = [wrapped(left.value, signed).value, wrapped(right.value, signed).value]
      return wrapped(operator === '/' ? dividend / divisor : dividend % divisor, signed)
    }
  }
}
