/**
 * What an attached agent costs while nothing happens: a process with a tracer attached to a probe that is never hit, beside the same process without.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { activityOf, becomeQuiet } from './support/activity.js'
import { table } from './support/markdown.js'
import { judge, type Report } from './support/report.js'
import { summarise } from './support/statistics.js'
import { Workshop } from './support/workshop.js'

const WATCH_MS = 20_000

/** Measures, and returns a section. */
export function idleCost(): Promise<Report> {
  return Workshop.use(async (workshop) => {
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const agents = [
      { name: 'attached, nothing happens', agent: await workshop.startAgent(`usdt:${path}:bench:ints0`, String(target.pid)) },
      { name: 'not attached', agent: await workshop.startAgent() },
    ]
    for (const { agent } of agents) await becomeQuiet(agent.pid)
    const before = agents.map(({ agent }) => activityOf(agent.pid))
    await delay(WATCH_MS)
    const outcomes = agents.map(({ name, agent }, index) => {
      const after = activityOf(agent.pid)
      const start = before[index] ?? after
      return { name, percent: ((after.runNs - start.runNs) / (WATCH_MS * 1e6)) * 100, wakeUps: after.switches - start.switches }
    })
    return {
      markdown: [
        '## What an idle agent costs',
        table(
          ['agent', '% of a processor', 'wake-ups'],
          outcomes.map(({ name, percent, wakeUps }) => [name, percent.toFixed(4), String(wakeUps)]),
        ),
      ].join('\n\n'),
      goals: outcomes
        .slice(0, 1)
        .map(({ percent }) => judge({ what: 'An idle agent', limit: 0.1, unit: '%', digits: 4 }, summarise([percent]))),
    }
  })
}
