/**
 * What `hist` and `count --by` have in common: aggregations that run until something asks to stop, and the forms of their keys and counts.
 */
import type { AggregateOptions, AggregateSpec, Aggregation, AggregationSnapshot, ArgumentValue, Tracer } from '../index.js'
import { escapeForDisplay } from '../log.js'
import { runSessionOf, type SessionSettings, untilAllEnd } from './session.js'
import { displaySeen } from './summary.js'
import { displayArg, jsonInteger, plural } from './text.js'

/** What one aggregation has seen, and how it is called. */
export interface Answer {
  /** The probe as it was asked for; of two, `FROM -> TO`. */
  readonly name: string
  readonly aggregation: Aggregation
  readonly snapshot: AggregationSnapshot
  /** Whether there is a budget: then what was counted is true of a part of the time, which is told. */
  readonly budget: boolean
}

/** Aggregates until the end. */
export async function runAggregations(
  settings: SessionSettings,
  specs: readonly AggregateSpec[],
  options: AggregateOptions,
): Promise<Answer[]> {
  async function* attachEach(tracer: Tracer, signal: AbortSignal): AsyncGenerator<Aggregation> {
    for (const spec of specs) yield await tracer.aggregate(spec, { ...options, signal })
  }
  const ended = await runSessionOf(settings, attachEach, untilAllEnd)
  const budget = settings.tracing?.budget !== undefined
  return Promise.all(
    ended.map(async (aggregation, index) => ({
      name: nameOf(specs[index] ?? ''),
      aggregation,
      snapshot: await aggregation.snapshot(),
      budget,
    })),
  )
}

function nameOf(spec: AggregateSpec): string {
  return typeof spec === 'string' ? spec : `${spec.from} -> ${spec.to}`
}

/** A key as JSON: what was asked for by its expression. */
export function keyToJson(by: readonly string[], key: readonly ArgumentValue[]): object {
  return Object.fromEntries(by.map((name, index) => [name, partToJson(key[index])]))
}

function partToJson(part: ArgumentValue | undefined): unknown {
  return typeof part === 'bigint' ? jsonInteger(part) : part
}

/** A key as people read it: `arg0 42, comm "postgres"`. */
export function displayKey(by: readonly string[], key: readonly ArgumentValue[]): string {
  return key.map((part, index) => `${escapeForDisplay(by[index] ?? '')} ${displayArg(part)}`).join(', ')
}

/** The counts of an aggregation as JSON closes with them. */
export function countsToJson({ name, aggregation, snapshot, budget }: Answer): object {
  const { hits, filtered, aggregated, lost, unfinished, unmatched, cutOff, begunUnseen } = aggregation.stats()
  const { seenMs, seenFraction } = snapshot
  const counts = { spec: name, hits, filtered, aggregated, lost, unfinished, unmatched }
  return budget ? { ...counts, cutOff, begunUnseen, seenMs, seenFraction } : counts
}

/** As in `100 hits, 3 filtered, 97 aggregated, 0 lost`; what there is none of is left out, but for losses. With a budget the part of the time that was seen follows. */
export function displayCounts({ aggregation, snapshot, budget }: Answer): string {
  const { hits, filtered, aggregated, lost, unfinished, unmatched, cutOff, begunUnseen } = aggregation.stats()
  const some = (count: number, what: string): string => (count === 0 ? '' : `, ${count} ${what}`)
  return `${plural(hits, 'hit')}${some(filtered, 'filtered')}, ${aggregated} aggregated, ${lost} lost${some(unfinished, cutOff === 0 ? 'unfinished' : `unfinished (${cutOff} cut off)`)}${some(unmatched, unmatched === 1 ? 'end unmatched' : 'ends unmatched')}${some(begunUnseen, 'begun unseen')}${displaySeen(budget ? snapshot.seenFraction : undefined)}`
}
