/**
 * Nanoseconds that a hit costs the target.
 *
 * Every way of tracing is attached to a probe of its own (target.c), all at once, and the target executes one after the other in turn, round after round. So
 * what the machine does meanwhile meets all of them alike, and each is compared with the bare perf event of its own round. The target has a processor
 * for itself; the tracers share the other. A burst is longer than the ring, so that whoever cannot keep up loses hits.
 */
import type { Probe } from '../lib/index.js'
import { Tracer } from '../lib/index.js'
import { type Note, notesOf } from '../test/support/notes.js'
import type { Target } from '../test/support/target.js'
import { waitFor } from '../test/support/wait.js'
import { machine, table } from './support/markdown.js'
import { type Holder, holdBpftrace, holdFloor, holdPerf, isInstalled, type Place } from './support/others.js'
import { showMedian, showQuartiles, summarise } from './support/statistics.js'
import { makeRoomForTarget, Workshop } from './support/workshop.js'

const ROUNDS = 31
/** The first rounds are not counted: tracers start, caches fill, code is compiled. */
const WARM_UP_ROUNDS = 2
/** About 150 ms, and more than the ring holds. */
const BURST_HITS = 200_000

/** What holds a probe during the rounds. */
interface Tracing extends Holder {
  /** Waits until everything of a burst has arrived. */
  settle?(): Promise<void>
  /** What became of the hits, once it was stopped. */
  outcome?(): string
}

/** A way to trace. */
interface Way {
  readonly name: string
  /** Name of the probe in the target. */
  readonly probe: string
  readonly hits: number
  /** Greatest ratio to the bare perf event that this project allows itself. */
  readonly goal?: number
  start(place: Place): Promise<Tracing>
}

/** The row that all others are compared with. */
const REFERENCE = 'perf event that counts (C)'

function waysToTrace(workshop: Workshop, tracer: Tracer): Way[] {
  const floor = workshop.build('floor')
  const hits = BURST_HITS
  const ways: Way[] = [
    { name: 'untraced', probe: 'untraced', hits: 1_000_000, start: async () => ({ stop: async () => undefined }) },
    { name: REFERENCE, probe: 'ints0', hits, start: (place) => holdFloor(workshop, floor, 'count', place) },
    { name: 'BPF program that returns (C)', probe: 'ints1', hits, start: (place) => holdFloor(workshop, floor, 'empty', place) },
    { name: 'BPF, two ints, nobody woken (C)', probe: 'ints2', hits, start: (place) => holdFloor(workshop, floor, 'ints', place) },
    { name: 'BPF, ints and string, nobody woken (C)', probe: 'text0', hits, start: (place) => holdFloor(workshop, floor, 'text', place) },
    { name: 'uprobe, counting', probe: 'ints3', hits, goal: 0.95, start: (place) => holdOurs(tracer, place, 'count') },
    { name: 'uprobe, two ints to JavaScript', probe: 'ints4', hits, goal: 1.2, start: (place) => holdOurs(tracer, place, 'ints') },
    { name: 'uprobe, ints and string to JavaScript', probe: 'text1', hits, goal: 1.35, start: (place) => holdOurs(tracer, place, 'text') },
  ]
  if (isInstalled('perf')) {
    ways.push(
      { name: 'perf stat', probe: 'ints5', hits, start: (place) => holdPerf(workshop, ['stat'], place) },
      { name: 'perf record', probe: 'ints6', hits: hits / 4, start: (place) => holdPerf(workshop, ['record', '-q'], place) },
    )
  }
  if (isInstalled('bpftrace')) {
    const print = 'printf("%d %d\\n", arg0, arg1)'
    ways.push(
      { name: 'bpftrace, count()', probe: 'ints7', hits, start: (place) => holdBpftrace(workshop, '@hits = count()', place) },
      { name: 'bpftrace, printf of two ints', probe: 'ints8', hits: hits / 10, start: (place) => holdBpftrace(workshop, print, place) },
    )
  }
  return ways
}

/** This package. The consumer reads the arguments of every hit, as a program would that has a use for them. */
async function holdOurs(tracer: Tracer, { pid, path, note }: Place, what: 'count' | 'ints' | 'text'): Promise<Tracing> {
  const options = what === 'count' ? { countOnly: true } : what === 'text' ? { strings: [2] } : {}
  const probe: Probe = await tracer.attach(`usdt:${path}:${note.provider}:${note.name}`, { pid, ...options })
  let sum = 0
  if (what !== 'count') {
    probe.on('batch', (batch) => {
      for (const hit of batch) sum += Number(hit.args[0]) + Number(hit.args[1]) + String(hit.args[2] ?? '').length
    })
  }
  return {
    settle: async () => {
      await waitFor('the hits to arrive', () => {
        const { hits, delivered, lost } = probe.stats()
        return hits === delivered + lost
      })
    },
    stop: () => probe.detach(),
    outcome: () => {
      const { hits, delivered, lost } = probe.stats()
      return what === 'count' ? `${hits} counted` : `${delivered} delivered, ${lost} lost${Number.isNaN(sum) ? ' (wrong arguments)' : ''}`
    },
  }
}

/** A way, attached, with its measurements. */
interface Run {
  readonly way: Way
  readonly tracing: Tracing
  /** Nanoseconds a hit, one a round. */
  readonly costs: number[]
}

async function measure(target: Target, runs: readonly Run[]): Promise<void> {
  for (let round = 0; round < WARM_UP_ROUNDS + ROUNDS; round++) {
    for (const { way, tracing, costs } of runs) {
      const nanoseconds = await target.askNumber(`run ${way.probe} ${way.hits}`)
      await tracing.settle?.()
      if (round >= WARM_UP_ROUNDS) costs.push(nanoseconds / way.hits)
    }
  }
}

function report(runs: readonly Run[]): string {
  const reference = runs.find(({ way }) => way.name === REFERENCE)?.costs ?? []
  const rows = runs.map(({ way, tracing, costs }) => {
    const cost = summarise(costs)
    // Divided round by round, so that what slowed a whole round down cancels out.
    const ratio = summarise(costs.map((value, round) => value / (reference[round] ?? Number.NaN)))
    const digits = way.probe === 'untraced' ? 1 : 0
    const goal = way.goal === undefined ? '' : way.goal.toFixed(2)
    return [
      way.name,
      showMedian(cost, digits),
      showQuartiles(cost, digits),
      showMedian(ratio, 2),
      showQuartiles(ratio, 2),
      goal,
      tracing.outcome?.() ?? '',
    ]
  })
  return table(['traced by', 'ns a hit', 'half of the rounds', 'ratio', 'half of the rounds', 'goal', 'hits'], rows)
}

function findNote(notes: readonly Note[], name: string): Note {
  const note = notes.find((candidate) => candidate.name === name)
  if (note === undefined) throw new Error(`the target has no probe ${name}`)
  return note
}

/** Measures, and returns a section in Markdown. */
export function hitCost(): Promise<string> {
  makeRoomForTarget()
  return Workshop.use(async (workshop) => {
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const tracer = new Tracer()
    workshop.after(() => tracer.close())
    const notes = notesOf(path)
    const runs: Run[] = []
    for (const way of waysToTrace(workshop, tracer)) {
      const tracing = await way.start({ pid: target.pid, path, note: findNote(notes, way.probe) })
      runs.push({ way, tracing, costs: [] })
    }
    await measure(target, runs)
    for (const { tracing } of runs) await tracing.stop()
    return [
      '## What a hit costs the target',
      `${machine()}. ${ROUNDS} rounds, ${BURST_HITS} hits a burst, CPU time of the target; ratios to the bare perf event of the same round.`,
      report(runs),
    ].join('\n\n')
  })
}
