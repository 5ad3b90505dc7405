/**
 * An agent of this package that attaches, pauses, resumes and detaches a probe without end, for tests in which agents contend with others and are killed at any moment. It says "ready", and then a
 * word for each thing that it did: `attached`, `paused`, `resumed`, `detached`, `refused CODE`, and `recovered` for each lease of a dead agent that it came upon.
 */
import { Writable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { type Logger, pino } from 'pino'
import { disableGuards } from '../../lib/counter/guard.js'
import { type Step, setStepHook } from '../../lib/counter/steps.js'
import { type AttachOptions, type Probe, Tracer, UprobeError } from '../../lib/index.js'
import { Random } from './random.js'
import { Target } from './target.js'
import type { Cleanup } from './temp.js'

/** What it does. */
export interface ContenderPlan {
  readonly spec: string
  readonly options: AttachOptions
  readonly leaseDir: string
  readonly seed: number
  /** Whether claims are made under guards, as they are outside of tests. */
  readonly guards: boolean
}

/** It holds a probe, and a state of it, no longer than this. */
const LONGEST_HOLD_MS = 20
/** It stays at each step of a claim up to this time, so that others have time to come in between; and longer around the store, where it matters most. */
const LONGEST_STEP_MS = 10
const LONGEST_STORE_MS = 40
const STORE: ReadonlySet<Step> = new Set(['counter-read-again', 'counter-stored'])

/** Starts one. */
export function startContender(t: Cleanup, plan: ContenderPlan): Promise<Target> {
  const args = [...(__filename.endsWith('.ts') ? ['--import', 'tsx'] : []), __filename, JSON.stringify(plan)]
  return Target.start(t, process.execPath, { args })
}

function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

/** A logger that says when a lease was recovered. */
function recoveries(): Logger {
  const stream = new Writable({
    write(line: Buffer, _encoding, done) {
      if (line.includes('a lease of a dead agent was found')) say('recovered')
      done()
    },
  })
  return pino({ level: 'warn' }, stream)
}

async function use(probe: Probe, random: Random): Promise<void> {
  await delay(random.below(LONGEST_HOLD_MS))
  for (let rest = random.below(8); rest > 0; rest--) {
    await probe.pause()
    say('paused')
    await delay(random.below(LONGEST_HOLD_MS))
    await probe.resume()
    say('resumed')
  }
}

async function main({ spec, options, leaseDir, seed, guards }: ContenderPlan): Promise<never> {
  const random = new Random(seed)
  disableGuards(!guards)
  const sleeper = new Int32Array(new SharedArrayBuffer(4))
  setStepHook((step) => void Atomics.wait(sleeper, 0, 0, random.below(STORE.has(step) ? LONGEST_STORE_MS : LONGEST_STEP_MS)))
  const tracer = new Tracer({ leaseDir, logger: recoveries() })
  say('ready')
  for (;;) {
    let probe: Probe | undefined
    try {
      probe = await tracer.attach(spec, options)
      say('attached')
      await use(probe, random)
    } catch (error) {
      if (!(error instanceof UprobeError)) throw error
      say(`refused ${error.code}`)
    }
    await probe?.detach()
    if (probe !== undefined) say('detached')
    // Who is refused at once must let others come to the processor.
    await delay(1 + random.below(LONGEST_STEP_MS))
  }
}

if (require.main === module) void main(JSON.parse(process.argv[2] ?? '') as ContenderPlan)
