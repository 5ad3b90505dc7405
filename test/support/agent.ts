/**
 * A tracer in a process of its own, for tests that kill it or take its rights away. Started by {@link startAgent}.
 *
 * It says "ready", then obeys: `attach JSON` with `[spec, options, id]` answers `attached`, or `error CODE MESSAGE`; `stats ID` answers the counts as JSON; `detach ID` answers them when
 * the probe is not attached any more; `pause ID`, `resume ID` do so. Without ids there is one probe. `exit` begins to detach it and exits while the closing thread is at work; `die STEP` makes it kill itself with SIGKILL when it comes to a
 * step of taking or giving back a claim (lib/counter/steps.ts). UPROBE_TEST_LEASE_DIR is its lease directory.
 */
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setStepHook } from '../../lib/counter/steps.js'
import { type AttachOptions, type Probe, Tracer, UprobeError } from '../../lib/index.js'
import { Target } from './target.js'
import type { Cleanup } from './temp.js'
import { threadsNamed } from './threads.js'
import { waitFor } from './wait.js'

/**
 * Starts an agent.
 * @param prefix - a command that starts it, such as `['setpriv', '--bounding-set', '-all']`; it must keep the process id
 */
export function startAgent(t: Cleanup, prefix: readonly string[] = [], leaseDir?: string): Promise<Target> {
  const [program = '', ...args] = [...prefix, process.execPath, ...(__filename.endsWith('.ts') ? ['--import', 'tsx'] : []), __filename]
  const env = leaseDir === undefined ? process.env : { ...process.env, UPROBE_TEST_LEASE_DIR: leaseDir }
  return Target.start(t, program, { args, env, cwd: join(__dirname, '..', '..') })
}

/** Has an agent attach; resolves to `attached`, or to the code of the error. */
export async function attachIn(agent: Target, spec: string, options: AttachOptions): Promise<string> {
  const answer = await agent.ask(`attach ${JSON.stringify([spec, options])}`)
  return answer.startsWith('error ') ? (answer.split(' ')[1] ?? '') : answer
}

async function main(): Promise<void> {
  const tracer = new Tracer({ leaseDir: process.env.UPROBE_TEST_LEASE_DIR })
  const probes = new Map<string, Probe>()
  const answers: Record<string, (argument: string) => Promise<string>> = {
    attach: async (argument) => {
      const [spec, options, id = ''] = JSON.parse(argument) as [string, AttachOptions, string?]
      probes.set(id, await tracer.attach(spec, options))
      return 'attached'
    },
    pause: async (id) => {
      await probes.get(id)?.pause()
      return 'paused'
    },
    resume: async (id) => {
      await probes.get(id)?.resume()
      return 'resumed'
    },
    die: async (step) => {
      setStepHook((reached) => {
        if (reached === step) process.kill(process.pid, 'SIGKILL')
      })
      return 'armed'
    },
    stats: async (id) => JSON.stringify(probes.get(id)?.stats()),
    detach: async (id) => {
      const probe = probes.get(id)
      await probe?.detach()
      return JSON.stringify(probe?.stats())
    },
  }
  const exit = async (): Promise<never> => {
    // The thread ends with its work, which may be done before this process gets a processor to see it.
    let over = false
    void Promise.all([...probes.values()].map((probe) => probe.detach())).then(() => {
      over = true
    })
    await waitFor('the closing thread', () => over || threadsNamed('uprobe-closer').length > 0)
    process.exit(0)
  }
  console.log('ready')
  for await (const line of createInterface({ input: process.stdin })) {
    const [name = '', argument = ''] = /^(\w+) ?(.*)$/.exec(line)?.slice(1) ?? []
    if (name === 'exit') await exit()
    try {
      console.log((await answers[name]?.(argument)) ?? `error no command ${name}`)
    } catch (error) {
      if (!(error instanceof UprobeError)) throw error
      console.log(`error ${error.code} ${error.message}`)
    }
  }
  await tracer.close()
}

if (require.main === module) void main()
