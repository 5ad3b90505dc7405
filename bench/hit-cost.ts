/**
 * Nanoseconds that a hit costs the target.
 *
 * Every way of tracing (support/ways.ts) is attached to a probe of its own (target.c), all at once, and the target executes one after the other in turn, round after round. So
 * what the machine does meanwhile meets all of them alike, and each is compared with `perf stat`, and with the others of its group, of its own round. The target has a processor
 * for itself; the tracers share the other. A burst is longer than the ring, so that whoever cannot keep up loses hits.
 */
import { Tracer } from '../lib/index.js'
import { type Note, notesOf } from '../test/support/notes.js'
import type { Target } from '../test/support/target.js'
import { table } from './support/markdown.js'
import type { Place } from './support/others.js'
import type { Tracing } from './support/ours.js'
import { type BarGroup, type GoalResult, grouped, judge, type Report, type Settings } from './support/report.js'
import { percentLess, ratios, type Summary, showMedian, showQuartiles, spreadPercent, summarise } from './support/statistics.js'
import { type Group, groupsOf, referenceName, type Way } from './support/ways.js'
import { makeRoomForTarget, Workshop } from './support/workshop.js'

const ROUNDS = { full: 21, quick: 3 }
/** The first rounds are not counted: tracers start, caches fill, code is compiled. */
const WARM_UP_ROUNDS = 2
/** About 150 ms, and more than the ring holds. */
const BURST_HITS = 200_000

/** A way, attached, with its measurements. */
interface Run {
  readonly way: Way
  readonly group: Group
  /** Name of the probe in the target. */
  readonly probe: string
  readonly tracing: Tracing
  /** Nanoseconds a hit, one a round. */
  readonly costs: number[]
}

/** The same, summarised. */
interface Outcome {
  readonly run: Run
  readonly cost: Summary
  /** To `perf stat` of the same round. */
  readonly ratio: Summary
}

/** Attaches each way to the next free probe of its kind. */
async function start(groups: readonly Group[], place: Omit<Place, 'note'>): Promise<Run[]> {
  const notes = notesOf(place.path)
  const used = new Map<string, number>()
  const runs: Run[] = []
  for (const group of groups) {
    for (const way of group.ways) {
      const number = used.get(group.probes) ?? 0
      used.set(group.probes, number + 1)
      const probe = `${group.probes}${number}`
      const sites =
        group.probes === 'pair'
          ? { note: findNote(notes, `${probe}_start`), second: findNote(notes, `${probe}_done`) }
          : { note: findNote(notes, probe) }
      runs.push({ way, group, probe, tracing: await way.start({ ...place, ...sites }), costs: [] })
    }
  }
  return runs
}

function findNote(notes: readonly Note[], name: string): Note {
  const note = notes.find((candidate) => candidate.name === name)
  if (note === undefined) throw new Error(`the target has no probe ${name}`)
  return note
}

async function measure(target: Target, runs: readonly Run[], rounds: number): Promise<void> {
  for (let round = 0; round < WARM_UP_ROUNDS + rounds; round++) {
    for (const { way, probe, tracing, costs } of runs) {
      const hits = BURST_HITS * (way.share ?? 1)
      const nanoseconds = await target.askNumber(`run ${probe} ${hits}`)
      await tracing.settle?.()
      if (round >= WARM_UP_ROUNDS) costs.push(nanoseconds / hits)
    }
  }
}

function tableOf(outcomes: readonly Outcome[]): string {
  const rows: string[][] = []
  for (const { run, cost, ratio } of outcomes) {
    const { way, group, tracing } = run
    if (group.ways[0] === way) rows.push([`**${group.title}**`])
    const ours = way.by === 'uprobe'
    const goal = ours && group.goal !== undefined ? group.goal.toFixed(2) : ''
    rows.push([
      ours ? `**${way.name}**` : way.name,
      showMedian(cost),
      showQuartiles(cost),
      showMedian(ratio, 2),
      showQuartiles(ratio, 2),
      goal,
      tracing.outcome?.() ?? '',
    ])
  }
  return table(['traced by', 'ns a hit', 'half of the rounds', 'ratio', 'half of the rounds', 'goal', 'hits'], rows)
}

function goalsOf(outcomes: readonly Outcome[]): GoalResult[] {
  return outcomes.flatMap(({ run: { way, group }, ratio }) => {
    if (way.by !== 'uprobe' || group.goal === undefined) return []
    const floor = outcomes.find(({ run }) => run.group === group && run.way.by === 'C')?.ratio
    return [judge({ what: `A hit: ${group.title.toLowerCase()}, ratio to \`perf stat\``, limit: group.goal, floor }, ratio)]
  })
}

/** The tracers of a group that cost less than this package, round by round, in more than three quarters of the rounds. */
function behindIn(outcomes: readonly Outcome[]): string[] {
  return outcomes.flatMap(({ run: ours }) => {
    if (ours.way.by !== 'uprobe') return []
    return outcomes.flatMap(({ run }) => {
      if (run.group !== ours.group || run.way.by !== 'peer') return []
      const percent = percentLess(run.costs, ours.costs)
      return percent === null ? [] : [`${ours.group.title}: ${run.way.name} costs the target ${percent} % less than ${ours.way.name}.`]
    })
  })
}

function chartOf(groups: readonly Group[], outcomes: readonly Outcome[]): BarGroup[] {
  return groups.map((group) => ({
    title: group.title,
    bars: outcomes
      .filter(({ run }) => run.group === group)
      .map(({ run, cost }) => ({ label: run.way.name.replaceAll('`', ''), by: run.way.by, value: cost })),
  }))
}

/** Measures, and returns a section. */
export function hitCost({ quick }: Settings): Promise<Report> {
  makeRoomForTarget()
  return Workshop.use(async (workshop) => {
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const tracer = new Tracer()
    workshop.after(() => tracer.close())
    const { groups, missing } = groupsOf(workshop, tracer)
    const runs = await start(groups, { pid: target.pid, path })
    const rounds = quick ? ROUNDS.quick : ROUNDS.full
    await measure(target, runs, rounds)
    const untraced = (await target.askNumber(`run untraced ${BURST_HITS}`)) / BURST_HITS
    for (const { tracing } of runs) await tracing.stop()
    const reference = referenceName()
    const referenceCosts = runs.find(({ way }) => way.name === reference)?.costs ?? []
    const outcomes = runs.map((run) => ({ run, cost: summarise(run.costs), ratio: summarise(ratios(run.costs, referenceCosts)) }))
    const noise = spreadPercent(summarise(referenceCosts)).toFixed(1)
    return {
      markdown: [
        '## What a hit costs the target',
        tableOf(outcomes),
        `${rounds} rounds of up to ${grouped(BURST_HITS)} hits, CPU time of the target; ratios to ${reference} counting in the same round. Untraced: ${untraced.toFixed(1)} ns.` +
          (missing.length > 0 ? ` Not measured: ${missing.join('; ')}.` : ''),
      ].join('\n\n'),
      goals: goalsOf(outcomes),
      chart: chartOf(groups, outcomes),
      behind: behindIn(outcomes),
      noise: `Of ${reference}, half of the rounds lie within ${noise} % of each other.`,
    }
  })
}
