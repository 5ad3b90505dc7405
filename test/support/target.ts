/**
 * Starting, commanding and stopping a target: any program that says "ready" and then answers each line on its standard input with one line
 * (test/targets/protocol.h).
 *
 * Nothing outlives a test: a target is killed when its test is over, and ends by itself when the test's process dies, since its input ends then.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { Cleanup } from './temp.js'

/** How a target is started. */
export interface StartOptions {
  readonly args?: readonly string[]
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
  readonly uid?: number
  readonly gid?: number
  /** The line that says that it can take commands. Default: `ready`. */
  readonly ready?: string
}

/** How a process ended. */
export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

interface Waiter {
  resolve(line: string): void
  reject(error: Error): void
}

/** A running target. */
export class Target {
  /** Resolves when the process has ended. */
  readonly exited: Promise<Exit>
  readonly #process: ChildProcessWithoutNullStreams
  readonly #lines: string[] = []
  readonly #waiters: Waiter[] = []
  #errorOutput = ''
  #ended = false

  private constructor(
    readonly program: string,
    child: ChildProcessWithoutNullStreams,
    readonly pid: number,
  ) {
    this.#process = child
    this.exited = new Promise((resolve) => child.once('close', (code, signal) => resolve({ code, signal })))
    createInterface({ input: child.stdout }).on('line', (line) => this.#onLine(line))
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#errorOutput += text
    })
    // Writing to a target that has just died is no failure of its own: the missing answer is.
    child.stdin.on('error', () => undefined)
    child.once('close', () => {
      this.#ended = true
      for (const waiter of this.#waiters.splice(0)) waiter.reject(this.#endError())
    })
  }

  /** Starts a program and waits until it is ready. */
  static async start(t: Cleanup, program: string, options: StartOptions = {}): Promise<Target> {
    const { args = [], ready = 'ready', ...spawnOptions } = options
    const child = spawn(program, args, { ...spawnOptions, stdio: 'pipe' })
    const pid = await new Promise<number>((resolve, reject) => {
      child.once('error', reject)
      child.once('spawn', () => (child.pid === undefined ? reject(new Error(`${program} has no pid`)) : resolve(child.pid)))
    })
    const target = new Target(program, child, pid)
    t.after(() => target.stop())
    const line = await target.line()
    if (line !== ready) throw new Error(`${program} said ${JSON.stringify(line)} where ${JSON.stringify(ready)} was expected`)
    return target
  }

  /** What it wrote to standard error so far. */
  get errorOutput(): string {
    return this.#errorOutput
  }

  /** Gives a command and waits for its answer. */
  ask(command: string): Promise<string> {
    this.#process.stdin.write(`${command}\n`)
    return this.line()
  }

  /** Gives a command whose answer is a word and a number, such as `executed 5`, and returns the number. */
  async askNumber(command: string): Promise<number> {
    const answer = await this.ask(command)
    const number = /^\w+ (-?\d+)$/.exec(answer)?.[1]
    if (number === undefined) throw new Error(`${this.program} answered ${JSON.stringify(answer)} to ${command}`)
    return Number(number)
  }

  /** Gives a command that has no answer. */
  tell(command: string): void {
    this.#process.stdin.write(`${command}\n`)
  }

  /** Waits for the next line. */
  line(): Promise<string> {
    const line = this.#lines.shift()
    if (line !== undefined) return Promise.resolve(line)
    if (this.#ended) return Promise.reject(this.#endError())
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }))
  }

  /** Ends its input, as a user does who is done; it then exits by itself. */
  end(): Promise<Exit> {
    this.#process.stdin.end()
    return this.exited
  }

  /** Sends a signal. */
  kill(signal: NodeJS.Signals): void {
    this.#process.kill(signal)
  }

  /** Kills it, unless it has ended, and waits for its end. */
  async stop(): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) this.#process.kill('SIGKILL')
    await this.exited
  }

  #onLine(line: string): void {
    const waiter = this.#waiters.shift()
    if (waiter === undefined) this.#lines.push(line)
    else waiter.resolve(line)
  }

  #endError(): Error {
    return new Error(`${this.program} ended without an answer${this.#errorOutput === '' ? '' : `; it said: ${this.#errorOutput}`}`)
  }
}
