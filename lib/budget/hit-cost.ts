/**
 * What a hit costs the target, in nanoseconds of CPU time.
 *
 * It depends on the machine (a trap takes ten times as long in a nested virtual machine), and on what is captured. So it is measured, once in the life of this process for each kind of capture: the probe
 * that the package's own addon has is attached to in this process alone, fired, and detached. A quarter is added: in a program whose caches are full of other things a hit takes longer than in a loop.
 *
 * That probe is a nop, which the kernel skips. Most other instructions it has executed out of line, with a second trap behind them (`uprobe_pre_sstep_notifier`, kernel/events/uprobes.c), so a hit of a
 * function counts as two; and so does a return probe, with one and a half more for the return.
 *
 * Where it cannot be measured, as inside a pid namespace, a hit counts as expensive: a budget is then kept, and less is seen than might be.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { addonPath, type Native } from '../native.js'
import type { AttachOptions } from '../options.js'

/** What a hit does. */
export interface HitKind {
  readonly probe: 'usdt' | 'uprobe' | 'uretprobe'
  readonly strings: boolean
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
/** How many hits of a nop one costs. */
const AS_NOPS: Readonly<Record<HitKind['probe'], number>> = { usdt: 1, uprobe: 2, uretprobe: 3.5 }
/** Some milliseconds in all; between two rounds the event loop turns. */
const ROUNDS = 21
const FIRES = 50

const known = new Map<string, Promise<number>>()

/** What a hit of this kind costs. Does not reject. */
export async function hitCost(native: Native, kind: HitKind, newTracer: () => MeasuringTracer): Promise<HitCost> {
  const { probe, ...capture } = kind
  const nops = AS_NOPS[probe]
  const key = JSON.stringify(capture)
  const measurement = known.get(key) ?? measure(native, capture, newTracer)
  known.set(key, measurement)
  try {
    return { ns: (await measurement) * MARGIN * nops, guessed: null }
  } catch (error) {
    // Want of a descriptor says nothing about the next time.
    known.delete(key)
    return { ns: GUESSED_NS * nops, guessed: error instanceof Error ? error : new Error(String(error)) }
  }
}

async function measure(native: Native, capture: Omit<HitKind, 'probe'>, newTracer: () => MeasuringTracer): Promise<number> {
  const { strings, stack, countOnly } = capture
  const bare = await fireNs(native)
  const tracer = newTracer()
  try {
    await tracer.attach('usdt:uprobe:demo', { pid: process.pid, path: addonPath(), strings: strings ? [2] : [], stack, countOnly })
    const ns = (await fireNs(native)) - bare
    if (ns <= 0) throw new Error('the hits of the own probe took no time')
    return ns
  } finally {
    await tracer.close()
  }
}

/** Nanoseconds of one call that fires the probe, if it is attached to: the median of some rounds. */
async function fireNs(native: Native): Promise<number> {
  const rounds: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const start = process.hrtime.bigint()
    for (let fire = 0; fire < FIRES; fire++) native.fireDemo(fire, 0n, 'how long does a hit take?')
    rounds.push(Number(process.hrtime.bigint() - start) / FIRES)
    await nextTurn()
  }
  return rounds.sort((a, b) => a - b)[ROUNDS >> 1] ?? 0
}
