/**
 * The way from a question to a running aggregation.
 *
 * An aggregation is a probe (of a latency two) whose programs add to maps. Targets, registration, verification, counters and the end of processes are those of every probe (attach.ts); what is made here are the maps, once
 * the sites and their operands are known and before anything is registered.
 */

import type { MakeTaker, Taker } from '../attach.js'
import type { Logger } from '../log.js'
import type { Native } from '../native.js'
import { bad } from '../option-checks.js'
import type { AttachSettings } from '../options.js'
import type { Probe } from '../probe.js'
import type { Site } from '../register/site.js'
import { parseSpec } from '../spec/spec.js'
import { Undo } from '../undo.js'
import { Aggregation } from './aggregation.js'
import { refuseCommonSites } from './common-sites.js'
import { hasCompareExchange } from './compare-exchange.js'
import type { GroupCode } from './group-code.js'
import { Groups } from './groups.js'
import { EndSink, StartSink } from './latency-code.js'
import { layoutGroups } from './layout.js'
import type { AggregateSettings } from './options.js'
import { Pair } from './pair.js'
import { PairedArming } from './paired-arming.js'
import { Starts } from './starts.js'
import { GroupStore } from './store.js'
import { bindTerm, parseTermOf, type Term } from './terms.js'
import { ValueSink } from './value-code.js'

/** What a tracer lends to an aggregation. */
export interface AggregateContext {
  readonly native: Native
  readonly log: Logger
  /** Told when it has ended and holds nothing. */
  onEnded(aggregation: Aggregation): void
}

/** Attaches one probe of an aggregation. */
export type AttachPart = (spec: string, settings: AttachSettings, makeTaker: MakeTaker) => Promise<Probe>

/** What is made in the course of an attach. */
interface Made {
  store: GroupStore | null
  groups: Groups | null
  pair: Pair | null
}

/** Starts an aggregation. Nothing is left behind when it fails. */
export async function aggregate(context: AggregateContext, settings: AggregateSettings, attachPart: AttachPart): Promise<Aggregation> {
  const { log } = context
  const made: Made = { store: null, groups: null, pair: null }
  const undo = new Undo()
  try {
    const start = await attachPart(settings.spec, settings.attach, (prepared) =>
      makeTaker(context, settings, attachPart, prepared, made, undo),
    )
    const { store, groups, pair } = made
    if (store === null || groups === null) throw new TypeError('a probe was attached without asking what takes its hits')
    if (pair !== null) pair.start = start
    const { signal } = settings.attach
    return new Aggregation({ start, pair, store, groups, signal, log, onEnded: (ended) => context.onEnded(ended) })
  } catch (error) {
    await undo.run(log)
    throw error
  }
}

/** Makes the maps, now that the sites are known; of a latency, where it ends is attached before where it begins: an end without a beginning does no harm. */
async function makeTaker(
  { native }: AggregateContext,
  settings: AggregateSettings,
  attachPart: AttachPart,
  { sites, files }: Parameters<MakeTaker>[0],
  made: Made,
  undo: Undo,
): Promise<Taker> {
  const layout = layoutGroups(settings.question, sites)
  const compareExchange = await hasCompareExchange(native)
  const store = await GroupStore.open(native, layout, settings.maxGroups)
  undo.add(() => store.close())
  made.store = store
  made.groups = new Groups(layout, store.maxGroups)
  const code: GroupCode = { layout, maps: store.maps, compareExchange }
  const { end } = settings
  if (end === null) return { sink: new ValueSink(code), paired: false }
  const { matching } = end
  const { pids, counter } = settings.attach
  // In processes that are named, when perf events are moved to another thread; elsewhere, when claims are made, which those of calls need not.
  const comeLate = pids.length > 0 || (counter === 'msb' && matching.by !== 'frame')
  const starts = await Starts.open(native, matching.by, layout.keyBytes, store.maps.lossFd, comeLate)
  undo.add(() => starts.close())
  const termAt = (spec: string): Term | null => {
    if (matching.by !== 'argument') return null
    const term = parseTermOf('match', matching.text, parseSpec(spec).kind, { words: ['thread'], number: true })
    if (term.node.kind === 'str' || term.node.kind === 'comm') bad('match', 'give a number, such as arg0; strings are not compared')
    return term
  }
  const checked = (term: Term | null, of: readonly Site[]): Term | null => {
    if (term !== null) for (const { shape, probe } of of) bindTerm(term, shape.operands, probe)
    return term
  }
  const startTerm = checked(termAt(settings.spec), sites)
  const endTerm = termAt(end.spec)
  const returns = (spec: string): boolean => parseSpec(spec).kind === 'uretprobe'
  const probe = await attachPart(end.spec, { ...settings.attach, filter: null }, async (atEnd) => {
    if (returns(end.spec) === returns(settings.spec)) refuseCommonSites(files, atEnd.files)
    return {
      sink: new EndSink(code, starts.maps, checked(endTerm, atEnd.sites)),
      paired: true,
      seeLate: (pid, work) => starts.seeLate('end', pid, work),
    }
  })
  undo.add(() => probe.detach())
  const pair = new Pair(probe, starts, store, matching.by)
  made.pair = pair
  return {
    sink: new StartSink(code, starts.maps, startTerm),
    paired: true,
    seeLate: (pid, work) => starts.seeLate('start', pid, work),
    pair: (own, pauseMap) => new PairedArming(own, pauseMap, pair),
  }
}
