/**
 * Binds a filter to the operands of one shape: every `argN` becomes the operand it stands for, every number signed or unsigned.
 *
 * The result of arithmetic is signed if either side is, and that of `-` always; a shift is what its left side is. Literals are what they need to be, and negative ones are signed.
 */

import { escapeForDisplay } from '../log.js'
import {
  type Filter,
  type FilterCondition,
  type FilterNumber,
  type FilterOperator,
  type FilterRelation,
  type FilterString,
  filterError,
} from './filter.js'
import type { BoundOperand } from './operands.js'

/** An operand that can be read. */
export type ReadableOperand = Exclude<BoundOperand, { kind: 'unsupported' }>

/** A number whose sign is known. */
export type BoundNumber = {
  readonly signed: boolean
  /** How many values have to be kept on the stack while it is computed. */
  readonly slots: number
} & (
  | { readonly kind: 'literal'; readonly value: bigint }
  | { readonly kind: 'operand'; readonly operand: ReadableOperand }
  | { readonly kind: 'pid' | 'tid' | 'cpu' }
  | { readonly kind: '-' | '~'; readonly inner: BoundNumber }
  | { readonly kind: 'arithmetic'; readonly operator: FilterOperator; readonly left: BoundNumber; readonly right: BoundNumber }
)

/** A condition on the operands of one shape. */
export type BoundCondition =
  | {
      readonly kind: 'compare'
      readonly relation: FilterRelation
      readonly left: BoundNumber
      readonly right: BoundNumber
      /** Where it begins in the text of the filter. */
      readonly at: number
    }
  | {
      readonly kind: 'text'
      /** The operand that points to the string; `null` for comm. */
      readonly subject: ReadableOperand | null
      readonly relation: '==' | '!='
      readonly text: Buffer
      readonly prefix: boolean
    }
  | { readonly kind: 'and' | 'or'; readonly parts: readonly BoundCondition[] }
  | { readonly kind: 'not'; readonly inner: BoundCondition }

/** How many values can be kept on the stack at once. */
export const MAX_SLOTS = 16

const POINTER_BYTES = 8

/**
 * Binds a filter.
 * @param site - how the site is named in errors
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`, with the place, when the filter does not suit the operands
 */
export function bindFilter(filter: Filter, operands: readonly BoundOperand[], site = 'the site'): BoundCondition {
  const fail = (at: number, what: string): never => {
    throw filterError(filter.text, at, what)
  }

  function condition(node: FilterCondition): BoundCondition {
    switch (node.kind) {
      case 'and':
      case 'or':
        return { kind: node.kind, parts: node.parts.map(condition) }
      case 'not':
        return { kind: 'not', inner: condition(node.inner) }
      case 'text': {
        const { relation, prefix, text } = node
        return { kind: 'text', subject: pointer(node.subject), relation, prefix, text: Buffer.from(text) }
      }
      case 'compare': {
        const [left, right] = [number(node.left), number(node.right)]
        slotsFor(left, right, node.at)
        return { kind: 'compare', relation: node.relation, left, right, at: node.at }
      }
    }
  }

  function number(node: FilterNumber): BoundNumber {
    switch (node.kind) {
      case 'literal':
        return { kind: 'literal', value: node.value, signed: node.value < 0n, slots: 0 }
      case 'arg': {
        const operand = readable(node.index, node.at)
        if (operand.float) fail(node.at, `arg${node.index} of ${site} is a floating-point number (${escapeForDisplay(operand.text)})`)
        return { kind: 'operand', operand, signed: operand.signed, slots: 0 }
      }
      case '-':
      case '~': {
        const inner = number(node.inner)
        return { kind: node.kind, inner, signed: node.kind === '-' || inner.signed, slots: inner.slots }
      }
      case 'arithmetic': {
        const { operator } = node
        const [left, right] = [number(node.left), number(node.right)]
        const signed = operator === '-' || left.signed || (right.signed && operator !== '<<' && operator !== '>>')
        return { kind: 'arithmetic', operator, left, right, signed, slots: slotsFor(left, right, node.at) }
      }
      default:
        return { kind: node.kind, signed: false, slots: 0 }
    }
  }

  function slotsFor(left: BoundNumber, right: BoundNumber, at: number): number {
    const slots = isDirect(right) ? left.slots : Math.max(left.slots, right.slots + 1)
    if (slots > MAX_SLOTS) fail(at, `more than ${MAX_SLOTS} intermediate results are needed at once; write the deeper part on the left`)
    return slots
  }

  function pointer(subject: FilterString): ReadableOperand | null {
    if (subject.kind === 'comm') return null
    const operand = readable(subject.index, subject.at)
    if (operand.size !== POINTER_BYTES || operand.float) {
      fail(
        subject.at,
        `arg${subject.index} of ${site} is no pointer to a string: it is ${operand.float ? 'a floating-point number' : `${operand.size} bytes wide`} (${escapeForDisplay(operand.text)})`,
      )
    }
    return operand
  }

  function readable(index: number, at: number): ReadableOperand {
    const operand = operands[index]
    if (operand === undefined) return fail(at, `${site} has ${countOf(operands.length)}`)
    if (operand.kind === 'unsupported')
      return fail(at, `arg${index} of ${site} cannot be read: ${escapeForDisplay(operand.reason)} (${escapeForDisplay(operand.text)})`)
    return operand
  }

  return condition(filter.condition)
}

function countOf(count: number): string {
  return count === 0 ? 'no arguments' : `${count === 1 ? '1 argument' : `${count} arguments`}, counted from 0`
}

/** How a relation reads from its right side. */
const MIRRORED: Record<FilterRelation, FilterRelation> = { '==': '==', '!=': '!=', '<': '>', '<=': '>=', '>': '<', '>=': '<=' }

/** Where unsigned numbers are compared as if they had a sign, with a negative number or for being less than 0: that comes out alike for all of them, and signed ones were meant. */
export function comparedAsSigned(condition: BoundCondition): number[] {
  switch (condition.kind) {
    case 'and':
    case 'or':
      return condition.parts.flatMap(comparedAsSigned)
    case 'not':
      return comparedAsSigned(condition.inner)
    case 'text':
      return []
    case 'compare': {
      const { left, right, relation, at } = condition
      return isTakenForSigned(left, relation, right) || isTakenForSigned(right, MIRRORED[relation], left) ? [at] : []
    }
  }
}

function isTakenForSigned(number: BoundNumber, relation: FilterRelation, bound: BoundNumber): boolean {
  if (number.signed || number.kind === 'literal' || bound.kind !== 'literal') return false
  return bound.value < 0n || (bound.value === 0n && (relation === '<' || relation === '>='))
}

/** Whether a number is computed in one register without calling a helper, which takes the others. */
export function isDirect(number: BoundNumber): boolean {
  return (
    number.kind === 'literal' || (number.kind === 'operand' && (number.operand.kind === 'register' || number.operand.kind === 'constant'))
  )
}

/** Whether a condition reads memory of the target. */
export function filterReadsMemory(condition: BoundCondition): boolean {
  switch (condition.kind) {
    case 'and':
    case 'or':
      return condition.parts.some(filterReadsMemory)
    case 'not':
      return filterReadsMemory(condition.inner)
    case 'text':
      return condition.subject !== null
    case 'compare':
      return numberReadsMemory(condition.left) || numberReadsMemory(condition.right)
  }
}

/** Whether a number is computed from memory of the target. */
export function numberReadsMemory(number: BoundNumber): boolean {
  switch (number.kind) {
    case 'operand':
      return !isDirect(number)
    case '-':
    case '~':
      return numberReadsMemory(number.inner)
    case 'arithmetic':
      return numberReadsMemory(number.left) || numberReadsMemory(number.right)
    default:
      return false
  }
}
