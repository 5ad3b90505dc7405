/**
 * The options of `tracer.aggregate`, and their checking at the border.
 */
import type { HitKind } from '../budget/hit-cost.js'
import { escapeForDisplay } from '../log.js'
import { bad, boolean, integer, onlyKnown } from '../option-checks.js'
import { type AttachOptions, type AttachSettings, checkAttachOptions, checkIsObject } from '../options.js'
import { type ProbeSpec, parseSpec } from '../spec/spec.js'
import { LEAST_SCALE, MOST_SCALE } from './buckets.js'
import type { Measured, MeasureKind, Question } from './layout.js'
import { parseTermOf } from './terms.js'

/** Two probes between which the time is measured. */
export interface ProbePair {
  /** The probe at which it begins. */
  from: string
  /** The probe at which it ends. */
  to: string
  /**
   * Which end belongs to which beginning. `thread`: in one thread the end ends the last beginning that has not ended. An argument such as `arg0`: the end has the same value
   * there as the beginning, in the same process. Default: `thread`.
   */
  match?: string | undefined
}

/** What is aggregated: one probe, or for a latency two. */
export type AggregateSpec = string | ProbePair

/** Options of `tracer.aggregate`. */
export interface AggregateOptions
  extends Pick<AttachOptions, 'pid' | 'path' | 'counter' | 'filter' | 'maxSites' | 'registration' | 'budget' | 'unsafe' | 'signal'> {
  /** Count hits. They are counted in any case; `true` may say so where nothing else is measured, and `false` is refused. */
  count?: boolean | undefined
  /** A number to add up: an expression in the syntax of filters, such as `arg0` or `arg1 >> 10`, or `latency`. */
  sum?: string | undefined
  /** A number whose smallest value is kept. */
  min?: string | undefined
  /** A number whose largest value is kept. */
  max?: string | undefined
  /** A number that a histogram is made of. */
  histogram?: string | undefined
  /** What hits are grouped by: `argN`, `retval`, `pid`, `tid`, `cpu`, expressions of these, `comm`, `str(argN)`. Of a latency it is what the beginning had. */
  by?: string | readonly string[] | undefined
  /** Scale of the histogram, which must be asked for, from -5 to 5: 2^scale buckets for each power of two. Default: 0. */
  scale?: number | undefined
  /** How many groups are kept; hits of further ones are counted together. Default: 1024, or as many as fit 64 MiB of kernel memory. */
  maxGroups?: number | undefined
  /** Longest string to group by, in bytes, up to 240. What is longer is grouped by its beginning. Default: 64. */
  stringLimit?: number | undefined
}

/** How the ends of a latency find their beginnings: in the thread the one of the same call, in the thread the last one, or by an argument. */
export type Matching = { readonly by: 'frame' } | { readonly by: 'any' } | { readonly by: 'argument'; readonly text: string }

/** Checked options of an aggregation. */
export interface AggregateSettings {
  /** The probe, or where a latency begins. */
  readonly spec: string
  /** Where a latency ends; `null` if none is measured. */
  readonly end: { readonly spec: string; readonly matching: Matching } | null
  readonly question: Question
  readonly maxGroups: number | null
  /** For both probes; the filter is for the first. */
  readonly attach: AttachSettings
}

const MEASURES = ['sum', 'min', 'max', 'histogram'] as const
const ATTACH = ['pid', 'path', 'counter', 'filter', 'maxSites', 'registration', 'budget', 'unsafe', 'signal'] as const
const OWN = ['count', ...MEASURES, 'by', 'scale', 'maxGroups', 'stringLimit'] as const
/** Parts of a key. */
const MOST_PARTS = 16

/** Checks the options of an aggregation. Throws `ERR_UPROBE_BAD_OPTION` or `ERR_UPROBE_BAD_SPEC`. */
export function checkAggregateOptions(spec: AggregateSpec, options: AggregateOptions): AggregateSettings {
  checkIsObject(options)
  if ('match' in options) bad('match', 'it stands beside the two probes: { from, to, match }')
  onlyKnown(options, [...ATTACH, ...OWN])
  if (!boolean('count', options.count ?? true)) bad('count', 'hits are counted in any case; leave it out')
  const attach = checkAttachOptions(Object.fromEntries(ATTACH.map((name) => [name, options[name]])))
  const asked = MEASURES.filter((name) => options[name] !== undefined)
  const latencies = asked.filter((name) => options[name] === 'latency')
  const end = endOf(spec, latencies.length > 0)
  const start = typeof spec === 'string' ? spec : spec.from
  const probe = parseSpec(start)
  const { kind } = probe
  const [wrong] = end === null ? [] : asked.filter((name) => options[name] !== 'latency')
  if (wrong !== undefined)
    bad(
      wrong,
      typeof spec === 'string'
        ? "beside the latency of a function nothing else can be measured; give 'latency' here too, or make another aggregation of it"
        : "between two probes only 'latency' can be measured",
    )
  const measures = new Map<MeasureKind, Measured>()
  if (end !== null && asked.length === 0) for (const name of MEASURES) measures.set(name, 'latency')
  const wish = { words: isFunction(probe) ? ['latency'] : [], number: true }
  for (const name of asked) {
    const text: unknown = options[name]
    if (typeof text !== 'string') bad(name, "give an expression, such as 'arg0', or 'latency'")
    measures.set(name, text === 'latency' ? text : parseTermOf(name, text, kind, wish))
  }
  if (options.scale !== undefined && !measures.has('histogram'))
    bad('scale', 'it is of a histogram, which was not asked for; give histogram too')
  const given: unknown = options.by ?? []
  const by: unknown[] = Array.isArray(given) ? given : [given]
  if (by.length > MOST_PARTS) bad('by', `give at most ${MOST_PARTS} expressions`)
  return {
    spec: start,
    end,
    question: {
      measures,
      by: by.map((text) =>
        typeof text === 'string' ? parseTermOf('by', text, kind) : bad('by', "give expressions, such as 'arg1' or 'comm'"),
      ),
      scale: integer('scale', options.scale, 0, LEAST_SCALE, MOST_SCALE),
      stringLimit: integer('stringLimit', options.stringLimit, 64, 1, 240),
    },
    maxGroups: options.maxGroups === undefined ? null : integer('maxGroups', options.maxGroups, 0, 1, 2 ** 20),
    attach: { ...attach, countOnly: true },
  }
}

/**
 * The hits that cost the target as much as those of an aggregation, or, of several kinds, as those that cost most. Adding to one group takes no longer than counting (docs/performance.md); finding one by its key, or a beginning,
 * is taken to be as expensive as a record. Of a function whose calls are timed it is the whole call.
 */
export function hitsThatCostAsMuch({ spec, end, question: { by, stringLimit } }: AggregateSettings): HitKind[] {
  const { kind: probe } = parseSpec(spec)
  const strings = by.filter(({ node }) => node.kind === 'str').length
  const capture = { strings, stringLimit, stack: false, countOnly: end === null && by.length === 0 }
  if (end === null) return [{ probe, ...capture }]
  const atEnd = parseSpec(end.spec).kind
  if (end.matching.by === 'frame') return [{ probe: atEnd, ...capture }]
  return [
    { probe, ...capture },
    { probe: atEnd, ...capture, strings: 0 },
  ]
}

/** Whether calls can be timed: a function is named, by its symbol. */
function isFunction({ kind, place }: ProbeSpec): boolean {
  return kind === 'uprobe' && place.by === 'symbol' && place.offset === 0n
}

/** Where a latency ends: of a function at its return. */
function endOf(spec: AggregateSpec, latency: boolean): AggregateSettings['end'] {
  if (typeof spec === 'string') {
    if (!latency) return null
    if (!isFunction(parseSpec(spec))) {
      bad(
        'spec',
        `the latency of a function is measured of uprobe:[PATH:]SYMBOL, which ${escapeForDisplay(spec)} is not; otherwise give two probes, { from, to }`,
      )
    }
    return { spec: spec.replace(/^uprobe:/, 'uretprobe:'), matching: { by: 'frame' } }
  }
  if (typeof spec !== 'object' || spec === null || typeof spec.from !== 'string' || typeof spec.to !== 'string') {
    bad('spec', 'give a probe, or two as { from, to }')
  }
  onlyKnown(spec, ['from', 'to', 'match'])
  const match: unknown = spec.match ?? 'thread'
  if (typeof match !== 'string') bad('match', "give 'thread', or an argument such as 'arg0'")
  return { spec: spec.to, matching: match === 'thread' ? { by: 'any' } : { by: 'argument', text: match } }
}
