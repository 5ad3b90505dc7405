/**
 * A tracer in a process of its own, for tests that kill it or take its rights away. Started by {@link startAgent}.
 *
 * It says "ready", then obeys: `attach JSON` with `[spec, options]` answers `attached`, or `error CODE MESSAGE`; `stats` answers the counts as JSON; `detach` answers them when
 * nothing is attached any more; `exit` begins to detach and exits while the closing thread is at work.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { type AttachOptions, type Probe, Tracer, UprobeError } from '../../lib/index.js'
import { Target } from './target.js'
import type { Cleanup } from './temp.js'
import { waitFor } from './wait.js'

/**
 * Starts an agent.
 * @param prefix - a command that starts it, such as `['setpriv', '--bounding-set', '-all']`; it must keep the process id
 */
export function startAgent(t: Cleanup, prefix: readonly string[] = []): Promise<Target> {
  const [program = '', ...args] = [...prefix, process.execPath, ...(__filename.endsWith('.ts') ? ['--import', 'tsx'] : []), __filename]
  return Target.start(t, program, { args, cwd: join(__dirname, '..', '..') })
}

/** Has an agent attach; resolves to `attached`, or to the code of the error. */
export async function attachIn(agent: Target, spec: string, options: AttachOptions): Promise<string> {
  const answer = await agent.ask(`attach ${JSON.stringify([spec, options])}`)
  return answer.startsWith('error ') ? (answer.split(' ')[1] ?? '') : answer
}

function threadNames(): string[] {
  return readdirSync('/proc/self/task').map((tid) => {
    try {
      return readFileSync(`/proc/self/task/${tid}/comm`, 'utf8').trim()
    } catch {
      // A thread that ended since the listing.
      return ''
    }
  })
}

async function main(): Promise<void> {
  const tracer = new Tracer()
  let probe: Probe | undefined
  const answers: Record<string, (argument: string) => Promise<string>> = {
    attach: async (argument) => {
      const [spec, options] = JSON.parse(argument) as [string, AttachOptions]
      probe = await tracer.attach(spec, options)
      return 'attached'
    },
    stats: async () => JSON.stringify(probe?.stats()),
    detach: async () => {
      await probe?.detach()
      return JSON.stringify(probe?.stats())
    },
  }
  const exit = async (): Promise<never> => {
    void probe?.detach()
    await waitFor('the closing thread', () => threadNames().includes('uprobe-closer'))
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
