/**
 * What the agent needs: a process of its own (agent.cjs), plain JavaScript on what is built, as users run it. Processor time and memory are looked up from outside.
 */
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import type { Target } from '../test/support/target.js'
import { waitFor } from '../test/support/wait.js'
import { activityOf, becomeQuiet, residentMib } from './support/activity.js'
import { table } from './support/markdown.js'
import { grouped, type Report, type Settings } from './support/report.js'
import { type Summary, showQuartiles, summarise } from './support/statistics.js'
import { Workshop } from './support/workshop.js'

const ROUNDS = { full: 11, quick: 3 }
const WARM_UP_ROUNDS = 2
const HITS = 1_000_000
/** How many hits a second wait for an agent that starts. */
const RATE = 10_000
const MANY = 10_000

/** A reason to trace, by the name of the consumer in agent.cjs. */
const CONSUMERS = [
  { name: 'counting only', consumer: 'none', options: { countOnly: true } },
  { name: "`'batch'`", consumer: 'batch', options: {} },
  { name: "`'hit'`", consumer: 'hit', options: {} },
  { name: '`for await`', consumer: 'iterator', options: { queueLimit: HITS } },
] as const

/** Delays of the event loop in milliseconds, in which the period of one that measures them is included. */
interface Delays {
  readonly p50: number
  readonly p99: number
  readonly max: number
}

interface Load {
  readonly name: string
  readonly cpuMs: number[]
  readonly p99: number[]
  readonly max: number[]
  arrived: number
}

function shown(summary: Summary, digits = 0): string[] {
  return [grouped(summary.median, digits), showQuartiles(summary, digits)]
}

/** Processor time of a million hits, and what they do to the agent's event loop. */
async function underLoad(workshop: Workshop, target: Target, path: string, rounds: number): Promise<string> {
  const loads: Load[] = []
  for (const [index, { name, consumer, options }] of CONSUMERS.entries()) {
    const probe = `ints${index}`
    const agent = await workshop.startAgent(`usdt:${path}:bench:${probe}`, String(target.pid), consumer, JSON.stringify(options))
    const load: Load = { name, cpuMs: [], p99: [], max: [], arrived: 0 }
    loads.push(load)
    for (let round = 0; round < WARM_UP_ROUNDS + rounds; round++) {
      await agent.ask('delay')
      const before = activityOf(agent.pid)
      await target.askNumber(`wall ${probe} ${HITS}`)
      // It says once that the first one has come.
      if (consumer !== 'none' && round === 0) await agent.line()
      load.arrived = await settled(agent)
      const cpuMs = (activityOf(agent.pid).runNs - before.runNs) / 1e6
      const { p99, max } = JSON.parse(await agent.ask('delay')) as Delays
      if (round < WARM_UP_ROUNDS) continue
      load.cpuMs.push(cpuMs)
      load.p99.push(p99)
      load.max.push(max)
    }
    await agent.end()
  }
  const rows = loads.map(({ name, cpuMs, p99, max, arrived }) => [
    name,
    ...shown(summarise(cpuMs)),
    ...shown(summarise(p99), 1),
    ...shown(summarise(max), 1),
    grouped((100 * arrived) / (HITS * (WARM_UP_ROUNDS + rounds)), 2),
  ])
  return table(
    [
      'consumer',
      'CPU, ms',
      'half of the rounds',
      'event loop p99, ms',
      'half of the rounds',
      'longest, ms',
      'half of the rounds',
      '% delivered',
    ],
    rows,
  )
}

/** How many hits have arrived when no more do. */
async function settled(agent: Target): Promise<number> {
  let last = -1
  return waitFor('the hits to arrive', async () => {
    const before = last
    last = await agent.askNumber('hits')
    return last === before ? last : undefined
  })
}

/** Resident memory without and with probes. */
async function memory(workshop: Workshop, target: Target, path: string): Promise<string> {
  const many = workshop.build('thousands')
  const manyTarget = await workshop.startTarget(many)
  const agents = [
    { name: 'no probe', agent: await workshop.startAgent() },
    { name: '1 probe', agent: await workshop.startAgent(`usdt:${path}:bench:ints9`, String(target.pid)) },
    {
      name: `${grouped(MANY)} probes, in one call`,
      agent: await workshop.startAgent(`usdt:${many}:t:*`, String(manyTarget.pid), 'none', JSON.stringify({ maxSites: MANY })),
    },
  ]
  for (const { agent } of agents) await becomeQuiet(agent.pid)
  const rows = agents.map(({ name, agent }) => [name, grouped(residentMib(agent.pid), 1)])
  for (const { agent } of agents) await agent.end()
  return table(['agent', 'MiB'], rows)
}

/** From `node` to the first hit in JavaScript, beside Node that does nothing. */
async function startTime(workshop: Workshop, target: Target, path: string, rounds: number): Promise<string> {
  const first: number[] = []
  const node: number[] = []
  for (let round = 0; round < WARM_UP_ROUNDS + rounds; round++) {
    const begin = performance.now()
    spawnSync(process.execPath, ['-e', ''])
    const middle = performance.now()
    const executed = target.askNumber(`pace ints8 ${RATE} ${RATE}`)
    const agent = await workshop.startAgent(`usdt:${path}:bench:ints8`, String(target.pid), 'hit')
    const line = await agent.line()
    const end = performance.now()
    if (line !== 'first hit') throw new Error(`the agent said ${line}`)
    await agent.end()
    await executed
    if (round < WARM_UP_ROUNDS) continue
    node.push(middle - begin)
    first.push(end - middle)
  }
  return table(
    ['', 'ms', 'half of the rounds'],
    [
      ['`node` until the first hit', ...shown(summarise(first))],
      ['`node -e ""`, from start to end', ...shown(summarise(node))],
    ],
  )
}

/** Measures, and returns a section. */
export function agentCost({ quick }: Settings): Promise<Report> {
  return Workshop.use(async (workshop) => {
    const rounds = quick ? ROUNDS.quick : ROUNDS.full
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const start = await startTime(workshop, target, path, rounds)
    const load = await underLoad(workshop, target, path, rounds)
    return {
      markdown: [
        '## What the agent needs',
        `A million hits as fast as one thread of the program executes them, ${rounds} rounds; CPU time of all threads of the agent. The delay of the event loop includes the millisecond between two looks at it.`,
        load,
        `Memory of its own (RssAnon) when it has come to rest, on a machine with ${availableParallelism()} processors:`,
        await memory(workshop, target, path),
        `From the start of \`node\` until the first hit is in the hands of a listener, while the program is hit ${grouped(RATE)} times a second:`,
        start,
      ].join('\n\n'),
    }
  })
}
