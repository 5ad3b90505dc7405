/**
 * The demonstration: traces a probe of the package's own addon in a child process, so that it needs nothing but the package itself.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { extname, join } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import type { Hit } from './capture/hit.js'
import { UprobeError } from './errors.js'
import { addonPath } from './native.js'
import type { Probe } from './probe.js'
import { Tracer } from './tracer.js'

/** Who is told of the steps. */
export interface DemoEvents {
  /** The semaphore's value in the child: before the attach, while attached, after the detach. */
  counter(when: 'before' | 'during' | 'after', value: number): void
  /** Every site is armed. */
  attached(probe: Probe): void
  hit(hit: Hit): void
}

/** How often the child fires the probe. */
export const DEMO_HITS = 20

/**
 * Runs the demonstration.
 * @returns the probe, detached, for its counts
 * @throws {UprobeError} as `tracer.attach`, or `ERR_UPROBE_NATIVE` when the child cannot load the addon
 */
export async function runDemo(events: DemoEvents): Promise<Probe> {
  const child = new DemoChild()
  const tracer = new Tracer()
  try {
    await child.ready()
    events.counter('before', Number(await child.ask('counter')))
    const probe = await tracer.attach('usdt:uprobe:demo', { pid: child.pid, path: addonPath(), strings: [2] })
    events.attached(probe)
    probe.on('hit', (hit) => events.hit(hit))
    events.counter('during', Number(await child.ask('counter')))
    await child.ask(`fire ${DEMO_HITS}`)
    await probe.detach()
    events.counter('after', Number(await child.ask('counter')))
    return probe
  } finally {
    await tracer.close()
    child.end()
  }
}

/** The traced process: a question a line, an answer a line. */
class DemoChild {
  readonly #process: ChildProcessWithoutNullStreams
  readonly #answers: AsyncIterator<string>
  readonly #lines: Interface
  #complaint = ''

  constructor() {
    // Compiled or not, the child's program lies beside this one.
    const program = join(__dirname, `demo-child${extname(__filename)}`)
    this.#process = spawn(process.execPath, [...process.execArgv, program], { stdio: 'pipe' })
    this.#process.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#complaint += text
    })
    // A child that has gone does not read its questions any more; its end shows in the missing answer.
    this.#process.stdin.on('error', () => undefined)
    this.#lines = createInterface({ input: this.#process.stdout })
    this.#answers = this.#lines[Symbol.asyncIterator]()
  }

  get pid(): number {
    return this.#process.pid ?? 0
  }

  async ready(): Promise<void> {
    await this.#answer()
  }

  ask(question: string): Promise<string> {
    this.#process.stdin.write(`${question}\n`)
    return this.#answer()
  }

  end(): void {
    this.#lines.close()
    this.#process.kill()
  }

  async #answer(): Promise<string> {
    const result = await this.#answers.next()
    if (result.done !== true) return result.value
    throw new UprobeError(
      'ERR_UPROBE_NATIVE',
      `The traced child process ended. It said: ${this.#complaint.trim() || 'nothing'}. Run \`uprobe doctor\`.`,
    )
  }
}
