/**
 * How long a hit takes from the moment at which the program executes the probe until JavaScript has it in its hands.
 *
 * A record has its time from `bpf_ktime_get_ns`, and the consumer asks `process.hrtime`: both are CLOCK_MONOTONIC. At the lower rates the hits come at moments that do not depend on
 * each other, so that some come together and some after a silence; at full speed the program does nothing but hit.
 */
import { readFileSync } from 'node:fs'
import type { Probe } from '../lib/index.js'
import { notesOf } from '../test/support/notes.js'
import { Target } from '../test/support/target.js'
import { threadsNamed } from '../test/support/threads.js'
import { waitFor } from '../test/support/wait.js'
import { Tracer } from './support/built.js'
import { table } from './support/markdown.js'
import { type GoalResult, grouped, judge, type Report, type Settings } from './support/report.js'
import { type Summary, showQuartiles, summarise } from './support/statistics.js'
import { makeRoomForTarget, Workshop } from './support/workshop.js'

/** Full speed is a rate of `null`. */
const LOADS = [
  { name: '500 hits a second', rate: 500, hits: { full: 1000, quick: 300 } },
  { name: '5,000 hits a second', rate: 5000, hits: { full: 5000, quick: 1000 } },
  { name: 'as fast as the program can', rate: null, hits: { full: 500_000, quick: 100_000 } },
] as const

/** A probe of its own for the program in C. */
const FLOOR_PROBE = 'ints1'

const ROUNDS = { full: 15, quick: 3 }
const WARM_UP_ROUNDS = 1

interface Outcome {
  readonly name: string
  readonly p50: number[]
  readonly p99: number[]
  readonly wakeUpsPerSecond: number[]
  readonly hitsPerSecond: number[]
}

/** Notes the latency of every hit, in microseconds. */
class Watch {
  #latencies: number[] = []

  constructor(private readonly probe: Probe) {
    probe.on('hit', (hit) => this.#latencies.push(Number(process.hrtime.bigint() - hit.timestamp) / 1000))
  }

  /** The latencies since it was asked last, sorted; waits until all hits have arrived. */
  async take(): Promise<number[]> {
    await waitFor('the hits to arrive', () => {
      const { hits, delivered, lost } = this.probe.stats()
      return hits === delivered + lost
    })
    const sorted = this.#latencies.sort((a, b) => a - b)
    this.#latencies = []
    return sorted
  }
}

/** How often a thread of this process went to sleep. */
function sleepsOf(tid: number): number {
  return Number(/^voluntary_ctxt_switches:\s*(\d+)/m.exec(readFileSync(`/proc/self/task/${tid}/status`, 'utf8'))?.[1] ?? 0)
}

function quantile(sorted: readonly number[], fraction: number): number {
  return sorted[Math.min(Math.floor(sorted.length * fraction), sorted.length - 1)] ?? Number.NaN
}

function goalsOf([slow, , fast]: readonly Outcome[], floor: Floor): GoalResult[] {
  const goal = (what: string, limit: number, values: readonly number[], floors?: readonly number[]): GoalResult =>
    judge({ what: `Latency ${what}`, limit, unit: 'µs', digits: 0, floor: floors && summarise(floors) }, summarise(values))
  return [
    ...(slow === undefined
      ? []
      : [goal('at 500 hits a second, p50', 100, slow.p50, floor.p50), goal('at 500 hits a second, p99', 1000, slow.p99, floor.p99)]),
    ...(fast === undefined ? [] : [goal('at full speed, p99', 5000, fast.p99)]),
  ]
}

/** The same from C (floor.c), which has read a hit as soon as it is woken. */
class Floor {
  readonly p50: number[] = []
  readonly p99: number[] = []

  constructor(
    private readonly process: Target,
    private readonly target: Target,
  ) {}

  static async start(workshop: Workshop, target: Target, path: string): Promise<Floor> {
    const [note] = notesOf(path, `bench:${FLOOR_PROBE}`)
    if (note === undefined) throw new Error(`the target has no probe ${FLOOR_PROBE}`)
    const args = ['wake', path, String(note.fileOffset), String(target.pid)]
    return new Floor(await Target.start(workshop, workshop.build('floor'), { args }), target)
  }

  async measure(count: number, rate: number): Promise<void> {
    await this.target.askNumber(`pace ${FLOOR_PROBE} ${count} ${rate}`)
    const [half = Number.NaN, most = Number.NaN] = (await this.process.ask(String(count))).split(' ').map((ns) => Number(ns) / 1000)
    this.p50.push(half)
    this.p99.push(most)
  }
}

/** Measures, and returns a section. */
export function latency({ quick }: Settings): Promise<Report> {
  makeRoomForTarget()
  return Workshop.use(async (workshop) => {
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const tracer = new Tracer()
    workshop.after(() => tracer.close())
    const probe = await tracer.attach(`usdt:${path}:bench:ints0`, { pid: target.pid })
    const watch = new Watch(probe)
    const reader = threadsNamed('uprobe-reader')[0] ?? 0
    const floor = await Floor.start(workshop, target, path)
    const outcomes: Outcome[] = LOADS.map(({ name }) => ({ name, p50: [], p99: [], wakeUpsPerSecond: [], hitsPerSecond: [] }))
    const rounds = quick ? ROUNDS.quick : ROUNDS.full
    const [slow] = LOADS
    for (let round = 0; round < WARM_UP_ROUNDS + rounds; round++) {
      await floor.measure(quick ? slow.hits.quick : slow.hits.full, slow.rate)
      for (const [index, { rate, hits }] of LOADS.entries()) {
        const count = quick ? hits.quick : hits.full
        const sleeps = sleepsOf(reader)
        const start = performance.now()
        await target.askNumber(rate === null ? `wall ints0 ${count}` : `pace ints0 ${count} ${rate}`)
        const seconds = (performance.now() - start) / 1000
        const wakeUps = (sleepsOf(reader) - sleeps) / seconds
        const latencies = await watch.take()
        if (round < WARM_UP_ROUNDS) continue
        outcomes[index]?.p50.push(quantile(latencies, 0.5))
        outcomes[index]?.p99.push(quantile(latencies, 0.99))
        outcomes[index]?.wakeUpsPerSecond.push(wakeUps)
        outcomes[index]?.hitsPerSecond.push(count / seconds)
      }
    }
    await probe.detach()
    const { delivered, lost } = probe.stats()
    const show = (summary: Summary): string => grouped(summary.median)
    const [half, most] = [summarise(floor.p50), summarise(floor.p99)]
    const floorRow = ['the same, to a program in C', '', show(half), showQuartiles(half), show(most), showQuartiles(most), '']
    const rows = outcomes.map(({ name, p50, p99, wakeUpsPerSecond, hitsPerSecond }) => {
      const [half, most] = [summarise(p50), summarise(p99)]
      const [hits, wakeUps] = [summarise(hitsPerSecond), summarise(wakeUpsPerSecond)]
      return [name, show(hits), show(half), showQuartiles(half), show(most), showQuartiles(most), show(wakeUps)]
    })
    return {
      markdown: [
        '## How long a hit takes to JavaScript',
        table(
          ['load', 'hits a second', 'p50, µs', 'half of the rounds', 'p99, µs', 'half of the rounds', 'wake-ups of the reader a second'],
          [...rows.slice(0, 1), floorRow, ...rows.slice(1)],
        ),
        `${rounds} rounds, one program with one thread; from the time in the record to the listener for \`'hit'\`. ${grouped(delivered)} delivered, ${grouped(lost)} lost.`,
      ].join('\n\n'),
      goals: goalsOf(outcomes, floor),
    }
  })
}
