/**
 * The command line as users run it: a process of its own, with its output on pipes.
 *
 * It is the compiled program that runs, since starting it takes a fifth of the time that TypeScript's loader takes; it is compiled anew when it is older than its sources.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, type SpawnOptions, spawn, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, readdirSync, statSync } from 'node:fs'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import type { Cleanup } from './temp.js'
import { waitFor } from './wait.js'

const ROOT = join(__dirname, '..', '..')

/** A command that still runs after this time will never end: it is killed, so that its test fails instead of waiting for ever. */
const PATIENCE_MS = 30_000

/** How a command ended, and all that it wrote. */
export interface CliEnd {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** How a command is started. */
export interface CliOptions {
  /** Where its standard output goes. Default: a pipe that is read at once. */
  readonly stdout?: 'pipe' | 'unread' | number | Socket
  /** A program that starts it, such as `['setpriv', '--bounding-set=-all']`; it must keep the process id. */
  readonly prefix?: readonly string[]
  /** Makes it the leader of a session without a terminal. */
  readonly detached?: boolean
}

function newest(folder: string): number {
  return Math.max(...readdirSync(folder, { recursive: true, encoding: 'utf8' }).map((name) => statSync(join(folder, name)).mtimeMs))
}

let program: string | undefined

/** Path of the compiled program. */
export function cliProgram(): string {
  if (program !== undefined) return program
  // In a guest the tests are compiled, and lie beside the compiled library.
  if (!__filename.endsWith('.ts')) return join(ROOT, 'lib/cli/main.js')
  program = join(ROOT, 'dist/cli/main.js')
  if (!existsSync(program) || newest(join(ROOT, 'lib')) > statSync(program).mtimeMs) {
    const { status, stdout } = spawnSync(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.json'], {
      cwd: ROOT,
      encoding: 'utf8',
    })
    if (status !== 0) throw new Error(`the command line could not be compiled:\n${stdout}`)
    chmodSync(program, 0o755)
  }
  return program
}

/** A running command. */
export class Cli {
  /** Resolves when it has ended and all its output has arrived. */
  readonly ended: Promise<CliEnd>
  readonly #process: ChildProcess
  #stdout = ''
  #stderr = ''
  #end: CliEnd | undefined

  private constructor(child: ChildProcess, read: boolean) {
    this.#process = child
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text
    })
    if (read) this.read()
    this.ended = new Promise((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (code, signal) => {
        this.#end = { code, signal, stdout: this.#stdout, stderr: this.#stderr }
        resolve(this.#end)
      })
    })
  }

  /** Starts `uprobe ARGS`. It is killed when the test is over, if it still runs then. */
  static start(t: Cleanup, args: readonly string[], options: CliOptions = {}): Cli {
    const { stdout = 'pipe', prefix = [], detached = false } = options
    const [command = '', ...rest] = [...prefix, process.execPath, cliProgram(), ...args]
    const stdio: SpawnOptions['stdio'] = ['ignore', typeof stdout === 'string' ? 'pipe' : stdout, 'pipe']
    const cli = new Cli(spawn(command, rest, { stdio, detached }), stdout === 'pipe')
    const patience = setTimeout(() => cli.#process.kill('SIGKILL'), PATIENCE_MS)
    t.after(async () => {
      clearTimeout(patience)
      if (cli.#end !== undefined) return
      cli.#process.kill('SIGKILL')
      cli.read()
      await cli.ended
    })
    return cli
  }

  get stdout(): string {
    return this.#stdout
  }

  get stderr(): string {
    return this.#stderr
  }

  get pid(): number {
    return this.#process.pid ?? 0
  }

  /** Whether the process has ended; its output may still be on its way. */
  get hasExited(): boolean {
    return this.#process.exitCode !== null || this.#process.signalCode !== null
  }

  /** Whether it has ended and all its output has arrived. */
  get hasEnded(): boolean {
    return this.#end !== undefined
  }

  /** Begins to read its standard output, or goes on with it. */
  read(): void {
    this.#process.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout += text
    })
  }

  /** Closes the reading end of its standard output, as `head` does. */
  stopReading(): void {
    this.#process.stdout?.destroy()
  }

  /** The readable side of its standard output. */
  get output(): Readable | null {
    return this.#process.stdout
  }

  kill(signal: NodeJS.Signals): void {
    assert.ok(this.#process.kill(signal), `it had ended before ${signal} was sent: ${this.#stderr}`)
  }

  /** Waits for the line that says that every site is armed, and returns it. */
  attached(): Promise<string> {
    return this.#waitForLine('the attached line', () => /^attached .*$(?=\n)/m.exec(this.#stderr)?.[0])
  }

  /** Waits until it has printed `count` lines, and returns them. */
  lines(count: number): Promise<string[]> {
    return this.#waitForLine(`${count} lines`, () => {
      const lines = linesOf(this.#stdout)
      return lines.length >= count && lines
    })
  }

  #waitForLine<T>(what: string, condition: () => T | undefined | false): Promise<T> {
    return waitFor(what, () => {
      const value = condition()
      if ((value === undefined || value === false) && this.#end !== undefined) {
        throw new Error(`it ended (${this.#end.code ?? this.#end.signal}) before ${what}: ${this.#stderr}`)
      }
      return value
    })
  }
}

/** Runs `uprobe ARGS` to its end. */
export function uprobe(t: Cleanup, ...args: string[]): Promise<CliEnd> {
  return Cli.start(t, args).ended
}

/** The complete lines of a text. */
export function linesOf(text: string): string[] {
  return text.split('\n').slice(0, -1)
}

/** Output with `--json`: asserts that each line is one object, and returns them. */
export function jsonOf(stdout: string): unknown[] {
  assert.ok(stdout === '' || stdout.endsWith('\n'), 'the last line is complete')
  return linesOf(stdout).map((line) => {
    const value: unknown = JSON.parse(line)
    assert.ok(typeof value === 'object' && value !== null && !Array.isArray(value), `one object a line: ${line}`)
    return value
  })
}

/** Asserts that a command succeeded without a word on standard error but the attached line, and returns what it printed. */
export function succeeded({ code, signal, stdout, stderr }: CliEnd): string {
  assert.deepEqual({ code, signal, stderr: stderr.replace(/^attached .*\n/, '') }, { code: 0, signal: null, stderr: '' })
  return stdout
}

/** Asserts that a command failed with an exit code and one line on standard error that ends with an error code, and returns the line. */
export function failed({ code, signal, stdout, stderr }: CliEnd, exitCode: 1 | 2, errorCode: string): string {
  assert.deepEqual({ code, signal, stdout }, { code: exitCode, signal: null, stdout: '' }, stderr)
  const [line = '', ...more] = linesOf(stderr)
  assert.deepEqual(more, [])
  assert.match(line, /^uprobe: /)
  assert.ok(line.endsWith(` (${errorCode})`), line)
  return line
}

/** What may reach a terminal: no control character but the end of a line, nothing that turns the direction of text or that viewers take for a line break. */
export function assertSafeForTerminal(text: string): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  const unsafe = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/.exec(text)
  assert.equal(unsafe, null, `U+${unsafe?.[0].charCodeAt(0).toString(16)} in ${JSON.stringify(text)}`)
}
