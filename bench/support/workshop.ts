/**
 * What every benchmark needs around it: the compiled programs in a folder of their own, the target, and an end that leaves nothing behind.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Target } from '../../test/support/target.js'
import type { Cleanup } from '../../test/support/temp.js'

/** With frame pointers, as stacks are read by them. */
const FLAGS = ['-O2', '-fno-omit-frame-pointer', '-Wall', '-Wextra', '-Werror', '-pthread']

const SOURCES = join(__dirname, '..')
const TEST_TARGETS = join(__dirname, '..', '..', 'test', 'targets')

/** The processor that the target has for itself, and the one for everything else; `null` if there is only one. */
const PROCESSORS = availableParallelism() > 1 ? { target: 1, tracers: 0 } : null

/** A folder of programs, and what is to be done when the benchmark is over. */
export class Workshop implements Cleanup {
  readonly directory = realpathSync(mkdtempSync(join(tmpdir(), 'uprobe-bench-')))
  readonly #ends: Array<() => unknown> = []

  /** Runs `work` with a workshop, and clears up whatever happens. */
  static async use<T>(work: (workshop: Workshop) => Promise<T>): Promise<T> {
    const workshop = new Workshop()
    try {
      return await work(workshop)
    } finally {
      for (const end of workshop.#ends.reverse()) await end()
      rmSync(workshop.directory, { recursive: true, force: true })
    }
  }

  /** Called last first. */
  after(end: () => unknown): void {
    this.#ends.push(end)
  }

  /** Compiles `bench/NAME.c`, or that of the tests' targets, and returns the path of the program. Its file is new, so no probe of an earlier run is on it. */
  build(name: 'target' | 'floor' | 'thousands'): string {
    const program = join(this.directory, name)
    const source = join(name === 'thousands' ? TEST_TARGETS : SOURCES, `${name}.c`)
    const gcc = spawnSync('gcc', [...FLAGS, '-o', program, source], { encoding: 'utf8' })
    if (gcc.error !== undefined) throw new Error('gcc is needed to build the programs that are measured', { cause: gcc.error })
    if (gcc.status !== 0) throw new Error(`gcc could not build ${name}.c:\n${gcc.stderr}`)
    return program
  }

  /** Starts an agent (agent.cjs), on any processor. */
  startAgent(...args: readonly string[]): Promise<Target> {
    return this.startScript('agent.cjs', ...args)
  }

  /** Starts a program of `bench/` that is plain JavaScript. */
  startScript(script: string, ...args: readonly string[]): Promise<Target> {
    return Target.start(this, process.execPath, { args: [join(SOURCES, script), ...args] })
  }

  /** Starts the target on its processor. */
  startTarget(program: string): Promise<Target> {
    const [command = program, ...args] = PROCESSORS === null ? [program] : ['taskset', '-c', String(PROCESSORS.target), program]
    return Target.start(this, command, { args })
  }
}

/** Moves this process, its threads and all that it will start away from the target's processor. */
export function makeRoomForTarget(): void {
  if (PROCESSORS === null) return
  const { status, stderr } = spawnSync('taskset', ['-a', '-p', '-c', String(PROCESSORS.tracers), String(process.pid)], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`taskset failed: ${stderr}`)
}
