/**
 * This package as a tracer that is measured beside the others.
 */
import type { AggregateOptions, AttachOptions, Probe, Tracer } from '../../lib/index.js'
import { waitFor } from '../../test/support/wait.js'
import type { Holder, Place } from './others.js'

/** What holds a probe during the rounds. */
export interface Tracing extends Holder {
  /** Waits until everything of a burst has arrived. */
  settle?(): Promise<unknown>
  /** What became of the hits, once it was stopped. */
  outcome?(): string
}

/** Counts in the kernel; a filter may reject hits there. */
export async function holdCounting(tracer: Tracer, place: Place, options: AttachOptions = {}): Promise<Tracing> {
  const probe = await tracer.attach(specOf(place), { pid: place.pid, countOnly: true, ...options })
  return {
    stop: () => probe.detach(),
    outcome: () => {
      const { hits, filtered } = probe.stats()
      return `${show(hits)} counted${filtered > 0 ? `, ${show(filtered)} rejected` : ''}`
    },
  }
}

/** Adds up in the kernel; of two sites the time from one to the other. */
export async function holdAggregating(tracer: Tracer, place: Place, options: AggregateOptions): Promise<Tracing> {
  const { second } = place
  const spec = second === undefined ? specOf(place) : { from: specOf(place), to: specOf({ ...place, note: second }) }
  const aggregation = await tracer.aggregate(spec, { pid: place.pid, ...options })
  return {
    stop: () => aggregation.detach(),
    outcome: () => {
      const { aggregated, lost, unfinished } = aggregation.stats()
      return `${show(aggregated)} aggregated, ${show(lost + unfinished)} lost`
    },
  }
}

/** Delivers to JavaScript. The consumer reads the arguments of every hit, as a program would that has a use for them. */
export async function holdDelivering(tracer: Tracer, place: Place, options: AttachOptions = {}): Promise<Tracing> {
  const probe: Probe = await tracer.attach(specOf(place), { pid: place.pid, ...options })
  let sum = 0
  probe.on('batch', (batch) => {
    for (const hit of batch) sum += Number(hit.args[0]) + Number(hit.args[1]) + String(hit.args[2] ?? '').length
  })
  return {
    settle: () =>
      waitFor('the hits to arrive', () => {
        const { hits, delivered, lost } = probe.stats()
        return hits === delivered + lost
      }),
    stop: () => probe.detach(),
    outcome: () => {
      const { delivered, lost } = probe.stats()
      return `${show(delivered)} delivered, ${show(lost)} lost${Number.isNaN(sum) ? ' (wrong arguments)' : ''}`
    },
  }
}

function specOf({ path, note }: Place): string {
  return `usdt:${path}:${note.provider}:${note.name}`
}

function show(count: number): string {
  return count.toLocaleString('en-US')
}
