/**
 * What an attached agent costs while nothing happens: a process with a tracer attached to a probe that is never hit, beside the same process without.
 *
 * /proc/PID/task/TID/schedstat has the time that each thread ran, in nanoseconds; /proc/PID/stat counts in ticks of 10 ms, which is too coarse here.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Target } from '../test/support/target.js'
import { machine, table } from './support/markdown.js'
import { Workshop } from './support/workshop.js'

const WATCH_MS = 20_000
/** After its start, V8 collects garbage for some seconds more. An agent counts as started when it has slept for this long. */
const QUIET_MS = 5000
/** An agent that is still busy then does not get quiet at all, and is measured as it is. */
const PATIENCE_MS = 60_000

/** What a process did since it started. */
interface Activity {
  readonly runNs: number
  /** How often a thread of it gave up a processor of its own accord, which is how often it had been woken. */
  readonly switches: number
}

function activityOf(pid: number): Activity {
  let runNs = 0
  let switches = 0
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const directory = `/proc/${pid}/task/${thread}`
    runNs += Number(readFileSync(`${directory}/schedstat`, 'utf8').split(' ')[0])
    switches += Number(/^voluntary_ctxt_switches:\s*(\d+)/m.exec(readFileSync(`${directory}/status`, 'utf8'))?.[1] ?? 0)
  }
  return { runNs, switches }
}

function startAgent(workshop: Workshop, args: readonly string[]): Promise<Target> {
  return Target.start(workshop, process.execPath, { args: [join(__dirname, 'idle-agent.cjs'), ...args] })
}

async function becomeQuiet(pid: number): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS
  let before = activityOf(pid)
  while (performance.now() < deadline) {
    await delay(QUIET_MS)
    const now = activityOf(pid)
    if (now.runNs === before.runNs) return
    before = now
  }
}

/** Measures, and returns a section in Markdown. */
export function idleCost(): Promise<string> {
  return Workshop.use(async (workshop) => {
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const agents = [
      { name: 'attached, nothing happens', agent: await startAgent(workshop, [`usdt:${path}:bench:ints0`, String(target.pid)]) },
      { name: 'not attached', agent: await startAgent(workshop, []) },
    ]
    for (const { agent } of agents) await becomeQuiet(agent.pid)
    const before = agents.map(({ agent }) => activityOf(agent.pid))
    await delay(WATCH_MS)
    const rows = agents.map(({ name, agent }, index) => {
      const after = activityOf(agent.pid)
      const start = before[index] ?? after
      const percent = ((after.runNs - start.runNs) / (WATCH_MS * 1e6)) * 100
      return [name, percent.toFixed(4), String(after.switches - start.switches)]
    })
    return [
      '## What an idle agent costs',
      `${machine()}. Over ${WATCH_MS / 1000} s, all threads of the process. Goal: below 0.1 % of a processor.`,
      table(['agent', '% of a processor', 'wake-ups'], rows),
    ].join('\n\n')
  })
}
