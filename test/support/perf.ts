/**
 * perf as a second independent witness: it counts the hits of a function through an event of its own in tracefs.
 *
 * The event has a name that no other test has, and is deleted when the test is over.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { basename } from 'node:path'
import type { Cleanup } from './temp.js'
import { WITH_TRACEFS } from './tracefs.js'
import { waitFor } from './wait.js'

const [UNSHARE = '', ...IN_TRACEFS] = WITH_TRACEFS

/** A running `perf stat`. */
export class PerfCount {
  #output = ''

  private constructor(private readonly child: ChildProcess) {}

  /** Starts counting the calls of a function in one process. */
  static async start(t: Cleanup, path: string, symbol: string, pid: number): Promise<PerfCount> {
    const event = `uprobe_test_${process.pid}_${basename(path).replace(/\W/g, '_')}:${symbol}`
    execFileSync(UNSHARE, [...IN_TRACEFS, 'perf', 'probe', '-q', '-x', path, '--add', `${event}=${symbol}`])
    // An interval makes it say that it counts, and how many it counted since it said so last.
    const child = spawn(UNSHARE, [...IN_TRACEFS, 'perf', 'stat', '-x', ',', '-I', '20', '-e', event, '-p', String(pid)], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    const count = new PerfCount(child)
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      count.#output += text
    })
    t.after(async () => {
      if (child.exitCode === null && child.signalCode === null) {
        const ended = new Promise((resolve) => child.once('close', resolve))
        child.kill('SIGKILL')
        await ended
      }
      execFileSync(UNSHARE, [...IN_TRACEFS, 'perf', 'probe', '-q', '--del', event])
    })
    await waitFor('perf to count', () => {
      if (child.exitCode !== null) throw new Error(`perf ended: ${count.#output}`)
      return count.#intervals().length > 0
    })
    return count
  }

  /** Ends it and returns how many hits it counted. */
  async stop(): Promise<number> {
    const ended = new Promise((resolve) => this.child.once('close', resolve))
    this.child.kill('SIGINT')
    await ended
    return this.#intervals().reduce((sum, hits) => sum + hits, 0)
  }

  #intervals(): number[] {
    // In an interval in which the process did not run, it counted nothing.
    return [...this.#output.matchAll(/^ *[\d.]+,(\d+|<not counted>),/gm)].map(([, hits]) => (hits === '<not counted>' ? 0 : Number(hits)))
  }
}
