/**
 * What is: real processes, tracers, an agent that can be killed, and registrations of another tool.
 */
import assert from 'node:assert/strict'
import { setTimeout as delay } from 'node:timers/promises'
import { type AttachOptions, type Probe, Tracer, UprobeError } from '../../lib/index.js'
import { loadNative } from '../../lib/native.js'
import { readUprobePmu } from '../../lib/register/pmu.js'
import { startAgent } from '../support/agent.js'
import { HAS_MULTI } from '../support/features.js'
import { leaseFiles } from '../support/leases.js'
import { counterValue, isArmed } from '../support/memory.js'
import { type Note, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import type { Cleanup } from '../support/temp.js'
import { waitFor } from '../support/wait.js'
import { type Agent, COUNTERS, type Counter, type Model } from './model.js'

const PATIENCE_MS = 3000
const BIRTH_RESOLUTION_MS = 10
/** Longer than a paused claim leaves the bits of children to others (lib/counter/claims.ts). */
const OTHERS_TIME_MS = 700

interface RealProcess {
  readonly pid: number
  /** `null` for a child, which takes no commands. */
  readonly target: Target | null
}

/** The agent that is killed lives on from one sequence to the next, as long as nobody kills it. */
export class MortalAgent {
  #running: Promise<Target> | null = null

  constructor(
    private readonly t: Cleanup,
    public leaseDir: string,
  ) {}

  /** Begins anew, so that what a sequence that failed has left does not make others fail. */
  async reset(leaseDir: string): Promise<void> {
    const agent = await this.#running
    this.#running = null
    agent?.kill('SIGKILL')
    await agent?.exited
    this.leaseDir = leaseDir
  }

  get(): Promise<Target> {
    this.#running ??= startAgent(this.t, [], this.leaseDir)
    return this.#running
  }

  async kill(): Promise<void> {
    const agent = await this.get()
    this.#running = null
    agent.kill('SIGKILL')
    await agent.exited
    // Starts while the sequence goes on. If it cannot, whoever asks for it is told; at the end of the test nobody does.
    this.get().catch(() => undefined)
  }
}

export class Real {
  readonly processes = new Map<number, RealProcess>()
  readonly #tracers: Record<'first' | 'second', Tracer>
  readonly #probes = new Map<string, Probe>()
  /** The processes that came later to each probe, and that it has looked at. */
  readonly #arrivals = new Map<string, Set<number | undefined>>()
  readonly #foreign = new Map<string, number>()
  readonly #notes: Record<Counter, readonly Note[]>
  #next = 0

  constructor(
    private readonly t: Cleanup,
    private readonly program: string,
    private readonly mortal: MortalAgent,
  ) {
    const { leaseDir } = mortal
    this.#tracers = { first: new Tracer({ leaseDir }), second: new Tracer({ leaseDir }) }
    this.#notes = { gated: notesOf(program, 't:gated'), shared: notesOf(program, 't:shared') }
  }

  async spawn(): Promise<number> {
    const target = await Target.start(this.t, this.program)
    this.processes.set(this.#next, { pid: target.pid, target })
    return this.#next++
  }

  async fork(id: number): Promise<number> {
    this.processes.set(this.#next, { pid: await this.target(id).askNumber('fork-hold'), target: null })
    // The kernel gives births in hundredths of a second, and one of grace is given beside (lib/counter/inherited.ts): a claim that is made from now on is younger than the child.
    await delay(2 * BIRTH_RESOLUTION_MS + 1)
    return this.#next++
  }

  async endChild(id: number, child: number): Promise<void> {
    await this.target(id).ask('fork-release 0')
    this.processes.delete(child)
  }

  /** Attaches, and answers `attached` or the code of the refusal. */
  async attach(id: string, agent: Agent, counter: Counter, mode: 'kernel' | 'msb', scope: number | null): Promise<string> {
    const options: AttachOptions = {
      counter: mode,
      registration: HAS_MULTI ? 'multi' : 'perf',
      ...(scope === null ? {} : { pid: this.pid(scope) }),
    }
    const spec = `usdt:${this.program}:t:${counter}`
    if (agent === 'mortal') {
      const answer = await (await this.mortal.get()).ask(`attach ${JSON.stringify([spec, options, id])}`)
      return answer.startsWith('error ') ? (answer.split(' ')[1] ?? '') : answer
    }
    return codeOf(async () => {
      const probe = await this.#tracers[agent].attach(spec, options)
      const arrivals = new Set<number | undefined>()
      probe.on('state', ({ reason, pid }) => {
        if (reason === 'arrival') arrivals.add(pid)
      })
      this.#probes.set(id, probe)
      this.#arrivals.set(id, arrivals)
      return 'attached'
    })
  }

  /** Waits until a claim that was paused has cleared what it had left to others. */
  letOthersCome(): Promise<void> {
    return delay(OTHERS_TIME_MS)
  }

  /** Waits until a probe for every process has looked at one that came later. */
  async arrived(id: string, process: number): Promise<void> {
    const pid = this.pid(process)
    await waitFor('the process to be looked at', () => this.#arrivals.get(id)?.has(pid) === true)
  }

  /** Pauses, resumes or detaches; answers `done` or the code of the refusal. */
  async change(id: string, agent: Agent, what: 'pause' | 'resume' | 'detach'): Promise<string> {
    if (agent === 'mortal') {
      const answer = await (await this.mortal.get()).ask(`${what} ${id}`)
      return answer.startsWith('error ') ? (answer.split(' ')[1] ?? '') : 'done'
    }
    return codeOf(async () => {
      await this.#probes.get(id)?.[what]()
      return 'done'
    })
  }

  /** Waits until a probe has noticed that its only process is gone, and holds nothing any more. */
  async ended(id: string, agent: Agent): Promise<void> {
    if (agent !== 'mortal') await waitFor('the end to be noticed', () => this.#probes.get(id)?.state === 'target-exited')
    assert.equal(await this.change(id, agent, 'detach'), 'done')
  }

  async kill(): Promise<void> {
    await this.mortal.kill()
  }

  /** Registers a site as another tool does; answers `attached` or the errno's name. */
  async attachForeign(id: string, counter: Counter, site: number, scope: number | null): Promise<string> {
    const note = this.#notes[counter][site]
    assert.ok(note)
    return codeOf(async () => {
      const fd = await loadNative().perfEventOpenUprobe({
        type: readUprobePmu().type,
        path: this.program,
        fileOffset: note.fileOffset,
        refCtrOffset: Number(note.refCtrOffset),
        retprobe: false,
        tid: scope === null ? -1 : this.pid(scope),
      })
      this.#foreign.set(id, fd)
      return 'attached'
    })
  }

  async detachForeign(id: string): Promise<void> {
    const fd = this.#foreign.get(id)
    this.#foreign.delete(id)
    if (fd !== undefined) await loadNative().closeFds([fd])
  }

  /** Waits until every counter reads what the model says, and every process answers. */
  async agreesWith(model: Model): Promise<void> {
    for (const [id, { pid, target }] of this.processes) {
      if (target !== null) assert.match(await target.ask('counters'), /^\d+ \d+ \d+ \d+$/)
      for (const counter of COUNTERS) {
        const wanted = model.expected(id, counter)
        // A process that came a moment ago is claimed a moment later.
        const deadline = Date.now() + PATIENCE_MS
        let value = this.value(pid, counter)
        while (value !== wanted && Date.now() < deadline) {
          await delay(1)
          value = this.value(pid, counter)
        }
        assert.equal(value, wanted, `t:${counter} of process ${id} reads 0x${value.toString(16)} and should read 0x${wanted.toString(16)}`)
      }
    }
  }

  value(pid: number, counter: Counter): number {
    return counterValue(pid, this.program, this.#notes[counter][0]?.refCtrOffset ?? 0n)
  }

  refCtrOffset(counter: Counter): bigint {
    return this.#notes[counter][0]?.refCtrOffset ?? 0n
  }

  /** Ends everything but the processes, and looks for what is left in them. */
  async windUp(model: Model): Promise<void> {
    for (const id of [...this.#foreign.keys()]) await this.detachForeign(id)
    for (const { id, agent } of model.probes.values()) if (agent === 'mortal') await this.change(id, agent, 'detach')
    // Whoever attaches next clears what dead agents left.
    const [alive] = [...this.processes.values()]
    if (alive !== undefined) await (await this.#tracers.first.attach('usdt:t:plain', { pid: alive.pid })).detach()
    await Promise.all([this.#tracers.first.close(), this.#tracers.second.close()])
    model.clearAll()
    await this.agreesWith(model)
    for (const [id, { pid }] of this.processes) {
      for (const counter of COUNTERS) {
        for (const [site, { fileOffset }] of this.#notes[counter].entries()) {
          // Whoever asks the kernel about links, as `uprobe counters` does, holds them for that moment.
          const deadline = Date.now() + PATIENCE_MS
          while (isArmed(pid, this.program, fileOffset) && Date.now() < deadline) await delay(1)
          const armed = isArmed(pid, this.program, fileOffset)
          assert.equal(armed, false, `a breakpoint is left at site ${site} of t:${counter} in process ${id}`)
        }
      }
    }
    assert.deepEqual(
      leaseFiles(this.mortal.leaseDir).filter((name) => name.startsWith('lease') || name.startsWith('released')),
      [],
    )
  }

  async stop(): Promise<void> {
    for (const id of [...this.#foreign.keys()]) await this.detachForeign(id)
    await Promise.all([this.#tracers.first.close(), this.#tracers.second.close()])
    for (const { target } of this.processes.values()) await target?.stop()
  }

  pid(id: number): number {
    const found = this.processes.get(id)
    assert.ok(found)
    return found.pid
  }

  target(id: number): Target {
    const target = this.processes.get(id)?.target
    assert.ok(target)
    return target
  }

  get path(): string {
    return this.program
  }

  get leaseDir(): string {
    return this.mortal.leaseDir
  }
}

async function codeOf(work: () => Promise<string>): Promise<string> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof UprobeError) return error.code
    if (error instanceof Error && 'syscall' in error && 'code' in error) return String(error.code)
    throw error
  }
}
