/**
 * A tracer under load for a long time, while other probes come and go: what must not grow, and counts that must not drift.
 *
 * The target comes by a probe so and so many times a second, and each time it passes the next number. A listener checks that every number comes, once and in order. Meanwhile probes of other kinds are attached to the
 * same target and detached. Behind each of them what this process and the kernel hold is looked at.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type AttachOptions, type ProbeStats, Tracer } from '../../lib/index.js'
import { OwnBpfObjects } from '../../test/support/bpf-ids.js'
import { holdings } from '../../test/support/leftovers.js'
import type { Target } from '../../test/support/target.js'
import type { Cleanup } from '../../test/support/temp.js'

/** How it is soaked. */
export interface SoakOptions {
  readonly target: Target
  readonly leaseDir: string
  /** Hits a second. */
  readonly rate: number
  /** How many other probes come and go. */
  readonly rounds: number
  /** From one to the next, in milliseconds. */
  readonly roundMs: number
}

/** What is held behind one of the other probes. */
export interface SoakSample {
  /** Resident memory of the process, in bytes. */
  readonly residentBytes: number
  /** What JavaScript holds, after a garbage collection, in bytes. */
  readonly heldBytes: number
  readonly descriptors: number
  readonly threads: number
  /** Of the programs and maps that this process ever made, those that the kernel still has. */
  readonly programs: number
  readonly maps: number
}

/** What came of it. */
export interface SoakResult {
  /** One a round. */
  readonly samples: readonly SoakSample[]
  /** How often the target says that it came by. */
  readonly executed: number
  readonly stats: ProbeStats
  /** Hits that were not the next. */
  readonly outOfOrder: number
  /** Programs and maps that were made in all, and that the kernel still has at the end. */
  readonly made: number
  readonly left: number
  readonly elapsedMs: number
}

/** The probes that come and go. */
const OTHERS: readonly (readonly [string, AttachOptions])[] = [
  ['uprobe:f_hot', { countOnly: true }],
  ['usdt:t:ungated', { counter: 'msb' }],
  ['usdt:t:hot', { strings: [1], filter: 'arg0 % 1000 == 0' }],
  ['usdt:t:*', { stack: true, filter: 'arg0 % 1000 == 0' }],
  ['uretprobe:f_hot', {}],
  ['usdt:t:hot', { countOnly: true, budget: { hitsPerSecond: 100 } }],
]

/** Something that was closed is gone from the kernel some moments later: this often and long it is waited for. */
const SETTLE = { times: 500, ms: 10 }

setFlagsFromString('--expose-gc')
const collectGarbage: () => void = runInNewContext('gc')

/** Soaks. */
export async function soak(cleanup: Cleanup, { target, leaseDir, rate, rounds, roundMs }: SoakOptions): Promise<SoakResult> {
  const objects = await OwnBpfObjects.start(cleanup)
  const tracer = new Tracer({ ringBytes: 64 << 20, leaseDir })
  cleanup.after(() => tracer.close())
  const probe = await tracer.attach('usdt:t:hot', { pid: target.pid })
  let next = 0
  let outOfOrder = 0
  probe.on('batch', (batch) => {
    for (const { args } of batch) {
      const number = Number(args[0])
      if (number !== next) outOfOrder++
      next = number + 1
    }
  })
  objects.note()
  const usual = await objects.alive()
  const samples: SoakSample[] = []
  const startMs = performance.now()
  await target.ask(`pace-probe ${rate}`)
  for (let round = 0; round < rounds; round++) {
    const [spec, options] = OTHERS[round % OTHERS.length] ?? ['usdt:t:hot', {}]
    const other = await tracer.attach(spec, { pid: target.pid, ...options })
    objects.note()
    await delay(Math.max(0, startMs + (round + 0.5) * roundMs - performance.now()))
    await other.detach()
    let alive = await objects.alive()
    for (let times = 0; alive.programs > usual.programs || alive.maps > usual.maps; times++) {
      if (times === SETTLE.times) {
        throw new Error(`${spec} left ${alive.programs - usual.programs} BPF programs and ${alive.maps - usual.maps} maps in the kernel`)
      }
      await delay(SETTLE.ms)
      alive = await objects.alive()
    }
    samples.push({ ...sample(), ...alive })
    await delay(Math.max(0, startMs + (round + 1) * roundMs - performance.now()))
  }
  const executed = await target.askNumber('stop')
  const elapsedMs = performance.now() - startMs
  await probe.detach()
  await tracer.close()
  const { programs, maps } = objects.seen
  return { samples, executed, stats: probe.stats(), outOfOrder, made: programs + maps, left: await leftOf(objects), elapsedMs }
}

function sample(): Omit<SoakSample, 'programs' | 'maps'> {
  collectGarbage()
  const { rss, heapUsed, external } = process.memoryUsage()
  const { descriptors, threads } = holdings()
  const count = Object.values(descriptors).reduce((sum, number) => sum + number, 0)
  return { residentBytes: rss, heldBytes: heapUsed + external, descriptors: count, threads }
}

async function leftOf(objects: OwnBpfObjects): Promise<number> {
  let left = Number.POSITIVE_INFINITY
  for (let times = 0; times < SETTLE.times && left > 0; times++) {
    const { programs, maps } = await objects.alive()
    left = programs + maps
    if (left > 0) await delay(SETTLE.ms)
  }
  return left
}

/** The greatest of what was seen in the last third, beyond the greatest of the third before: what grows all the time shows in it, and what is only restless does not. */
export function growthOf(samples: readonly SoakSample[], what: keyof SoakSample): number {
  const third = Math.floor(samples.length / 3)
  const most = (part: readonly SoakSample[]): number => Math.max(...part.map((one) => one[what]))
  return most(samples.slice(-third)) - most(samples.slice(third, -third))
}
