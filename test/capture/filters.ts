/**
 * Filters for tests: random ones, and how they are written.
 */
import fc from 'fast-check'
import type { FilterCondition, FilterNumber, FilterOperator, FilterRelation, FilterString } from '../../lib/capture/filter.js'

/** A condition with all its parentheses. */
export function written(condition: FilterCondition): string {
  switch (condition.kind) {
    case 'compare':
      return `${writtenPart(condition.left)} ${condition.relation} ${writtenPart(condition.right)}`
    case 'text': {
      const subject = writtenString(condition.subject)
      const text = JSON.stringify(condition.text)
      if (!condition.prefix) return `${subject} ${condition.relation} ${text}`
      return condition.relation === '=='
        ? `${subject}.startsWith(${text})`
        : `strncmp(${subject}, ${text}, ${Buffer.byteLength(condition.text)}) != 0`
    }
    case 'not':
      return `!(${written(condition.inner)})`
    default:
      return condition.parts.map((part) => `(${written(part)})`).join(condition.kind === 'and' ? ' && ' : ' || ')
  }
}

function writtenPart(number: FilterNumber): string {
  return number.kind === 'arithmetic' ? `(${writtenNumber(number)})` : writtenNumber(number)
}

function writtenNumber(number: FilterNumber): string {
  switch (number.kind) {
    case 'literal':
      return String(number.value)
    case 'arg':
      return `arg${number.index}`
    case '-':
    case '~':
      return `${number.kind}(${writtenNumber(number.inner)})`
    case 'arithmetic':
      return `${writtenPart(number.left)} ${number.operator} ${writtenPart(number.right)}`
    default:
      return number.kind
  }
}

function writtenString(string: FilterString): string {
  return string.kind === 'comm' ? 'comm' : `str(arg${string.index})`
}

/** The tree alone, without the places in the text. */
export function withoutPlaces(tree: unknown): unknown {
  return JSON.parse(JSON.stringify(tree, (key, value) => (key === 'at' ? undefined : typeof value === 'bigint' ? `${value}n` : value)))
}

const at = 0
const RELATIONS: readonly FilterRelation[] = ['==', '!=', '<', '<=', '>', '>=']
const OPERATORS: readonly FilterOperator[] = ['+', '-', '*', '/', '%', '&', '|', '^', '<<', '>>']

/** Numbers of 64 bits, more often those where something changes. */
export const EDGES: readonly bigint[] = [0, 1, 2, 3, 7, 31, 32, 63, 64, 127, 128, 255, 256, 32_767, 32_768, 65_535, 65_536]
  .flatMap((value) => [BigInt(value), BigInt(-value)])
  .concat(
    [31n, 32n, 33n, 62n, 63n].flatMap((bits) => [(1n << bits) - 1n, 1n << bits, (1n << bits) + 1n]),
    [-(1n << 31n), -(1n << 31n) - 1n, 1n - (1n << 63n), -(1n << 63n), (1n << 64n) - 2n, (1n << 64n) - 1n],
  )

/** A literal. */
export function literal(): fc.Arbitrary<FilterNumber & { kind: 'literal' }> {
  const value = fc.oneof(fc.constantFrom(...EDGES), fc.bigInt(-(1n << 63n), (1n << 64n) - 1n), fc.bigInt(-20n, 20n))
  return value.map((number) => ({ kind: 'literal', at, value: number }))
}

/** What conditions are made from. */
export interface Ingredients {
  /** How many arguments there are. */
  readonly numbers?: number
  /** What else is a number. */
  readonly ids?: ReadonlyArray<'pid' | 'tid' | 'cpu'>
  /** Whether numbers are compared. */
  readonly comparisons?: boolean
  /** How deep it is. */
  readonly depthSize?: 'xsmall' | 'small'
  /** The conditions on strings; none by default. */
  readonly texts?: fc.Arbitrary<FilterCondition> | undefined
}

/** A condition. */
export function condition(
  { numbers = 12, ids = ['pid', 'tid', 'cpu'], comparisons = true, depthSize = 'small', texts }: Ingredients = { texts: anyText() },
): fc.Arbitrary<FilterCondition> {
  const { number } = fc.letrec<{ number: FilterNumber }>((tie) => ({
    number: fc.oneof(
      { depthSize, withCrossShrink: true },
      fc.nat(numbers - 1).map((index): FilterNumber => ({ kind: 'arg', at, index })),
      literal(),
      fc.constantFrom(...ids).map((kind): FilterNumber => ({ kind, at })),
      // A minus before a literal is part of it.
      fc
        .record({ kind: fc.constantFrom('-' as const, '~' as const), at: fc.constant(at), inner: tie('number') })
        .filter(({ kind, inner }) => kind === '~' || inner.kind !== 'literal'),
      fc
        .record({
          kind: fc.constant('arithmetic' as const),
          at: fc.constant(at),
          operator: fc.constantFrom(...OPERATORS),
          left: tie('number'),
          right: tie('number'),
        })
        .filter(({ operator, right }) => !['/', '%'].includes(operator) || right.kind !== 'literal' || right.value !== 0n),
    ),
  }))
  const comparison = fc.record({
    kind: fc.constant('compare' as const),
    at: fc.constant(at),
    relation: fc.constantFrom(...RELATIONS),
    left: number,
    right: number,
  })
  const { tree } = fc.letrec<{ tree: FilterCondition }>((tie) => ({
    tree: fc.oneof(
      { depthSize, withCrossShrink: true },
      ...(comparisons ? [comparison] : []),
      ...(texts === undefined ? [] : [texts]),
      fc.record({ kind: fc.constant('not' as const), at: fc.constant(at), inner: tie('tree') }),
      // The first of a chain is no such chain: it would be part of this one.
      fc
        .record({
          kind: fc.constantFrom('and' as const, 'or' as const),
          at: fc.constant(at),
          parts: fc.array(tie('tree'), { minLength: 2, maxLength: 4 }),
        })
        .filter(({ kind, parts }) => parts[0]?.kind !== kind),
    ),
  }))
  return tree
}

function anyText(): fc.Arbitrary<FilterCondition> {
  const text = fc
    .string({ unit: 'grapheme', minLength: 1, maxLength: 6 })
    .filter((value) => Buffer.byteLength(value) <= 15 && !value.includes('\0'))
  const subject = fc.oneof(
    fc.constant<FilterString>({ kind: 'comm', at }),
    fc.nat(11).map((index): FilterString => ({ kind: 'str', at, index })),
  )
  return fc.record({
    kind: fc.constant('text' as const),
    at: fc.constant(at),
    subject,
    relation: fc.constantFrom('==' as const, '!=' as const),
    text,
    prefix: fc.boolean(),
  })
}
