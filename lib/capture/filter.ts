/**
 * Filters: which hits are delivered, decided in the kernel.
 *
 *     arg0 > 100 && str(arg1) == "select" && pid != 1
 *     comm.startsWith("post") || (arg2 & 0xf0) >> 4 != arg3 + 1
 *
 * The grammar is a part of that of JavaScript expressions (filter-parse.ts says which), so that operators bind as a Node developer expects. On its way into the kernel a
 * filter is parsed into the tree below, bound to the operands of each shape (filter-bind.ts), and compiled (filter-code.ts).
 *
 * Numbers are integers of 64 bits, signed or unsigned; an argument is what its note says. A comparison is that of the numbers themselves, so -1 is less than any unsigned number.
 * Arithmetic is modulo 2^64.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'

/** How numbers are compared. */
export type FilterRelation = '==' | '!=' | '<' | '<=' | '>' | '>='

/** Operators between two numbers. */
export type FilterOperator = '+' | '-' | '*' | '/' | '%' | '&' | '|' | '^' | '<<' | '>>'

/** Where a part of the filter begins in its text, from 0. */
interface Place {
  readonly at: number
}

/** A number. */
export type FilterNumber = Place &
  (
    | { readonly kind: 'literal'; readonly value: bigint }
    | { readonly kind: 'arg'; readonly index: number }
    | { readonly kind: 'pid' | 'tid' | 'cpu' }
    | { readonly kind: '-' | '~'; readonly inner: FilterNumber }
    | { readonly kind: 'arithmetic'; readonly operator: FilterOperator; readonly left: FilterNumber; readonly right: FilterNumber }
  )

/** A string. */
export type FilterString = Place & ({ readonly kind: 'comm' } | { readonly kind: 'str'; readonly index: number })

/** What holds or does not. */
export type FilterCondition = Place &
  (
    | { readonly kind: 'compare'; readonly relation: FilterRelation; readonly left: FilterNumber; readonly right: FilterNumber }
    | {
        readonly kind: 'text'
        readonly subject: FilterString
        /** `==`: it holds if the string is the text, or begins with it; `!=`: if not. An unreadable string does neither. */
        readonly relation: '==' | '!='
        readonly text: string
        readonly prefix: boolean
      }
    | { readonly kind: 'and' | 'or'; readonly parts: readonly FilterCondition[] }
    | { readonly kind: 'not'; readonly inner: FilterCondition }
  )

/** A parsed filter. */
export interface Filter {
  /** As it was written. */
  readonly text: string
  readonly condition: FilterCondition
}

/** How much of the filter an error shows on either side of the place. */
const SHOWN = 60

/**
 * An error that points at its place:
 *
 *     Option filter: column 8: a string is compared with a number
 *       arg0 > "x"
 *              ^
 *
 * @param at - from 0; the column that is shown counts from 1
 */
export function filterError(text: string, at: number, what: string): UprobeError {
  const from = at > SHOWN ? at - SHOWN : 0
  const before = (from > 0 ? '…' : '') + escapeForDisplay(text.slice(from, at))
  const after = escapeForDisplay(text.slice(at, at + SHOWN)) + (text.length > at + SHOWN ? '…' : '')
  return new UprobeError(
    'ERR_UPROBE_BAD_OPTION',
    `Option filter: column ${at + 1}: ${what}\n  ${before}${after}\n  ${' '.repeat([...before].length)}^`,
  )
}
