/**
 * What every benchmark needs around it: the compiled programs in a folder of their own, the target, and an end that leaves nothing behind.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Target } from '../../test/support/target.js'
import type { Cleanup } from '../../test/support/temp.js'

/** With frame pointers, as stacks are read by them. */
const FLAGS = ['-O2', '-fno-omit-frame-pointer', '-Wall', '-Wextra', '-Werror', '-pthread']

const SOURCES = join(__dirname, '..')
const TARGETS = join(SOURCES, '..', 'test', 'targets')

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

  /** Compiles `bench/NAME.c` and returns the path of the program. Its file is new, so no probe of an earlier run is on it. */
  build(name: 'target' | 'floor'): string {
    return this.#compile(join(SOURCES, `${name}.c`), name)
  }

  #compile(source: string, name: string): string {
    const program = join(this.directory, name)
    const gcc = spawnSync('gcc', [...FLAGS, '-o', program, source], { encoding: 'utf8' })
    if (gcc.error !== undefined) throw new Error('gcc is needed to build the programs that are measured', { cause: gcc.error })
    if (gcc.status !== 0) throw new Error(`gcc could not build ${source}:\n${gcc.stderr}`)
    return program
  }

  /** Compiles a program with `count` probes, `many:p0` and so on, each with a semaphore of its own; they are never executed. */
  buildMany(count: number): string {
    const numbers = Array.from({ length: count }, (_, index) => index)
    const source = join(this.directory, 'many.c')
    writeFileSync(
      source,
      [
        `#include "${join(TARGETS, 'probe.h')}"`,
        `#include "${join(TARGETS, 'protocol.h')}"`,
        ...numbers.map((n) => `SEMAPHORE(p${n}_semaphore);`),
        '__attribute__((used)) static void many(int a) {',
        ...numbers.map((n) => `PROBE("many", "p${n}", "p${n}_semaphore", "-4@%[a]", [a] "nor"(a));`),
        '}',
        'int main(void) { char line[64]; answer("ready"); while (read_command(line, sizeof line)) answer("nothing"); return 0; }',
      ].join('\n'),
    )
    return this.#compile(source, 'many')
  }

  /** Starts an agent (agent.cjs), on any processor. */
  startAgent(...args: readonly string[]): Promise<Target> {
    return Target.start(this, process.execPath, { args: [join(SOURCES, 'agent.cjs'), ...args] })
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
