/**
 * What a group keeps in the kernel, and where: eight bytes each, all 0 to begin with.
 *
 *     u64  count                    not with a histogram, whose buckets add up to it
 *     u64  sum                      modulo 2^64
 *     u64  least and largest value  as a number that only grows: see below
 *     u64  count of the zeros, of each bucket of positive values, of each bucket of negative ones
 *
 * A new group is zeros on every CPU: the kernel fills those of other CPUs with them whatever a program gives (pcpu_init_value, kernel/bpf/hashtab.c). So the extremes are kept in a form in which 0 says least: the values are
 * brought into an unsigned order, signed ones by flipping the sign, and the smallest is the largest of the complements.
 */
import type { BoundNumber } from '../capture/filter-bind.js'
import { isInMemory } from '../capture/operand-code.js'
import { align8, COMM_BYTES } from '../capture/record.js'
import type { CaptureShape } from '../capture/shape.js'
import { UprobeError } from '../errors.js'
import { positionCount } from './buckets.js'
import { MAX_KEY_BYTES } from './frame.js'
import { type BoundTerm, bindTerm, type Term } from './terms.js'

/** How a value goes into a group. */
export type MeasureKind = 'sum' | 'min' | 'max' | 'histogram'

/** What is measured: a term, or the time between two probes. */
export type Measured = Term | 'latency'

/** What is asked for, as far as it can be checked before the sites are known. */
export interface Question {
  readonly measures: ReadonlyMap<MeasureKind, Measured>
  readonly by: readonly Term[]
  readonly scale: number
  /** Longest string of a key, in bytes. */
  readonly stringLimit: number
}

/** One value of a hit, and where it goes. */
export interface Measure {
  readonly kind: MeasureKind
  /** Index among the distinct values. */
  readonly value: number
  readonly signed: boolean
  /** Where in the group. */
  readonly at: number
}

/** Where the buckets are. */
export interface HistogramLayout {
  readonly at: number
  readonly scale: number
  readonly positives: number
  /** 0 if the values have no sign. */
  readonly negatives: number
}

/** One part of a key. */
export interface KeyPart {
  readonly term: Term
  readonly at: number
  readonly bytes: number
  readonly kind: 'number' | 'comm' | 'string'
  readonly signed: boolean
  /** Whether it is to be given as a `bigint`, as hits give it. */
  readonly wide: boolean
}

/** Everything that programs and readers of one aggregation agree on. */
export interface GroupLayout {
  /** Of a group, without its key. */
  readonly bytes: number
  /** `null` if the histogram tells. */
  readonly countAt: number | null
  readonly values: readonly Measured[]
  readonly measures: readonly Measure[]
  readonly histogram: HistogramLayout | null
  readonly key: readonly KeyPart[]
  /** 0 without `by`. */
  readonly keyBytes: number
  /** Where the key says which of its numbers could not be read; `null` if all can. */
  readonly keyFlagsAt: number | null
  readonly stringLimit: number
}

/**
 * Lays out the groups of a question for the sites that it was found to be about.
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` when the terms do not suit the operands, or the key is too long
 */
export function layoutGroups(question: Question, sites: readonly { readonly shape: CaptureShape; readonly probe: string }[]): GroupLayout {
  const { scale, stringLimit } = question
  const boundEverywhere = (term: Term): BoundTerm[] => sites.map(({ shape, probe }) => bindTerm(term, shape.operands, probe))
  const texts: string[] = []
  const values: Measured[] = []
  const measures: Measure[] = []
  let histogram: HistogramLayout | null = null
  let bytes = question.measures.has('histogram') ? 0 : 8
  for (const [kind, measured] of question.measures) {
    const signed = measured !== 'latency' && boundEverywhere(measured).some((bound) => isSignedNumber(bound, measured))
    const text = measured === 'latency' ? measured : measured.text
    const known = texts.indexOf(text)
    if (known < 0) {
      texts.push(text)
      values.push(measured)
    }
    measures.push({ kind, value: known < 0 ? values.length - 1 : known, signed, at: bytes })
    if (kind === 'histogram') {
      const positives = positionCount(scale, signed ? 63 : 64)
      histogram = { at: bytes, scale, positives, negatives: signed ? positives : 0 }
      bytes += 8 * (1 + histogram.positives + histogram.negatives)
    } else {
      bytes += 8
    }
  }
  const flags = question.by.some((term) => boundEverywhere(term).some(mayBeUnreadable))
  const key = layoutKey(question, flags ? 8 : 0, boundEverywhere)
  const last = key.at(-1)
  const keyBytes = last === undefined ? 0 : last.at + last.bytes
  if (keyBytes > MAX_KEY_BYTES) {
    throw new UprobeError(
      'ERR_UPROBE_BAD_OPTION',
      `Option by: a key of ${keyBytes} bytes; ${MAX_KEY_BYTES} are possible. Group by less, or lower stringLimit (${stringLimit}).`,
    )
  }
  return {
    bytes,
    countAt: histogram === null ? 0 : null,
    values,
    measures,
    histogram,
    key,
    keyBytes,
    keyFlagsAt: flags ? 0 : null,
    stringLimit,
  }
}

function layoutKey({ by, stringLimit }: Question, from: number, boundEverywhere: (term: Term) => BoundTerm[]): KeyPart[] {
  let at = from
  return by.map((term) => {
    const bounds = boundEverywhere(term)
    const kind = term.node.kind === 'comm' ? 'comm' : term.node.kind === 'str' ? 'string' : 'number'
    // Two bytes more: the NUL, and a mark for a string that was cut.
    const bytes = kind === 'comm' ? COMM_BYTES : kind === 'string' ? align8(stringLimit + 2) : 8
    const numbers = bounds.flatMap((bound) => (bound.is === 'number' ? [bound.number] : []))
    const part = { term, at, bytes, kind, signed: numbers.some(({ signed }) => signed), wide: numbers.some(isWide) } as const
    at += bytes
    return part
  })
}

function isSignedNumber(bound: BoundTerm, term: Term): boolean {
  if (bound.is === 'number') return bound.number.signed
  throw new UprobeError('ERR_UPROBE_BAD_OPTION', `Option ${term.option}: ${term.text} is a string, and a number is wanted.`)
}

/** Whether a number may be beyond what a double holds exactly. */
function isWide(number: BoundNumber): boolean {
  if (number.kind === 'operand') return number.operand.size === 8
  return number.kind === 'arithmetic' || number.kind === '-' || number.kind === '~' || number.kind === 'literal'
}

/** Whether a number of a key may have no value: memory that is not there, or a division by 0. Strings say it by themselves. */
function mayBeUnreadable(bound: BoundTerm): boolean {
  return bound.is === 'number' ? numberMayFail(bound.number) : bound.subject !== null && isInMemory(bound.subject)
}

function numberMayFail(number: BoundNumber): boolean {
  switch (number.kind) {
    case 'operand':
      return isInMemory(number.operand)
    case '-':
    case '~':
      return numberMayFail(number.inner)
    case 'arithmetic':
      return number.operator === '/' || number.operator === '%' || numberMayFail(number.left) || numberMayFail(number.right)
    default:
      return false
  }
}
