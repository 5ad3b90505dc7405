/**
 * What is measured and what hits are grouped by: a number or a string in the syntax of filters, without the condition.
 *
 *     arg0   arg1 >> 4   pid   retval          numbers, of which any can be measured
 *     comm   str(arg1)                         strings, to group by
 *
 * Parsing and binding are those of filters (capture/filter-parse.ts, filter-bind.ts).
 */
import type { FilterNumber, FilterString } from '../capture/filter.js'
import { type BoundNumber, bindFilter, numberReadsMemory, type ReadableOperand } from '../capture/filter-bind.js'
import { parseTerm, type TermWish } from '../capture/filter-parse.js'
import type { BoundOperand } from '../capture/operands.js'
import { UprobeError } from '../errors.js'
import type { ProbeSpec } from '../spec/spec.js'

/** A parsed term. */
export interface Term {
  /** As it was written. */
  readonly text: string
  /** The option that it was given as, for messages. */
  readonly option: string
  readonly node: FilterNumber | FilterString
}

/** A term bound to the operands of one shape. */
export type BoundTerm =
  | { readonly is: 'number'; readonly number: BoundNumber }
  /** `null` for comm. */
  | { readonly is: 'string'; readonly subject: ReadableOperand | null }

/**
 * Parses a term.
 * @param wish - as of {@link parseTerm}
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`, with the place
 */
export function parseTermOf(option: string, text: string, kind: ProbeSpec['kind'], wish?: TermWish): Term {
  return { text, option, node: naming(option, () => parseTerm(text, kind, wish)) }
}

/**
 * Binds a term to operands.
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION`, with the place
 */
export function bindTerm({ text, option, node }: Term, operands: readonly BoundOperand[], site?: string): BoundTerm {
  const { at } = node
  if (node.kind === 'comm' || node.kind === 'str') {
    const bound = naming(option, () =>
      bindFilter({ text, condition: { kind: 'text', at, subject: node, relation: '==', text: '', prefix: false } }, operands, site),
    )
    return { is: 'string', subject: bound.kind === 'text' ? bound.subject : null }
  }
  const zero: FilterNumber = { kind: 'literal', at, value: 0n }
  const bound = naming(option, () =>
    bindFilter({ text, condition: { kind: 'compare', at, relation: '==', left: node, right: zero } }, operands, site),
  )
  if (bound.kind !== 'compare') throw new TypeError('a comparison was bound to something else')
  return { is: 'number', number: bound.left }
}

/** Whether a term is read from memory of the target. */
export function readsMemory(term: Term, operands: readonly BoundOperand[]): boolean {
  const bound = bindTerm(term, operands)
  return bound.is === 'string' ? bound.subject !== null : numberReadsMemory(bound.number)
}

/** Errors of filters name the option that the text was given as. */
function naming<T>(option: string, work: () => T): T {
  try {
    return work()
  } catch (error) {
    if (!(error instanceof UprobeError)) throw error
    throw new UprobeError(error.code, error.message.replace('Option filter:', `Option ${option}:`), { cause: error })
  }
}
