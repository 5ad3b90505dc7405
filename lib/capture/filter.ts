/**
 * Filters: which hits are delivered, decided in the kernel.
 *
 *     arg0 > 5 && arg1 != 0x10 || !(tid == 77)
 *
 * `argN` is an integer argument, `pid` and `tid` are ids in the initial pid namespace; they are compared with integer constants by `== != < <= > >=` and
 * combined with `&&`, `||`, `!` and parentheses, which bind as in JavaScript.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'

/** What is compared. */
export type FilterSubject = { readonly is: 'arg'; readonly index: number } | { readonly is: 'pid' } | { readonly is: 'tid' }

/** How it is compared. */
export type FilterRelation = '==' | '!=' | '<' | '<=' | '>' | '>='

/** A parsed filter. */
export type FilterExpression =
  | { readonly kind: 'compare'; readonly subject: FilterSubject; readonly relation: FilterRelation; readonly value: bigint }
  | { readonly kind: 'and' | 'or'; readonly left: FilterExpression; readonly right: FilterExpression }
  | { readonly kind: 'not'; readonly inner: FilterExpression }

const TOKEN = /\s*(&&|\|\||==|!=|<=|>=|[<>!()]|-?(?:0x[0-9a-f]+|\d+)|[a-z_]\w*)/iy
const MAX_TEXT = 4096
const MAX_DEPTH = 64
const RELATIONS: ReadonlySet<string> = new Set(['==', '!=', '<', '<=', '>', '>='])

interface Token {
  readonly text: string
  /** Column of its first character, from 1. */
  readonly column: number
}

/**
 * Parses a filter.
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`, with the column
 */
export function parseFilter(text: string): FilterExpression {
  if (text.length > MAX_TEXT) throw badFilter(text.slice(0, 40), 1, `longer than ${MAX_TEXT} characters`)
  const parser = new Parser(text, tokenize(text))
  const expression = parser.or(0)
  parser.expectEnd()
  return expression
}

function tokenize(text: string): Token[] {
  const tokens: Token[] = []
  TOKEN.lastIndex = 0
  const end = text.trimEnd().length
  while (TOKEN.lastIndex < end) {
    const rest = text.slice(TOKEN.lastIndex)
    const column = text.length - rest.trimStart().length + 1
    const match = TOKEN.exec(text)
    if (match === null) throw badFilter(text, column, 'this is not understood')
    tokens.push({ text: match[1] ?? '', column })
  }
  return tokens
}

class Parser {
  #next = 0

  constructor(
    private readonly text: string,
    private readonly tokens: readonly Token[],
  ) {}

  or(depth: number): FilterExpression {
    let left = this.#and(depth)
    while (this.#accept('||')) left = { kind: 'or', left, right: this.#and(depth) }
    return left
  }

  expectEnd(): void {
    const token = this.tokens[this.#next]
    if (token !== undefined) throw this.#error(`${token.text} is not expected here`)
  }

  #and(depth: number): FilterExpression {
    let left = this.#unary(depth)
    while (this.#accept('&&')) left = { kind: 'and', left, right: this.#unary(depth) }
    return left
  }

  #unary(depth: number): FilterExpression {
    if (depth > MAX_DEPTH) throw this.#error(`nested deeper than ${MAX_DEPTH}`)
    if (this.#accept('!')) return { kind: 'not', inner: this.#unary(depth + 1) }
    if (this.#accept('(')) {
      const inner = this.or(depth + 1)
      if (!this.#accept(')')) throw this.#error('a parenthesis is not closed')
      return inner
    }
    return this.#comparison()
  }

  #comparison(): FilterExpression {
    const subject = this.#subject()
    const relation = this.#take('a comparison (== != < <= > >=)', (text) => RELATIONS.has(text)) as FilterRelation
    const { column = 1 } = this.tokens[this.#next] ?? {}
    const digits = this.#take('an integer', (text) => /^-?\d/.test(text))
    const value = digits.startsWith('-') ? -BigInt(digits.slice(1)) : BigInt(digits)
    if (value < -(1n << 63n) || value >= 1n << 64n) throw badFilter(this.text, column, 'the number does not fit 64 bits')
    return { kind: 'compare', subject, relation, value }
  }

  #subject(): FilterSubject {
    const name = this.#take('argN, pid or tid', (text) => /^(arg\d{1,2}|pid|tid)$/.test(text))
    if (name === 'pid' || name === 'tid') return { is: name }
    return { is: 'arg', index: Number(name.slice(3)) }
  }

  #accept(text: string): boolean {
    if (this.tokens[this.#next]?.text !== text) return false
    this.#next++
    return true
  }

  #take(what: string, fits: (text: string) => boolean): string {
    const token = this.tokens[this.#next]
    if (token === undefined || !fits(token.text)) throw this.#error(`${what} is expected`)
    this.#next++
    return token.text
  }

  #error(what: string): UprobeError {
    return badFilter(this.text, this.tokens[this.#next]?.column ?? this.text.length + 1, what)
  }
}

function badFilter(text: string, column: number, what: string): UprobeError {
  return new UprobeError(
    'ERR_UPROBE_BAD_OPTION',
    `Option filter: ${escapeForDisplay(text)}: column ${column}: ${what}. Write comparisons such as arg0 > 5, joined by && and ||.`,
  )
}
