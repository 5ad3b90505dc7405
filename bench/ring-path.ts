/**
 * What the way from the ring to JavaScript takes of the agent, a record: of its reader thread, and of its main thread with the consumer. Each consumer is a process of its own (record-reader.cjs).
 *
 * A program of its own writes many records at a hit (support/many-records.cjs), so that not the trap is measured. Times are those that the scheduler has in its books for a thread
 * (/proc/PID/task/TID/schedstat), so that other programs on the machine do not count. They include everything: the doorbell, garbage that was collected on the thread, page faults.
 */
import type { Target } from '../test/support/target.js'
import { TEXT_THERE_NS } from './support/bounds.js'
import { table } from './support/markdown.js'
import { type GoalResult, grouped, judge, type Report, type Settings } from './support/report.js'
import { type Summary, showQuartiles, summarise } from './support/statistics.js'
import { makeRoomForTarget, Workshop } from './support/workshop.js'

const RECORDS_A_HIT = 64
/** Long enough that the start and the end of a burst do not count. */
const EXECUTIONS = 6144
const RECORDS = RECORDS_A_HIT * EXECUTIONS
/** Holds a burst, so that nothing is lost to a machine that is busy. */
const RING_BYTES = 64 << 20

const ROUNDS = { full: 31, quick: 7 }
const WARM_UP_ROUNDS = 5

interface Way {
  readonly name: string
  /** What record-reader.cjs calls it. */
  readonly way: string
  readonly probe: string
  /** Bounds in nanoseconds a record. */
  readonly goals: { readonly main?: number; readonly reader?: number }
}

const WAYS: readonly Way[] = [
  { name: "`'batch'`, two numbers", way: 'batch numbers', probe: 'ints0', goals: { main: 25, reader: 25 } },
  { name: "`'batch'`, a string of 63 bytes", way: 'batch string', probe: 'text0', goals: { main: 80 } },
  { name: '`batch.arg`, two numbers', way: 'arg numbers', probe: 'ints3', goals: { main: 25 } },
  { name: '`batch.arg`, a string of 63 bytes', way: 'arg string', probe: 'text1', goals: { main: 80 } },
  { name: "`'hit'`, two numbers", way: 'hit', probe: 'ints1', goals: {} },
  { name: '`for await`, two numbers', way: 'iterator', probe: 'ints2', goals: { main: 300 } },
]

interface Outcome {
  readonly way: Way
  readonly main: number[]
  readonly reader: number[]
  readonly lost: number
}

/** Starts a reader of the records of one probe. */
function startReader(workshop: Workshop, target: Target, path: string, { way, probe }: Way): Promise<Target> {
  const spec = `usdt:${path}:bench:${probe}`
  return workshop.startScript('record-reader.cjs', way, spec, ...[target.pid, RECORDS, RECORDS_A_HIT, RING_BYTES].map(String))
}

async function measure(workshop: Workshop, target: Target, path: string, way: Way, rounds: number): Promise<Outcome> {
  const reader = await startReader(workshop, target, path, way)
  const main: number[] = []
  const readers: number[] = []
  for (let round = 0; round < WARM_UP_ROUNDS + rounds; round++) {
    await reader.ask('begin')
    const [taken] = await Promise.all([reader.line(), target.askNumber(`run ${way.probe} ${EXECUTIONS}`)])
    if (round < WARM_UP_ROUNDS) continue
    const ns = JSON.parse(taken) as { main: number; reader: number }
    main.push(ns.main / RECORDS)
    readers.push(ns.reader / RECORDS)
  }
  const ended = reader.end()
  const lost = Number((await reader.line()).split(' ')[1])
  await ended
  return { way, main, reader: readers, lost }
}

/** What this machine's JavaScript takes at the least, in nanoseconds, for a record whose two numbers are read through a typed array, and for a string of 63 bytes. */
interface Scale {
  readonly typedArray: number
  readonly text: number
}

async function machineScale(workshop: Workshop, target: Target, path: string): Promise<Scale> {
  const [first] = WAYS
  if (first === undefined) throw new Error('there is no way')
  const reader = await startReader(workshop, target, path, first)
  return JSON.parse(await reader.ask('scale'))
}

function goalsOf(outcomes: readonly Outcome[], scale: Scale): GoalResult[] {
  return outcomes.flatMap(({ way, main, reader }) => {
    const goal = (thread: string, limit: number | undefined, values: readonly number[], floor?: number): GoalResult[] => {
      if (limit === undefined) return []
      const what = `A record to JavaScript, ${way.name}: ${thread}`
      const judged = floor === undefined ? {} : { floor: summarise([floor]), yardstick: { there: TEXT_THERE_NS, here: scale.text } }
      return [judge({ what, limit, unit: 'ns', digits: 0, ...judged }, summarise(values))]
    }
    const floor = way.probe.startsWith('text') ? scale.text : scale.typedArray
    return [...goal('main thread', way.goals.main, main, floor), ...goal('reader thread', way.goals.reader, reader)]
  })
}

/** Measures, and returns a section. */
export function ringPath({ quick }: Settings): Promise<Report> {
  makeRoomForTarget()
  return Workshop.use(async (workshop) => {
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const rounds = quick ? ROUNDS.quick : ROUNDS.full
    const outcomes: Outcome[] = []
    for (const way of WAYS) outcomes.push(await measure(workshop, target, path, way, rounds))
    const scale = await machineScale(workshop, target, path)
    const show = (summary: Summary): string => summary.median.toFixed(1)
    const rows = outcomes.map(({ way, main, reader, lost }) => {
      const [ours, theirs] = [summarise(main), summarise(reader)]
      return [way.name, show(ours), showQuartiles(ours, 1), show(theirs), showQuartiles(theirs, 1), grouped(lost)]
    })
    return {
      markdown: [
        '## What a record costs the agent',
        table(['consumer', 'main thread, ns', 'half of the rounds', 'reader thread, ns', 'half of the rounds', 'lost'], rows),
        `${rounds} rounds of ${grouped(RECORDS)} records, ${RECORDS_A_HIT} a hit, CPU time of the threads with all that they did meanwhile. For comparison, on this machine and in this run: two numbers read from memory through a typed array take ${scale.typedArray.toFixed(1)} ns, \`buffer.toString('latin1')\` of 63 bytes ${scale.text.toFixed(1)} ns.`,
      ].join('\n\n'),
      goals: goalsOf(outcomes, scale),
    }
  })
}
