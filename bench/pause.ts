/**
 * Microseconds from `pause()` until the probe is off, and from `resume()` until it is on again, and what a probe that is off still costs the target.
 *
 * Four ways to stop looking for a while, each on a probe of its own that the program executes only while its semaphore is up: a claim, which is one store; the kernel's count, whose
 * registration is closed and opened; detaching and attaching anew; and, as other tools do, disabling the perf event, which is quick and leaves the breakpoint and the counter in
 * the target.
 */
import { mkdtempSync } from 'node:fs'
import { join } from 'node:path'
import { type AttachOptions, type Probe, Tracer } from '../lib/index.js'
import { loadNative } from '../lib/native.js'
import { readUprobePmu } from '../lib/register/pmu.js'
import { gatedNote } from '../test/support/notes.js'
import type { Target } from '../test/support/target.js'
import { machine, table } from './support/markdown.js'
import { showMedian, showQuartiles, summarise } from './support/statistics.js'
import { makeRoomForTarget, Workshop } from './support/workshop.js'

const ROUNDS = 25
/** Pauses in a round of the quick ways. */
const REPEAT = 200
const FIRES = 200_000

interface Way {
  readonly name: string
  readonly probe: string
  readonly repeat: number
  pause(): Promise<void> | void
  resume(): Promise<void> | void
}

/** Microseconds of each pause and each resume. */
async function timeUs({ repeat, pause, resume }: Way): Promise<{ pause: number[]; resume: number[] }> {
  const times = { pause: [] as number[], resume: [] as number[] }
  for (let index = 0; index < repeat; index++) {
    const start = performance.now()
    await pause()
    const middle = performance.now()
    await resume()
    times.pause.push(1000 * (middle - start))
    times.resume.push(1000 * (performance.now() - middle))
  }
  return times
}

async function nsPerFire(target: Target, probe: string): Promise<number> {
  return (await target.askNumber(`run ${probe} ${FIRES}`)) / FIRES
}

async function ways(workshop: Workshop, tracer: Tracer, path: string, pid: number): Promise<Way[]> {
  const attach = (name: string, options: AttachOptions): Promise<Probe> =>
    tracer.attach(`usdt:${path}:bench:${name}`, { pid, countOnly: true, ...options })
  const claimed = await attach('gated0', { counter: 'msb' })
  const counted = await attach('gated1', { registration: 'perf' })
  let anew = await attach('gated2', { registration: 'perf' })
  const native = loadNative()
  const { fileOffset, refCtrOffset } = gatedNote(path, 'bench:gated3')
  const fd = await native.perfEventOpenUprobe({
    type: readUprobePmu().type,
    path,
    fileOffset,
    refCtrOffset: Number(refCtrOffset),
    retprobe: false,
    tid: pid,
  })
  workshop.after(() => native.closeFds([fd]))
  return [
    { name: "`pause()`, `counter: 'msb'`", probe: 'gated0', repeat: REPEAT, pause: () => claimed.pause(), resume: () => claimed.resume() },
    { name: "`pause()`, `counter: 'kernel'`", probe: 'gated1', repeat: 1, pause: () => counted.pause(), resume: () => counted.resume() },
    {
      name: '`detach()` and `attach()`',
      probe: 'gated2',
      repeat: 1,
      pause: () => anew.detach(),
      resume: async () => {
        anew = await attach('gated2', { registration: 'perf' })
      },
    },
    {
      name: '`PERF_EVENT_IOC_DISABLE`, `ENABLE`',
      probe: 'gated3',
      repeat: REPEAT,
      pause: () => native.perfEventEnable(fd, false),
      resume: () => native.perfEventEnable(fd, true),
    },
  ]
}

/** Measures, and returns a section in Markdown. */
export function pauseCost(): Promise<string> {
  return Workshop.use(async (workshop) => {
    makeRoomForTarget()
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const tracer = new Tracer({ leaseDir: join(mkdtempSync(join(workshop.directory, 'leases-')), 'leases') })
    workshop.after(() => tracer.close())
    const subjects = await ways(workshop, tracer, path, target.pid)
    const times = subjects.map(() => ({ pause: [] as number[], resume: [] as number[], off: [] as number[], on: [] as number[] }))
    // The first round is not counted.
    for (let round = 0; round <= ROUNDS; round++) {
      for (const [index, way] of subjects.entries()) {
        const { pause, resume } = await timeUs(way)
        const on = await nsPerFire(target, way.probe)
        await way.pause()
        const off = await nsPerFire(target, way.probe)
        await way.resume()
        if (round === 0) continue
        times[index]?.pause.push(...pause)
        times[index]?.resume.push(...resume)
        times[index]?.on.push(on)
        times[index]?.off.push(off)
      }
    }
    const rows = subjects.map(({ name }, index) => {
      const { pause = [], resume = [], on = [], off = [] } = times[index] ?? {}
      const [p, r] = [summarise(pause), summarise(resume)]
      return [
        name,
        showMedian(p, 1),
        showQuartiles(p, 1),
        showMedian(r, 1),
        showQuartiles(r, 1),
        showMedian(summarise(on)),
        showMedian(summarise(off), 1),
      ]
    })
    return [
      '## How long pausing takes, and what a paused probe costs',
      `${machine()}. Median microseconds of ${ROUNDS} rounds, from JavaScript; nanoseconds each time the program comes by.`,
      table(['', 'off', 'half of them', 'on', 'half of them', 'ns while on', 'ns while off'], rows),
    ].join('\n\n')
  })
}
