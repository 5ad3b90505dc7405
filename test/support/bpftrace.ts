/**
 * bpftrace as an independent witness: it counts the hits of a probe beside the package.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import type { Cleanup } from './temp.js'
import { waitFor } from './wait.js'

/** A running bpftrace that counts. */
export class BpftraceCount {
  #output = ''
  #errors = ''

  private constructor(private readonly child: ChildProcess) {}

  /**
   * Starts counting.
   * @param probe - as bpftrace writes it, such as `usdt:/path:provider:name`
   * @param armed - whether its probe is in the target; asked until it is
   */
  static async start(t: Cleanup, probe: string, pid: number | null, armed: () => boolean): Promise<BpftraceCount> {
    // It loses an interrupt that arrives before its main loop runs, so it is told to say when that does.
    const program = `${probe} { @hits = count(); } interval:ms:20 { if (!@said) { printf("counting\\n"); @said = 1; } }`
    const child = spawn('bpftrace', [...(pid === null ? [] : ['-p', String(pid)]), '-e', program], { stdio: ['ignore', 'pipe', 'pipe'] })
    const count = new BpftraceCount(child)
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      count.#output += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      count.#errors += text
    })
    t.after(async () => {
      if (child.exitCode !== null || child.signalCode !== null) return
      const ended = new Promise((resolve) => child.once('close', resolve))
      child.kill('SIGKILL')
      await ended
    })
    await waitFor('bpftrace to attach', () => {
      if (child.exitCode !== null) throw new Error(`bpftrace ended: ${count.#errors}`)
      return count.#output.includes('counting') && armed()
    })
    return count
  }

  /** Ends it and returns how many hits it counted. */
  async stop(): Promise<number> {
    const ended = new Promise((resolve) => this.child.once('close', resolve))
    this.child.kill('SIGINT')
    // Now and then it loses one all the same.
    const again = setInterval(() => this.child.kill('SIGINT'), 1000)
    await ended
    clearInterval(again)
    const hits = /^@hits: (\d+)$/m.exec(this.#output)?.[1]
    if (hits === undefined) throw new Error(`bpftrace gave no count: ${this.#output}${this.#errors}`)
    return Number(hits)
  }
}
