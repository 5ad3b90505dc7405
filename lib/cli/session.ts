/**
 * What `trace`, `count` and `hist` have in common: attach everything, say so, run until something asks to stop or all targets are gone, detach, and only then
 * read the counts, which are exact from then on.
 */
import {
  type AttachOptions,
  type Probe,
  type ProbeSite,
  type ProbeState,
  type ProbeStateChange,
  type Progress,
  Tracer,
  type TracerOptions,
  UprobeError,
} from '../index.js'
import { HARDLY_A_POINTER } from '../spec/check-strings.js'
import { warn } from './failure.js'
import type { Output } from './output.js'
import { ProgressBar } from './progress-bar.js'
import { Stop } from './stop.js'
import { plural } from './text.js'

/** What a session can attach: a probe, or an aggregation. */
export interface Attached {
  readonly sites: readonly ProbeSite[]
  readonly warnings: readonly string[]
  detach(): Promise<void>
  on(event: 'error', listener: (error: Error) => void): unknown
  on(event: 'state', listener: (change: ProbeStateChange) => void): unknown
}

/** How long a session lasts, and where it prints. */
export interface SessionSettings {
  /** How long to stay attached; for ever if undefined. */
  readonly durationMs: number | undefined
  readonly json: boolean
  readonly output: Output
  /** Whether hits are printed as they come, and not only a result at the end. */
  readonly printsHits?: boolean
  /** For the tracer. */
  readonly tracing?: TracerOptions
}

/** What probes to attach, and for how long. */
export interface SessionRequest extends SessionSettings {
  readonly specs: readonly string[]
  readonly attach: AttachOptions
}

/** Writes a remark, on a line of its own. */
type Say = (message: string) => void

/** Attaches all that a session is about, one after the other; aborted when it is to end. */
type AttachEach<T> = (tracer: Tracer, signal: AbortSignal) => AsyncIterable<T>

/**
 * Takes the hits of the probes until they end. It must not stop taking when `stop` is requested: what was captured until then is still to come. It may
 * request the stop itself.
 */
export type Consume<T = Probe> = (probes: readonly T[], stop: Stop) => Promise<void>

/**
 * Runs one session of probes. Afterwards nothing is attached, whatever happened.
 * @returns the probes, detached, for their counts; none if the reader of standard output left before all were attached
 * @throws {UprobeError} `ERR_UPROBE_CLOSED` if a signal came before all were attached
 */
export function runSession(request: SessionRequest, consume: Consume): Promise<readonly Probe[]> {
  const { specs, attach } = request
  return runSessionOf(
    request,
    async function* (tracer, signal) {
      for (const spec of specs) yield await tracer.attach(spec, { ...attach, signal })
    },
    consume,
  )
}

/** The same for whatever can be attached. */
export async function runSessionOf<T extends Attached>(
  request: SessionSettings,
  attachEach: AttachEach<T>,
  consume: Consume<T>,
): Promise<readonly T[]> {
  const stop = new Stop(request.output, request.json)
  const tracer = new Tracer(request.tracing)
  const bar = new ProgressBar(process.stderr)
  // While hits are printed to the same terminal, a bar would be among them. Results come when everything is detached and the bar is gone.
  const amongHits = request.printsHits === true && process.stdout.isTTY === true
  const shown = (action: Progress['action']): boolean => !request.json && (action === 'attach' || !amongHits)
  tracer.on('progress', (progress) => {
    if (shown(progress.action)) bar.show(progress)
  })
  try {
    const say = (message: string): void => {
      // Or it would stand behind the bar, on the same line.
      bar.erase()
      warn(message, request.json)
    }
    const probes = await attachAll(tracer, say, attachEach, stop)
    bar.erase()
    if (probes === null) {
      if (stop.reason !== 'signal') return []
      await tracer.close()
      bar.erase()
      throw new UprobeError(
        'ERR_UPROBE_CLOSED',
        'Interrupted before everything was attached: nothing was counted, and nothing is left behind.',
      )
    }
    // Iterators of the probes end once everything is detached and what was captured is taken; a reader who is slow or gone must not delay detaching.
    const consumed = consume(probes, stop)
    // Behind it: who reads that all are attached, and begins, must not be sooner than whoever counts from here on.
    announce(probes, request.json)
    if (request.durationMs !== undefined) stop.after(request.durationMs)
    const detached = whenStopped(stop).then(async () => {
      // Each by itself first: what has begun in a latency is waited for then.
      await Promise.allSettled(probes.map((probe) => probe.detach()))
      await tracer.close()
      stop.detached()
    })
    await Promise.race([consumed, detached.then(() => consumed)])
    stop.request('enough')
    await detached
    return probes
  } finally {
    await tracer.close()
    bar.erase()
    stop.dispose()
  }
}

function whenStopped({ signal }: Stop): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}

/** Attaches all or none; `null` if the stop came first. */
async function attachAll<T extends Attached>(tracer: Tracer, say: Say, attachEach: AttachEach<T>, stop: Stop): Promise<T[] | null> {
  const probes: T[] = []
  try {
    const told = new Set<string>()
    const sayOnce = (message: string): void => {
      if (told.has(message)) return
      told.add(message)
      say(message)
    }
    for await (const probe of attachEach(tracer, stop.signal)) {
      tellOfTrouble(probe, say, sayOnce)
      probes.push(probe)
    }
    return stop.signal.aborted ? null : probes
  } catch (error) {
    if (stop.signal.aborted && error instanceof Error && error.name === 'AbortError') return null
    throw error
  }
}

/**
 * Says what happens to an attached probe that its counts do not show: hits that nobody saw, a pause that nobody here asked for, an end while the process goes on.
 * @param sayOnce - says what concerns all probes of a process alike
 */
function tellOfTrouble(probe: Attached, say: Say, sayOnce: Say): void {
  probe.on('error', (error) => say(error.message))
  probe.on('state', ({ reason, pid, mayHaveMissed }) => {
    if (mayHaveMissed) say(`Hits may have been missed${pid === undefined ? '' : ` in process ${pid}`} (${reason}).`)
    if (reason === 'exec')
      sayOnce(`Process ${pid} has called exec and runs another program now, which is not traced. To trace that, start again.`)
    if (reason === 'over-budget') say('The probe costs more than its budget, and is taken out for parts of the time.')
    if (reason === 'refused') say('The probe could not be armed again, and sees no hits any more. To go on, start again.')
    if (reason === 'yield') say('The probe gave way to another tool (uprobe release) and sees no hits any more. To go on, start again.')
  })
}

/** The longest delay of a Node timer. */
const LONG_MS = 2 ** 31 - 1

/** What ends by itself, or is detached. */
interface Ending extends Pick<Attached, 'on'> {
  readonly state: ProbeState
}

/** Waits for the end of all that gives no hits. */
export async function untilAllEnd(attached: readonly Ending[]): Promise<void> {
  await Promise.all(attached.map(untilEnd))
}

function untilEnd(attached: Ending): Promise<void> {
  return new Promise((resolve) => {
    // It does not keep the process alive.
    const alive = setInterval(() => undefined, LONG_MS)
    const look = (): void => {
      if (attached.state !== 'detached' && attached.state !== 'target-exited') return
      clearInterval(alive)
      resolve()
    }
    attached.on('state', look)
    look()
  })
}

/** Tells standard error that every site is armed: what is fired from now on is seen. */
function announce(probes: readonly Attached[], json: boolean): void {
  // Each SPEC gets what --str names, and one of them may be meant that has a string there.
  const isTold = (warning: string): boolean => probes.length === 1 || !warning.includes(HARDLY_A_POINTER)
  // Several probes of one file have some in common.
  for (const warning of new Set(probes.flatMap((probe) => probe.warnings))) if (isTold(warning)) warn(warning, json)
  const sites = probes.flatMap((probe) => probe.sites)
  const unverified = sites.filter((site) => site.targets.some(({ state }) => state === 'unverified')).length
  const names = new Set(sites.map((site) => site.probe))
  const remark = unverified === 0 ? '' : ` (${unverified} could not be verified)`
  process.stderr.write(`attached ${plural(sites.length, 'site')} of ${plural(names.size, 'probe')}${remark}\n`)
}
