/**
 * Milliseconds from `attach()` until every site is armed, and from `detach()` until every one is gone.
 *
 * One site and a hundred as perf events, and one to ten thousand, each with its counter, through a uprobe_multi link; each beside a C program (floor.c) that makes the same registrations. Through a link it does so
 * twice: alone, and with the other calls that make an attach, which read the process, the file and its notes, load a program, and read back in the target that the sites are armed. That they
 * are, and that nothing is left, is looked up here once more, outside the measured time. The package is measured in an agent of its own (attacher.cjs).
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import type { AttachOptions } from '../lib/index.js'
import { isArmed } from '../test/support/memory.js'
import { type Note, notesOf } from '../test/support/notes.js'
import { POSTGRES, Postgres } from '../test/support/postgres.js'
import type { Target } from '../test/support/target.js'
import { table } from './support/markdown.js'
import { type Holder, holdBpftrace, holdPerf, isInstalled, type Place } from './support/others.js'
import { type GoalResult, grouped, judge, type Report, type Settings } from './support/report.js'
import { ratios, showMedian, showQuartiles, summarise } from './support/statistics.js'
import { Workshop } from './support/workshop.js'

type Registration = 'perf' | 'multi'

/** What the C program does: registers only, or makes all the calls that the package makes. */
type Floor = Registration | 'whole'

/** Sites of one name in one process. */
interface Subject {
  readonly pid: number
  readonly path: string
  readonly spec: string
  readonly notes: readonly Note[]
  /** The notes' places in the file, as floor.c takes them. */
  readonly places: readonly string[]
  readonly options: AttachOptions
}

function subjectOf(subject: Omit<Subject, 'places'>): Subject {
  const places = subject.notes.map(({ fileOffset, refCtrOffset }) => `${fileOffset}${refCtrOffset === null ? '' : `:${refCtrOffset}`}`)
  return { ...subject, places }
}

/** Milliseconds of one attach and one detach. */
interface Times {
  readonly attachMs: number
  readonly detachMs: number
}

/** Of this package. */
interface OwnTimes extends Times {
  /** The longest that the event loop stood still meanwhile. */
  readonly stallMs: number
  /** The same in an agent that does nothing for as long. */
  readonly idleStallMs: number
}

const ROUNDS = 15
/** Perf events are closed one after another, about 0.1 s each, so a hundred of them are not closed fifteen times. */
const SLOW_ROUNDS = 2
/** What the same system calls take in plain C, times this. */
const GOAL = 1.3
/** How long the event loop may stand still, in milliseconds. */
const STALL_GOAL_MS = 10
/** Of other tracers, which take seconds. */
const PEER_ROUNDS = 5

/** What was measured of one subject. */
interface Comparison {
  readonly rows: readonly string[][]
  readonly goals: readonly GoalResult[]
}

/** What attacher.cjs answers. */
type Answer = { readonly ms: number; readonly stallMs: number } | { readonly error: string }

/** An agent that attaches one probe at a time, in a process of its own. */
class Attacher {
  private constructor(private readonly process: Target) {}

  /** Ends the agent. */
  stop(): Promise<unknown> {
    return this.process.stop()
  }

  static async start(workshop: Workshop): Promise<Attacher> {
    return new Attacher(await workshop.startScript('attacher.cjs'))
  }

  attach({ spec, options }: Subject, registration: Registration): Promise<Answer> {
    return this.#ask(`attach\t${spec}\t${JSON.stringify({ ...options, registration })}`)
  }

  detach(): Promise<Answer> {
    return this.#ask('detach')
  }

  async time(subject: Subject, registration: Registration): Promise<OwnTimes> {
    const attach = succeeded(await this.attach(subject, registration))
    assertArmed(subject, true)
    const detach = succeeded(await this.detach())
    assertArmed(subject, false)
    const idle = succeeded(await this.#ask(`idle\t${attach.ms + detach.ms}`))
    return { attachMs: attach.ms, detachMs: detach.ms, stallMs: Math.max(attach.stallMs, detach.stallMs), idleStallMs: idle.stallMs }
  }

  async #ask(command: string): Promise<Answer> {
    return JSON.parse(await this.process.ask(command)) as Answer
  }
}

function succeeded(answer: Answer): { readonly ms: number; readonly stallMs: number } {
  if ('error' in answer) throw new Error(`the agent could not: ${answer.error}`)
  return answer
}

/** Some hundred of them are looked at, each by a reading of its own. */
const LOOKED_AT = 200

function assertArmed({ pid, path, notes: all }: Subject, armed: boolean): void {
  const step = Math.ceil(all.length / LOOKED_AT)
  const notes = all.filter((_, index) => index % step === 0)
  const wrong = notes.filter(({ fileOffset }) => isArmed(pid, path, fileOffset) !== armed)
  if (wrong.length > 0) throw new Error(`${wrong.length} of ${notes.length} sites are ${armed ? 'not armed' : 'still armed'}`)
}

function timeFloor(floor: string, { pid, path, places }: Subject, mode: Floor): Times {
  const [attach, detach] = execFileSync(floor, [mode, path, String(pid), ...places], { encoding: 'utf8' })
    .split(' ')
    .map(Number)
  if (attach === undefined || detach === undefined) throw new Error('floor gave no times')
  return { attachMs: attach / 1e6, detachMs: detach / 1e6 }
}

/** Beside which floors a registration is measured, and what they are called. */
const FLOORS: Record<Registration, readonly Floor[]> = { perf: ['perf'], multi: ['multi', 'whole'] }
const FLOOR_NAMES: Record<Floor, string> = { perf: 'C', multi: 'C, the link alone', whole: 'C, the same calls' }

/**
 * Measures all sides in turn, so that they meet the same noise.
 * @param stallOf - what the goal for the event loop's stall is called; `null` for no goal
 */
async function compare(
  agent: Attacher,
  floor: string | null,
  subject: Subject,
  registration: Registration,
  rounds: number,
  stallOf: string | null = null,
): Promise<Comparison> {
  const ours: OwnTimes[] = []
  const floors =
    floor === null
      ? []
      : FLOORS[registration].map((mode) => ({ mode, measure: () => timeFloor(floor, subject, mode), times: [] as Times[] }))
  // The first round is not counted.
  for (let round = 0; round <= rounds; round++) {
    const counted = round > 0 || rounds <= SLOW_ROUNDS
    const time = await agent.time(subject, registration)
    if (counted) ours.push(time)
    for (const { measure, times } of floors) {
      const floorTime = measure()
      if (counted) times.push(floorTime)
    }
  }
  const sites = String(subject.notes.length)
  const rows = [['uprobe', registration, sites, ...cells(ours), ...stallCells(ours)]]
  for (const { mode, times } of floors) rows.push([FLOOR_NAMES[mode], registration, sites, ...cells(times)])
  const same = floors.find(({ mode }) => mode === 'whole')
  const goals = same === undefined ? [] : goalsOf(subject.notes.length, ours, same.times)
  if (stallOf !== null) goals.push(stallGoal(stallOf, ours))
  return { rows, goals }
}

/** Nobody, this package neither, can do anything about what the machine does to an agent that is idle. */
function stallGoal(what: string, ours: readonly OwnTimes[]): GoalResult {
  return judge(
    {
      what: `The event loop's longest stall while ${what} are attached and detached`,
      limit: STALL_GOAL_MS,
      unit: 'ms',
      digits: 1,
      floor: summarise(ours.map(({ idleStallMs }) => idleStallMs)),
    },
    summarise(ours.map(({ stallMs }) => stallMs)),
  )
}

function goalsOf(sites: number, ours: readonly Times[], floors: readonly Times[]): GoalResult[] {
  const goal = (what: string, of: (times: Times) => number): GoalResult =>
    judge(
      { what: `${what} ${grouped(sites)} ${sites === 1 ? 'site' : 'sites'}, ratio to C with the same calls`, limit: GOAL },
      summarise(ratios(ours.map(of), floors.map(of))),
    )
  return [goal('Attaching', ({ attachMs }) => attachMs), goal('Detaching', ({ detachMs }) => detachMs)]
}

/** Another tracer, from the start of its process until the sites are armed, and from the signal until it is gone. */
async function timePeer({ pid, path, notes }: Subject, start: (place: Place) => Promise<Holder>, rounds: number): Promise<Times[]> {
  // The last to be attached, if they are attached one after another.
  const note = notes.at(-1)
  if (note === undefined) throw new Error('there is nothing to attach to')
  const times: Times[] = []
  for (let round = 0; round < rounds; round++) {
    const begin = performance.now()
    const holder = await start({ pid, path, note })
    const attached = performance.now()
    await holder.stop()
    times.push({ attachMs: attached - begin, detachMs: performance.now() - attached })
  }
  return times
}

async function comparePeers(workshop: Workshop, one: Subject, hundred: Subject): Promise<string[][]> {
  const rows: string[][] = []
  const add = async (name: string, subject: Subject, start: (place: Place) => Promise<Holder>, rounds: number): Promise<void> => {
    rows.push([name, '', String(subject.notes.length), ...cells(await timePeer(subject, start, rounds))])
  }
  if (isInstalled('perf')) await add('`perf stat`, a process', one, (place) => holdPerf(workshop, ['stat'], place), PEER_ROUNDS)
  if (isInstalled('bpftrace')) {
    // The sites of one name are one probe to it.
    await add('bpftrace, a process', one, (place) => holdBpftrace(workshop, place, '{ @ = count() }'), PEER_ROUNDS)
    await add('bpftrace, a process', hundred, (place) => holdBpftrace(workshop, place, '{ @ = count() }'), 1)
  }
  return rows
}

function cells(times: readonly Times[]): string[] {
  const attach = summarise(times.map(({ attachMs }) => attachMs))
  const detach = summarise(times.map(({ detachMs }) => detachMs))
  return [showMedian(attach, 1), showQuartiles(attach, 1), showMedian(detach, 1), showQuartiles(detach, 1)]
}

function stallCells(times: readonly OwnTimes[]): string[] {
  return [({ stallMs }: OwnTimes) => stallMs, ({ idleStallMs }: OwnTimes) => idleStallMs].map((of) =>
    showMedian(summarise(times.map(of)), 1),
  )
}

/** Whether this kernel has a uprobe_multi link that the package uses. */
async function hasMulti(agent: Attacher, subject: Subject): Promise<boolean> {
  const answer = await agent.attach(subject, 'multi')
  if ('error' in answer && answer.error === 'ERR_UPROBE_UNSUPPORTED') return false
  succeeded(answer)
  succeeded(await agent.detach())
  return true
}

/** All probes of a PostgreSQL server, in every process of it: what the package itself would choose. */
async function comparePostgres(workshop: Workshop, agent: Attacher): Promise<Comparison> {
  if (!existsSync(POSTGRES)) return { rows: [], goals: [] }
  const server = await Postgres.start(workshop)
  const path = server.path
  const notes = notesOf(path)
  const subject = subjectOf({ pid: server.pid, path, spec: `usdt:${path}:postgresql:*`, notes, options: { countOnly: true } })
  const { rows, goals } = await compare(agent, null, subject, 'multi', ROUNDS)
  return { rows: rows.map(([, ...rest]) => ['uprobe, PostgreSQL', ...rest]), goals }
}

/** A file with ten thousand probes, each with a counter of its own; of which one, a hundred, … are attached. */
async function compareThousands(workshop: Workshop, agent: Attacher, floor: string): Promise<Comparison[]> {
  const path = workshop.build('thousands')
  const { pid } = await workshop.startTarget(path)
  const all = notesOf(path)
  const comparisons: Comparison[] = []
  for (const numbers of ['7', '7??', '7???', '*']) {
    const isMeant = new RegExp(`^site${numbers.replaceAll('?', '.').replace('*', '.*')}$`)
    const subject = subjectOf({
      pid,
      path,
      spec: `usdt:${path}:t:site${numbers}`,
      notes: all.filter(({ name }) => isMeant.test(name)),
      options: { pid, maxSites: all.length },
    })
    const { rows, goals } = await compare(agent, floor, subject, 'multi', ROUNDS, numbers === '*' ? '10,000 sites' : null)
    comparisons.push({ rows: rows.map(([who = '', ...rest]) => [`${who}, of 10,000`, ...rest]), goals })
    if (numbers === '*') comparisons.push(await measureFirst(workshop, subject))
  }
  return comparisons
}

/** What each process does once: what an attach takes has not run in it before, and V8 has compiled none of it. */
async function measureFirst(workshop: Workshop, subject: Subject): Promise<Comparison> {
  const ours: OwnTimes[] = []
  for (let round = 0; round < PEER_ROUNDS; round++) {
    const agent = await Attacher.start(workshop)
    ours.push(await agent.time(subject, 'multi'))
    await agent.stop()
  }
  const rows = [['uprobe, the first of a process', 'multi', String(subject.notes.length), ...cells(ours), ...stallCells(ours)]]
  return { rows, goals: [stallGoal('10,000 sites, the first of their process,', ours)] }
}

/** Measures, and returns a section. */
export function attachTime({ quick }: Settings): Promise<Report> {
  return Workshop.use(async (workshop) => {
    const path = workshop.build('target')
    const floor = workshop.build('floor')
    const { pid } = await workshop.startTarget(path)
    const agent = await Attacher.start(workshop)
    const probesNamed = (name: string): Subject =>
      subjectOf({ pid, path, spec: `usdt:${path}:bench:${name}`, notes: notesOf(path, `bench:${name}`), options: { pid } })
    const one = probesNamed('ints0')
    const hundred = probesNamed('hundred')
    const ordinary: Comparison[] = [await compare(agent, floor, one, 'perf', ROUNDS)]
    const thousands: Comparison[] = []
    const goals: GoalResult[] = []
    if (!quick) {
      const events = await compare(agent, floor, hundred, 'perf', SLOW_ROUNDS, 'a hundred perf events')
      ordinary.push(events)
      goals.push(...events.goals)
    }
    if (await hasMulti(agent, one)) {
      ordinary.push(await compare(agent, floor, one, 'multi', ROUNDS))
      ordinary.push(await compare(agent, floor, hundred, 'multi', ROUNDS))
      thousands.push(...(await compareThousands(workshop, agent, floor)))
      ordinary.push(await comparePostgres(workshop, agent))
    }
    const peers = quick ? [] : await comparePeers(workshop, one, hundred)
    const rows = [...ordinary, ...thousands].flatMap((comparison) => comparison.rows)
    return {
      markdown: [
        '## How long attaching and detaching take',
        `Median milliseconds of ${ROUNDS} rounds (of ${SLOW_ROUNDS + 1} for a hundred perf events, of ${PEER_ROUNDS} for the first of a process and for other tracers, with the start and the end of theirs, and of one for a hundred sites of bpftrace). The longest stall is that of the event loop, with what the machine did meanwhile; beside it what it did to the same agent while that was idle for as long.`,
        table(
          ['', 'registration', 'sites', 'attach', 'half of the rounds', 'detach', 'half of the rounds', 'longest stall', 'idle as long'],
          [...rows, ...peers],
        ),
      ].join('\n\n'),
      goals: [...goals, ...thousands.flatMap((comparison) => comparison.goals)],
    }
  })
}
