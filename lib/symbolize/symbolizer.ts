/**
 * The way to the symbolizing thread (worker.ts), which all tracers of an environment share.
 *
 * Reading mappings, symbol tables and the maps of JIT compilers takes tens of milliseconds, and it parses files that nobody vouches for; neither belongs on the event loop of a host. The thread is started
 * when a probe with stacks is attached. It does not keep the process alive, unless somebody waits for frames, and it ends some time after the last such probe, when
 * nobody has asked for anything meanwhile; until then what it knows of processes that have exited is there to be asked for.
 */
import { extname, join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { UprobeError } from '../errors.js'
import type { StackFrame } from './frame.js'
import type { Answer, Question, SymbolizeRequest } from './messages.js'

/** How long the thread outlives the last probe and the last question. */
const LINGER_MS = 30_000

/** Bounds of the thread's memory; what is in typed arrays is bounded where it is made. */
const HEAP_MIB = 512

/** How many processes may wait to be looked at without anybody waiting for it; further ones are passed over, and looked at when somebody asks. */
const MAX_UNATTENDED = 1024

type Frames = readonly (readonly StackFrame[])[]

interface Waiting {
  readonly resolve: (frames: Frames) => void
  readonly reject: (error: unknown) => void
  /** Whether the process is to be kept alive for it. */
  readonly holds: boolean
}

interface Queued {
  readonly request: SymbolizeRequest
  readonly resolve: (frames: readonly StackFrame[]) => void
  readonly reject: (error: unknown) => void
}

/** Asks the thread. */
export class Symbolizer {
  #worker: Worker | null = null
  #users = 0
  #nextId = 1
  readonly #waiting = new Map<number, Waiting>()
  #queued: Queued[] = []
  #linger: NodeJS.Timeout | null = null

  constructor(private readonly lingerMs: number = LINGER_MS) {}

  /**
   * Keeps the thread's knowledge, from its start on, until the result is called.
   * @throws {UprobeError} `ERR_UPROBE_LIMIT` if no thread can be started
   */
  use(): () => void {
    this.#start()
    this.#users++
    let used = true
    return () => {
      if (used) this.#users--
      used = false
      this.#lingerIfIdle()
    }
  }

  /**
   * Has the mappings of a process read, before it changes or exits. Resolves when they are, or if they cannot be.
   * @param awaited - whether somebody waits for it, so that the process must not end meanwhile
   */
  async see(pid: number, awaited: boolean): Promise<void> {
    if (!awaited && this.#waiting.size >= MAX_UNATTENDED) return
    await this.#ask({ kind: 'see', pid }, awaited)
  }

  /**
   * The frames of a stack. Requests of one turn of the event loop go to the thread together.
   * @throws {UprobeError} `ERR_UPROBE_LIMIT` if the thread ends before it has answered
   */
  symbolize(request: SymbolizeRequest): Promise<readonly StackFrame[]> {
    if (this.#queued.length === 0) queueMicrotask(() => this.#flush())
    return new Promise((resolve, reject) => this.#queued.push({ request, resolve, reject }))
  }

  #flush(): void {
    const queued = this.#queued
    this.#queued = []
    this.#ask({ kind: 'symbolize', requests: queued.map(({ request }) => request) }, true).then(
      (frames) => {
        for (const [index, { resolve }] of queued.entries()) resolve(frames[index] ?? [])
      },
      (error: unknown) => {
        for (const { reject } of queued) reject(error)
      },
    )
  }

  #ask(question: Omit<Extract<Question, { kind: 'see' }>, 'id'> | Omit<Extract<Question, { kind: 'symbolize' }>, 'id'>, holds: boolean) {
    const id = this.#nextId++
    return new Promise<Frames>((resolve, reject) => {
      const worker = this.#start()
      this.#waiting.set(id, { resolve, reject, holds })
      if (holds) worker.ref()
      worker.postMessage({ ...question, id })
    })
  }

  #start(): Worker {
    if (this.#linger !== null) clearTimeout(this.#linger)
    this.#linger = null
    if (this.#worker !== null) return this.#worker
    const worker = startThread()
    worker.on('message', (answer: Answer) => this.#onAnswer(answer))
    worker.on('error', (error) => this.#onEnd(worker, error))
    worker.on('exit', () => this.#onEnd(worker, undefined))
    worker.unref()
    this.#worker = worker
    return worker
  }

  #onAnswer({ id, frames, shortage }: Answer): void {
    const waiting = this.#waiting.get(id)
    this.#waiting.delete(id)
    if (![...this.#waiting.values()].some(({ holds }) => holds)) this.#worker?.unref()
    if (frames === null) waiting?.reject(new UprobeError('ERR_UPROBE_LIMIT', shortage))
    else waiting?.resolve(frames)
    this.#lingerIfIdle()
  }

  #onEnd(worker: Worker, cause: unknown): void {
    if (this.#worker !== worker) return
    this.#worker = null
    const why = cause instanceof Error ? cause.message : 'it was stopped'
    const error = new UprobeError('ERR_UPROBE_LIMIT', `The thread that symbolizes stacks has ended: ${why}. Ask again.`, { cause })
    for (const { reject } of this.#waiting.values()) reject(error)
    this.#waiting.clear()
  }

  #lingerIfIdle(): void {
    if (this.#users > 0 || this.#waiting.size > 0 || this.#worker === null || this.#linger !== null) return
    const worker = this.#worker
    this.#linger = setTimeout(() => {
      this.#linger = null
      this.#worker = null
      void worker.terminate()
    }, this.lingerMs).unref()
  }
}

function startThread(): Worker {
  // What the host preloads for its own sake (--import, --require) is not for this thread: an agent that is loaded so and attaches at once would start a thread that starts a thread.
  const options = {
    name: 'uprobe-symbolizer',
    execArgv: [],
    env: { ...process.env, NODE_OPTIONS: '' },
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB },
  }
  const program = join(__dirname, 'worker')
  try {
    if (extname(__filename) === '.js') return new Worker(`${program}.js`, options)
    // In a checkout, run from its sources.
    return new Worker(`require('tsx/cjs'); require(${JSON.stringify(`${program}.ts`)})`, { ...options, eval: true })
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new UprobeError('ERR_UPROBE_LIMIT', `The thread that symbolizes stacks cannot be started: ${why}.`, { cause: error })
  }
}

/** The one of this environment. */
export const symbolizer = new Symbolizer()
