/**
 * From the text of a filter to its tree.
 *
 * acorn parses it as a JavaScript expression; what is not part of a filter is refused, with its place. There is:
 *
 *     arg0 … arg30, retval      an integer argument; retval is arg0 of a return probe
 *     pid tid cpu               numbers
 *     comm str(argN)            strings
 *     42 0x2a 0o52 0b1 42n      integers, exact to 64 bits; a number where a condition is wanted is compared with 0
 *     == != < <= > >= === !==   the last two mean == and !=
 *     + - * / % & | ^ << >> ~   arithmetic
 *     && || ! ( )
 *     S == "x"  S != "x"  S.startsWith("x")  strncmp(S, "x", 1) == 0
 */
import type { CallExpression, Expression, Identifier, Literal, Node } from 'acorn'
import type { UprobeError } from '../errors.js'
import {
  type Filter,
  type FilterCondition,
  type FilterNumber,
  type FilterOperator,
  type FilterRelation,
  type FilterString,
  filterError,
} from './filter.js'
import { MAX_DEPTH, parseExpression, shown } from './filter-syntax.js'
import { COMM_BYTES } from './record.js'

const MAX_TEXT = 4096
/** Longest text that a string is compared with, in bytes. */
const MAX_LITERAL_BYTES = 128

const RELATIONS: ReadonlyMap<string, FilterRelation> = new Map([
  ['==', '=='],
  ['===', '=='],
  ['!=', '!='],
  ['!==', '!='],
  ['<', '<'],
  ['<=', '<='],
  ['>', '>'],
  ['>=', '>='],
])

const OPERATORS: ReadonlySet<string> = new Set<FilterOperator>(['+', '-', '*', '/', '%', '&', '|', '^', '<<', '>>'])

/** What is wanted where a number or a string stands alone: what is proposed when something unknown stands there. */
export interface TermWish {
  /** Words that have a meaning of their own there. Default: none. */
  readonly words?: readonly string[]
  /** Whether only a number will do; strings are refused by whoever wants it. Default: false. */
  readonly number?: boolean
}

/** What a part of the expression is, before it is known where it stands. */
type Part =
  | { readonly is: 'number'; readonly number: FilterNumber }
  | { readonly is: 'string'; readonly string: FilterString }
  | { readonly is: 'text'; readonly text: string }
  | { readonly is: 'condition'; readonly condition: FilterCondition }
  /** `strncmp(…)`, which is 0 if the condition holds. */
  | { readonly is: 'strncmp'; readonly same: TextCondition }

type TextCondition = Extract<FilterCondition, { kind: 'text' }>

/**
 * Parses a filter.
 * @param kind - of the probe; only a return probe has `retval`
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`, with the place
 */
export function parseFilter(text: string, kind: 'usdt' | 'uprobe' | 'uretprobe' = 'usdt'): Filter {
  if (text.length > MAX_TEXT) throw filterError(text, MAX_TEXT, `the filter is longer than ${MAX_TEXT} characters`)
  return { text, condition: new Walk(text, kind).condition(parseExpression(text), 0) }
}

/**
 * Parses a number or a string alone, in the same syntax.
 * @param wish - what is told of when something unknown stands there
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`, with the place
 */
export function parseTerm(text: string, kind: 'usdt' | 'uprobe' | 'uretprobe' = 'usdt', wish: TermWish = {}): FilterNumber | FilterString {
  if (text.length > MAX_TEXT) throw filterError(text, MAX_TEXT, `the expression is longer than ${MAX_TEXT} characters`)
  return new Walk(text, kind, wish).term(parseExpression(text))
}

class Walk {
  constructor(
    private readonly text: string,
    private readonly kind: 'usdt' | 'uprobe' | 'uretprobe',
    private readonly wish: TermWish = {},
  ) {}

  get #known(): string {
    const { words = [], number = false } = this.wish
    const args = this.kind === 'uretprobe' ? ['retval'] : ['arg0', 'arg1', '…']
    const strings = number ? [] : ['comm', this.kind === 'uretprobe' ? 'str(retval)' : 'str(argN)']
    const known = [...words, ...args, 'pid', 'tid', 'cpu', ...strings]
    return `there are ${known.slice(0, -1).join(', ')} and ${known.at(-1)}`
  }

  /** A number where a condition is wanted is compared with 0. */
  condition(node: Expression, depth: number): FilterCondition {
    const part = this.#part(node, depth)
    switch (part.is) {
      case 'condition':
        return part.condition
      case 'strncmp':
        return { ...part.same, relation: '!=' }
      case 'number': {
        const at = node.start
        return { kind: 'compare', at, relation: '!=', left: part.number, right: { kind: 'literal', at, value: 0n } }
      }
      default:
        throw this.#error(node, 'a string alone is no condition; compare it, as in comm == "x"')
    }
  }

  term(node: Expression): FilterNumber | FilterString {
    const part = this.#part(node, 0)
    return part.is === 'string' ? part.string : this.#asNumber(part, node)
  }

  #number(node: Expression, depth: number): FilterNumber {
    return this.#asNumber(this.#part(node, depth), node)
  }

  #asNumber(part: Part, node: Expression): FilterNumber {
    switch (part.is) {
      case 'number':
        return part.number
      case 'strncmp':
        throw this.#error(node, 'strncmp() is compared with 0, by == or !=')
      case 'condition':
        throw this.#error(node, 'a condition is used as a number; & | ^ bind less than comparisons, so that they need parentheses')
      default:
        throw this.#error(node, 'a string is used as a number')
    }
  }

  #part(node: Expression, depth: number): Part {
    if (depth > MAX_DEPTH) throw this.#error(node, `nested deeper than ${MAX_DEPTH}`)
    const at = node.start
    switch (node.type) {
      case 'Literal':
        return typeof node.value === 'string'
          ? { is: 'text', text: node.value }
          : numberPart({ kind: 'literal', at, value: this.#integer(node, false) })
      case 'Identifier':
        return this.#name(node)
      case 'UnaryExpression':
        if (node.operator === '!') return conditionPart({ kind: 'not', at, inner: this.condition(node.argument, depth + 1) })
        if (node.operator === '-' && node.argument.type === 'Literal' && typeof node.argument.value !== 'string') {
          return numberPart({ kind: 'literal', at, value: this.#integer(node.argument, true) })
        }
        if (node.operator !== '-' && node.operator !== '~') break
        return numberPart({ kind: node.operator, at, inner: this.#number(node.argument, depth + 1) })
      case 'LogicalExpression':
        if (node.operator === '??') break
        return conditionPart(this.#logical(node, node.operator, depth))
      case 'BinaryExpression': {
        const { left, right, operator } = node
        // #name in object, which the tokens exclude.
        if (left.type === 'PrivateIdentifier') break
        const relation = RELATIONS.get(operator)
        if (relation !== undefined) return conditionPart(this.#comparison(relation, left, right, depth))
        if (!isOperator(operator)) throw this.#error(node, `${operator} is not part of a filter`)
        const dividend = this.#number(left, depth + 1)
        const divisor = this.#number(right, depth + 1)
        if ((operator === '/' || operator === '%') && divisor.kind === 'literal' && divisor.value === 0n) {
          throw this.#error(right, 'this divides by 0')
        }
        return numberPart({ kind: 'arithmetic', at, operator, left: dividend, right: divisor })
      }
      case 'SequenceExpression':
        throw this.#error(node.expressions[1] ?? node, 'a filter is one expression; join conditions by && or ||')
      case 'CallExpression':
        return this.#call(node, depth)
    }
    throw this.#error(node, `this is not part of a filter; ${this.#known}`)
  }

  /** `a || b || c` is a chain of any length, which acorn gives as `(a || b) || c`. */
  #logical(node: Expression, operator: '&&' | '||', depth: number): FilterCondition {
    const nodes: Expression[] = []
    let first: Expression = node
    while (first.type === 'LogicalExpression' && first.operator === operator) {
      nodes.unshift(first.right)
      first = first.left
    }
    const parts = [first, ...nodes].map((part) => this.condition(part, depth + 1))
    return { kind: operator === '&&' ? 'and' : 'or', at: node.start, parts }
  }

  #comparison(relation: FilterRelation, leftNode: Expression, rightNode: Expression, depth: number): FilterCondition {
    const left = this.#part(leftNode, depth + 1)
    const right = this.#part(rightNode, depth + 1)
    const at = leftNode.start
    for (const [one, other, otherNode] of [
      [left, right, rightNode],
      [right, left, leftNode],
    ] as const) {
      if (one.is === 'strncmp') {
        const zero = other.is === 'number' && other.number.kind === 'literal' && other.number.value === 0n
        if (!zero || (relation !== '==' && relation !== '!=')) throw this.#error(otherNode, 'strncmp() is compared with 0, by == or !=')
        return { ...one.same, at, relation }
      }
    }
    if (left.is === 'string' && right.is === 'text') return this.#textComparison(at, relation, left.string, right, rightNode)
    if (left.is === 'text' && right.is === 'string') return this.#textComparison(at, relation, right.string, left, leftNode)
    if (isText(left) && isText(right))
      throw this.#error(rightNode, 'a string is compared with a text in quotes; one of the two must be that')
    if (isText(left) !== isText(right)) {
      const other = isText(left) ? right : left
      const [stringNode, otherNode] = isText(left) ? [leftNode, rightNode] : [rightNode, leftNode]
      throw this.#error(stringNode, `a string is compared with a ${other.is}${this.#hintAtString(relation, otherNode)}`)
    }
    return { kind: 'compare', at, relation, left: this.#asNumber(left, leftNode), right: this.#asNumber(right, rightNode) }
  }

  /** Most arguments that are compared with a text are pointers to strings. */
  #hintAtString(relation: FilterRelation, node: Expression): string {
    const isArgument = node.type === 'Identifier' && /^arg\d+$/.test(node.name)
    return isArgument && (relation === '==' || relation === '!=') ? `; to read the string it points to, write str(${node.name})` : ''
  }

  #textComparison(
    at: number,
    relation: FilterRelation,
    subject: FilterString,
    { text }: { text: string },
    literal: Expression,
  ): FilterCondition {
    if (relation !== '==' && relation !== '!=') throw this.#error(literal, `strings are compared by == and !=, not by ${relation}`)
    return { kind: 'text', at, subject, relation, text: this.#literal(text, subject, literal), prefix: false }
  }

  /** `S.startsWith("x")`, `str(argN)`, `strncmp(S, "x", 1)` */
  #call(node: CallExpression, depth: number): Part {
    const { callee, arguments: given } = node
    const at = node.start
    if (callee.type === 'MemberExpression') {
      const { object, property } = callee
      if (property.type !== 'Identifier' || property.name !== 'startsWith') throw this.#error(property, 'a string has only startsWith("…")')
      const subject = object.type === 'Super' ? null : this.#part(object, depth + 1)
      if (subject?.is !== 'string') throw this.#error(object, 'only comm and str(argN) have startsWith("…")')
      const [literal] = given
      if (given.length !== 1 || literal?.type !== 'Literal' || typeof literal.value !== 'string') {
        throw this.#error(literal ?? property, 'startsWith takes one text in quotes')
      }
      return conditionPart(this.#prefix(at, subject.string, literal.value, literal))
    }
    const name = callee.type === 'Identifier' ? callee.name : ''
    if (name === 'str') {
      const [argument] = given
      const part = argument?.type === 'Identifier' ? this.#name(argument) : null
      if (given.length !== 1 || part?.is !== 'number' || part.number.kind !== 'arg') {
        throw this.#error(argument ?? node, 'str() takes one argument of the probe, as in str(arg0)')
      }
      return { is: 'string', string: { kind: 'str', at, index: part.number.index } }
    }
    if (name === 'strncmp') return this.#strncmp(node, depth)
    throw this.#error(callee, 'this is no function of a filter; there are str() and strncmp()')
  }

  #strncmp(node: CallExpression, depth: number): Part {
    const [first, second, count] = node.arguments
    const misused = (where: Node | undefined): UprobeError =>
      this.#error(where ?? node, 'strncmp takes a string, a text in quotes and a number, as in strncmp(str(arg0), "x", 1)')
    if (first === undefined || second === undefined || count === undefined || node.arguments.length !== 3) throw misused(undefined)
    if (first.type === 'SpreadElement' || second.type === 'SpreadElement') throw misused(undefined)
    const [one, other] = [this.#part(first, depth + 1), this.#part(second, depth + 1)]
    const [subject, literal, literalNode] = one.is === 'string' ? [one, other, second] : [other, one, first]
    if (subject.is !== 'string') throw misused(first)
    if (literal.is !== 'text') throw misused(literalNode)
    const length = count.type === 'Literal' && typeof count.value !== 'string' ? this.#integer(count, false) : 0n
    if (length === 0n) throw this.#error(count, 'strncmp takes the number of bytes to compare, from 1')
    const bytes = Buffer.from(literal.text)
    // As in C: the NUL behind the text counts.
    if (length > bytes.length) {
      const text = this.#literal(literal.text, subject.string, literalNode)
      return { is: 'strncmp', same: { kind: 'text', at: node.start, subject: subject.string, relation: '==', text, prefix: false } }
    }
    const start = bytes.subarray(0, Number(length)).toString()
    if (!Buffer.from(start).equals(bytes.subarray(0, Number(length))))
      throw this.#error(count, 'this number of bytes cuts a character of the text')
    return { is: 'strncmp', same: this.#prefix(node.start, subject.string, start, literalNode) }
  }

  #prefix(at: number, subject: FilterString, text: string, literal: Node): TextCondition {
    if (text === '') throw this.#error(literal, 'every string starts with nothing')
    return { kind: 'text', at, subject, relation: '==', text: this.#literal(text, subject, literal), prefix: true }
  }

  /** A text that a string in the target can be equal to. */
  #literal(text: string, subject: FilterString, node: Node): string {
    const bytes = Buffer.byteLength(text)
    if (/\p{Surrogate}/u.test(text)) throw this.#error(node, 'half of a surrogate pair has no bytes in UTF-8')
    if (text.includes('\0')) throw this.#error(node, 'a string ends before its first NUL')
    if (subject.kind === 'comm' && bytes >= COMM_BYTES)
      throw this.#error(node, `comm has at most ${COMM_BYTES - 1} bytes, and this ${bytes}`)
    if (bytes > MAX_LITERAL_BYTES) throw this.#error(node, `a text of ${bytes} bytes; at most ${MAX_LITERAL_BYTES} can be compared`)
    return text
  }

  #name({ name, start: at }: Identifier): Part {
    if (name === 'comm') return { is: 'string', string: { kind: 'comm', at } }
    if (name === 'pid' || name === 'tid' || name === 'cpu') return numberPart({ kind: name, at })
    if (name === 'retval') {
      if (this.kind !== 'uretprobe') throw filterError(this.text, at, 'only a return probe (uretprobe) has retval')
      return numberPart({ kind: 'arg', at, index: 0 })
    }
    const index = /^arg(0|[1-9]\d{0,2})$/.exec(name)?.[1]
    if (index === undefined) throw filterError(this.text, at, `${shown(name)} is not known; ${this.#known}`)
    return numberPart({ kind: 'arg', at, index: Number(index) })
  }

  /** The exact value, which a double would round. */
  #integer(node: Literal, negative: boolean): bigint {
    const digits = /^(0[xX][\da-fA-F]+|0[oO][0-7]+|0[bB][01]+|\d+)n?$/.exec((node.raw ?? '').replaceAll('_', ''))?.[1]
    if (digits === undefined) throw this.#error(node, 'this is not a whole number')
    const value = negative ? -BigInt(digits) : BigInt(digits)
    if (value < -(1n << 63n) || value >= 1n << 64n) throw this.#error(node, 'the number does not fit 64 bits')
    return value
  }

  #error({ start }: Node, what: string): UprobeError {
    return filterError(this.text, start, what)
  }
}

function numberPart(number: FilterNumber): Part {
  return { is: 'number', number }
}

function conditionPart(condition: FilterCondition): Part {
  return { is: 'condition', condition }
}

function isText({ is }: Part): boolean {
  return is === 'string' || is === 'text'
}

function isOperator(operator: string): operator is FilterOperator {
  return OPERATORS.has(operator)
}
