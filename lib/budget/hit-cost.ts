/**
 * What a hit costs the target, in nanoseconds of CPU time.
 *
 * It depends on the machine (a trap takes ten times as long in a nested virtual machine), and on what is captured. So it is measured, once in the life of this process for each kind of capture: the probe
 * that the package's own addon has is attached to in this process alone, fired, and detached. A quarter is added: in a program whose caches are full of other things a hit takes longer than in a loop.
 *
 * That probe is a nop, which the kernel skips. Most other instructions it has executed out of line, with a second trap behind them (`uprobe_pre_sstep_notifier`, kernel/events/uprobes.c), which in some virtual
 * machines takes fifteen times as long as the first. So what that adds is measured by another probe of the addon, and counts for every function, though the kernel emulates some instructions that functions
 * begin with; and a return probe has one trap and a half more for the return.
 *
 * A string costs what its bytes cost, in the kernel and in the caches that they go through: of 4096 about as much as the trap, or more. How long the strings of a target are is not known before they are
 * read, so a hit counts as if each that is asked for had the greatest length. One of that length is measured, and each further one adds what it adds to none.
 *
 * Where it cannot be measured, as inside a pid namespace, a hit counts as expensive: a budget is then kept, and less is seen than might be.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { addonPath, type Native } from '../native.js'
import type { AttachOptions } from '../options.js'

/** What a hit does. */
export interface HitKind {
  readonly probe: 'usdt' | 'uprobe' | 'uretprobe'
  /** How many strings are read, and up to how many bytes of each. */
  readonly strings: number
  readonly stringLimit: number
  readonly stack: boolean
  readonly countOnly: boolean
}

/** What is captured of the probe that is measured: a string of at least so many bytes, or none. */
interface Trial {
  readonly stringLimit: number | null
  readonly stack: boolean
  readonly countOnly: boolean
}

/** What a measurement needs of a tracer. */
export interface MeasuringTracer {
  attach(spec: string, options: AttachOptions): Promise<unknown>
  close(): Promise<void>
}

/** What a hit costs, and why that is not measured; `null` if it is. */
export interface HitCost {
  readonly ns: number
  readonly guessed: Error | null
}

/** For a hit of a nop that could not be measured: what a slow one costs in a nested virtual machine. */
export const GUESSED_NS = 10_000
const MARGIN = 1.25
/** How many hits of a nop one costs, but for what it adds that an instruction is executed out of line. */
const AS_NOPS: Readonly<Record<HitKind['probe'], number>> = { usdt: 1, uprobe: 1, uretprobe: 2.5 }
/** Some milliseconds in all; between two rounds the event loop turns. */
const ROUNDS = 21
const FIRES = 50

const known = new Map<string, Promise<number>>()

/** What a hit of this kind costs. Does not reject. */
export async function hitCost(native: Native, kind: HitKind, newTracer: () => MeasuringTracer): Promise<HitCost> {
  const { probe } = kind
  const nops = AS_NOPS[probe]
  try {
    const { nop, strings } = await captureCost(native, newTracer, kind)
    // A trap takes no less than another, whatever was measured.
    const step = probe === 'usdt' ? 0 : Math.max(nop, await once('step', () => stepCost(native, newTracer)))
    return { ns: (nops * nop + step + strings) * MARGIN, guessed: null }
  } catch (error) {
    return { ns: GUESSED_NS * (nops + (probe === 'usdt' ? 0 : 1)), guessed: error instanceof Error ? error : new Error(String(error)) }
  }
}

/** What a hit of a nop costs, and what reading the strings adds to it: once, also where a hit has more than one trap. */
async function captureCost(
  native: Native,
  newTracer: () => MeasuringTracer,
  { strings, stringLimit, stack, countOnly }: HitKind,
): Promise<{ readonly nop: number; readonly strings: number }> {
  const nop = await nopCost(native, newTracer, { stringLimit: null, stack, countOnly })
  // Who only counts reads none.
  if (strings === 0 || countOnly) return { nop, strings: 0 }
  const added = await once(JSON.stringify({ stringLimit, stack }), async () => {
    const withString = await nopCost(native, newTracer, { stringLimit, stack, countOnly })
    // Once more, behind it: a machine that was busy with something else at first would make the string look cheap.
    const without = await measureNop(native, newTracer, { stringLimit: null, stack, countOnly })
    return Math.max(0, withString - Math.min(nop, without))
  })
  return { nop, strings: strings * added }
}

/** Measures once in the life of the process; after a failure again, since want of a descriptor says nothing about the next time. */
async function once(key: string, measure: () => Promise<number>): Promise<number> {
  const measurement = known.get(key) ?? measure()
  known.set(key, measurement)
  try {
    return await measurement
  } catch (error) {
    known.delete(key)
    throw error
  }
}

function nopCost(native: Native, newTracer: () => MeasuringTracer, trial: Trial): Promise<number> {
  return once(JSON.stringify(trial), () => measureNop(native, newTracer, trial))
}

function measureNop(native: Native, newTracer: () => MeasuringTracer, trial: Trial): Promise<number> {
  // Longer than is read, so that all that may be read is.
  const text = 't'.repeat((trial.stringLimit ?? 0) + 1)
  return costOf(newTracer, 'demo', trial, () => native.fireDemo(0, 0n, text))
}

/** What it adds to a hit that its instruction is executed out of line. */
async function stepCost(native: Native, newTracer: () => MeasuringTracer): Promise<number> {
  const trial = { stringLimit: null, stack: false, countOnly: true }
  const stepped = await costOf(newTracer, 'step', trial, () => native.fireStep())
  return stepped - (await nopCost(native, newTracer, trial))
}

async function costOf(newTracer: () => MeasuringTracer, probe: string, trial: Trial, fire: () => void): Promise<number> {
  const { stringLimit, ...capture } = trial
  const strings = stringLimit === null ? {} : { strings: [2], stringLimit }
  const bare = await fireNs(fire)
  const tracer = newTracer()
  try {
    await tracer.attach(`usdt:uprobe:${probe}`, { pid: process.pid, path: addonPath(), ...strings, ...capture })
    const ns = (await fireNs(fire)) - bare
    if (ns <= 0) throw new Error('the hits of the own probe took no time')
    return ns
  } finally {
    await tracer.close()
  }
}

/** Nanoseconds of one call that fires a probe, if it is attached to: the median of some rounds. */
async function fireNs(fire: () => void): Promise<number> {
  const rounds: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const start = process.hrtime.bigint()
    for (let fired = 0; fired < FIRES; fired++) fire()
    rounds.push(Number(process.hrtime.bigint() - start) / FIRES)
    await nextTurn()
  }
  return rounds.sort((a, b) => a - b)[ROUNDS >> 1] ?? 0
}
