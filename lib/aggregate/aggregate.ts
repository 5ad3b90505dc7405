/**
 * The way from a question to a running aggregation.
 *
 * An aggregation is a probe (of a latency two) whose programs add to maps. Targets, registration, verification, counters and the end of processes are those of every probe (attach.ts); what is made here are the maps, once
 * the sites and their operands are known and before anything is registered.
 */

import type { MakeSink } from '../attach.js'
import type { HitSink } from '../capture/compile.js'
import type { Logger } from '../log.js'
import type { Native } from '../native.js'
import type { AttachSettings } from '../options.js'
import type { Probe } from '../probe.js'
import type { Site } from '../register/site.js'
import { Aggregation } from './aggregation.js'
import { hasCompareExchange } from './compare-exchange.js'
import type { GroupCode } from './group-code.js'
import { Groups } from './groups.js'
import { layoutGroups } from './layout.js'
import type { AggregateSettings } from './options.js'
import { GroupStore } from './store.js'
import { ValueSink } from './value-code.js'

/** What a tracer lends to an aggregation. */
export interface AggregateContext {
  readonly native: Native
  readonly log: Logger
  /** Told when it has ended and holds nothing. */
  onEnded(aggregation: Aggregation): void
}

/** Attaches one probe of an aggregation. */
export type AttachPart = (spec: string, settings: AttachSettings, makeSink: MakeSink) => Promise<Probe>

/** What is made in the course of an attach, and closed when it fails. */
interface Made {
  readonly store: GroupStore
  readonly groups: Groups
}

/** Starts an aggregation. Nothing is left behind when it fails. */
export async function aggregate(context: AggregateContext, settings: AggregateSettings, attachPart: AttachPart): Promise<Aggregation> {
  const { native } = context
  let made: Made | null = null
  const makeSink = async (sites: readonly Site[]): Promise<HitSink> => {
    const layout = layoutGroups(settings.question, sites)
    const compareExchange = await hasCompareExchange(native)
    const store = new GroupStore(native, layout, settings.maxGroups)
    made = { store, groups: new Groups(layout, store.maxGroups) }
    const code: GroupCode = { layout, maps: store.maps, compareExchange }
    return new ValueSink(code)
  }
  const whatWasMade = (): Made | null => made
  try {
    const start = await attachPart(settings.spec, settings.attach, makeSink)
    const { store, groups } = whatWasMade() ?? impossible()
    return new Aggregation({ start, store, groups, log: context.log, onEnded: (ended) => context.onEnded(ended) })
  } catch (error) {
    whatWasMade()?.store.close()
    throw error
  }
}

function impossible(): never {
  throw new TypeError('a probe was attached without asking what takes its hits')
}
