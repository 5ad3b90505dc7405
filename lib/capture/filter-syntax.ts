/**
 * The syntax of filters: acorn parses the text as a JavaScript expression, of which only the tokens that filters are made of are let through.
 */
import { type Expression, parseExpressionAt, type Token, type TokenType, tokTypes } from 'acorn'
import type { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import { filterError } from './filter.js'

/** Of parts within parts; a chain of `&&` or `||` is one. */
export const MAX_DEPTH = 64

/** The tokens that filters are made of. Any other ends the parsing where it stands. */
const TOKENS: ReadonlySet<TokenType> = new Set([
  ...[tokTypes.name, tokTypes.num, tokTypes.string, tokTypes.parenL, tokTypes.parenR, tokTypes.comma, tokTypes.dot, tokTypes.prefix],
  ...[tokTypes.logicalOR, tokTypes.logicalAND, tokTypes.bitwiseOR, tokTypes.bitwiseXOR, tokTypes.bitwiseAND, tokTypes.equality],
  ...[tokTypes.relational, tokTypes.bitShift, tokTypes.plusMin, tokTypes.modulo, tokTypes.star, tokTypes.slash, tokTypes.eof],
])

/**
 * Parses the text as an expression.
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`, with the place
 */
export function parseExpression(text: string): Expression {
  let end = 0
  let open = 0
  let prefixes = 0
  // acorn calls itself for each parenthesis and prefix, and the text decides how many there are.
  const onToken = ({ type, start, end: tokenEnd }: Token): void => {
    if (!TOKENS.has(type)) throw notPart(text, start, tokenEnd)
    if (type === tokTypes.parenL) open++
    if (type === tokTypes.parenR) open--
    prefixes = type === tokTypes.prefix || type === tokTypes.plusMin ? prefixes + 1 : 0
    if (open > MAX_DEPTH || prefixes > MAX_DEPTH) throw filterError(text, start, `nested deeper than ${MAX_DEPTH}`)
    end = tokenEnd
  }
  const onComment = (_: boolean, __: string, start: number): void => {
    throw filterError(text, start, 'a comment is not part of a filter')
  }
  try {
    // The grammar of modules has no octal numbers such as 010.
    const expression = parseExpressionAt(text, 0, { ecmaVersion: 'latest', sourceType: 'module', onToken, onComment })
    const rest = text.slice(end).trimStart()
    if (rest !== '') throw filterError(text, text.length - rest.length, 'the filter should end here, or go on with an operator')
    return expression
  } catch (error) {
    if (!(error instanceof SyntaxError) || !('pos' in error) || typeof error.pos !== 'number') throw error
    const ended = text.slice(error.pos).trim() === ''
    const what = error.message.replace(/ \(\d+:\d+\)$/, '')
    // It points at what stands before the sign.
    const [assignment, blank = '', sign = ''] = /^(\s*)([^\s\w"'(]*=)/.exec(text.slice(end)) ?? []
    if (what === 'Assigning to rvalue' && assignment !== undefined)
      throw notPart(text, end + blank.length, end + blank.length + sign.length)
    if (what !== 'Unexpected token') throw filterError(text, error.pos, shown(what.charAt(0).toLowerCase() + what.slice(1)))
    throw filterError(text, error.pos, ended ? 'something is missing here' : 'this is not expected here')
  }
}

function notPart(text: string, start: number, end: number): UprobeError {
  const token = text.slice(start, end)
  return filterError(text, start, token === '=' ? '= is not part of a filter; == compares' : `${shown(token)} is not part of a filter`)
}

/** What was written, or acorn says of it, cut and safe to print. */
export function shown(text: string): string {
  return escapeForDisplay(text.length > 40 ? `${text.slice(0, 40)}…` : text)
}
