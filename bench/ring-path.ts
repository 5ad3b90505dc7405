/**
 * What the way from the ring to JavaScript takes of the agent, a record: of its reader thread, and of its main thread with the consumer.
 *
 * A program of its own writes many records at a hit (support/many-records.ts), so that not the trap is measured. Times are those that the scheduler has in its books for a thread
 * (/proc/PID/task/TID/schedstat), so that other programs on the machine do not count. They include everything: the doorbell, garbage that was collected on the thread, page faults.
 */
import type { AttachOptions, Probe } from '../lib/index.js'
import type { Target } from '../test/support/target.js'
import { loadNative, Tracer } from './support/built.js'
import { multiplyRecords } from './support/many-records.js'
import { table } from './support/markdown.js'
import { type GoalResult, grouped, judge, type Report, type Settings } from './support/report.js'
import { type Summary, showQuartiles, summarise } from './support/statistics.js'
import { runTimeNs, threadsNamed } from './support/threads.js'
import { makeRoomForTarget, Workshop } from './support/workshop.js'

const RECORDS_A_HIT = 64
/** Long enough that the start and the end of a burst do not count. */
const EXECUTIONS = 6144
const RECORDS = RECORDS_A_HIT * EXECUTIONS
/** Holds a burst, so that nothing is lost to a machine that is busy. */
const RING_BYTES = 64 << 20

const ROUNDS = { full: 31, quick: 7 }
const WARM_UP_ROUNDS = 5

interface Way {
  readonly name: string
  readonly probe: string
  readonly options: AttachOptions
  /** Bounds in nanoseconds a record. */
  readonly goals: { readonly main: number; readonly reader?: number }
  /** Consumes for ever; calls back with the number of hits that were seen. */
  consume(probe: Probe, seen: (hits: number) => void): void
}

/** What the consumers add up, so that no compiler finds that nobody wants it. Not at each hit: V8 makes an object of such a variable each time that it is written. */
let sum = 0

const WAYS: readonly Way[] = [
  {
    name: "`'batch'`, two numbers",
    probe: 'ints0',
    options: {},
    goals: { main: 25, reader: 25 },
    consume(probe, seen) {
      probe.on('batch', (batch) => {
        let total = 0
        for (const { args } of batch) total += (args[0] as number) + (args[1] as number)
        sum += total
        seen(batch.length)
      })
    },
  },
  {
    name: "`'batch'`, a string of 63 bytes",
    probe: 'text0',
    options: { strings: [2], stringLimit: 64 },
    goals: { main: 80 },
    consume(probe, seen) {
      probe.on('batch', (batch) => {
        let total = 0
        for (const { args } of batch) total += (args[2] as string).length
        sum += total
        seen(batch.length)
      })
    },
  },
  {
    name: '`batch.arg`, two numbers',
    probe: 'ints3',
    options: {},
    goals: { main: 25 },
    consume(probe, seen) {
      probe.on('batch', (batch) => {
        let total = 0
        for (let index = 0; index < batch.length; index++) total += (batch.arg(index, 0) as number) + (batch.arg(index, 1) as number)
        sum += total
        seen(batch.length)
      })
    },
  },
  {
    name: '`batch.arg`, a string of 63 bytes',
    probe: 'text1',
    options: { strings: [2], stringLimit: 64 },
    goals: { main: 80 },
    consume(probe, seen) {
      probe.on('batch', (batch) => {
        let total = 0
        for (let index = 0; index < batch.length; index++) total += (batch.arg(index, 2) as string).length
        sum += total
        seen(batch.length)
      })
    },
  },
  {
    name: "`'hit'`, two numbers",
    probe: 'ints1',
    options: {},
    goals: { main: Number.NaN },
    consume(probe, seen) {
      probe.on('hit', ({ args }) => {
        sum += (args[0] as number) + (args[1] as number)
        seen(1)
      })
    },
  },
  {
    name: '`for await`, two numbers',
    probe: 'ints2',
    options: { queueLimit: 2 * RECORDS },
    goals: { main: 300 },
    consume(probe, seen) {
      void (async () => {
        for await (const { args } of probe) {
          sum += (args[0] as number) + (args[1] as number)
          seen(1)
        }
      })()
    },
  },
]

interface Outcome {
  readonly way: Way
  readonly main: number[]
  readonly reader: number[]
  readonly lost: number
}

async function measure(workshop: Workshop, target: Target, path: string, way: Way, rounds: number): Promise<Outcome> {
  const tracer = new Tracer({ ringBytes: RING_BYTES, pendingLimitBytes: RING_BYTES })
  workshop.after(() => tracer.close())
  const probe = await tracer.attach(`usdt:${path}:bench:${way.probe}`, { pid: target.pid, ...way.options })
  const reader = threadsNamed('uprobe-reader')[0] ?? 0
  let missing = 0
  let done = (): void => undefined
  way.consume(probe, (hits) => {
    missing -= hits
    if (missing <= 0) done()
  })
  const main: number[] = []
  const readers: number[] = []
  for (let round = 0; round < WARM_UP_ROUNDS + rounds; round++) {
    missing = RECORDS
    const complete = new Promise<void>((resolve) => {
      done = resolve
    })
    const before = { main: runTimeNs(process.pid), reader: runTimeNs(reader) }
    await Promise.all([target.askNumber(`run ${way.probe} ${EXECUTIONS}`), complete])
    if (round < WARM_UP_ROUNDS) continue
    main.push((runTimeNs(process.pid) - before.main) / RECORDS)
    readers.push((runTimeNs(reader) - before.reader) / RECORDS)
  }
  await probe.detach()
  const { lost } = probe.stats()
  await tracer.close()
  return { way, main, reader: readers, lost }
}

const SCALE = { records: 3600, recordBytes: 72, textBytes: 63, warmUps: 200, rounds: 400 }

/** How fast this machine is: what its JavaScript takes at the least, in nanoseconds, for a record whose two numbers are read through a typed array, and for a string of those 63 bytes. */
function machineScale(): { readonly typedArray: number; readonly text: number } {
  const { records, recordBytes, textBytes, warmUps, rounds } = SCALE
  const bytes = Buffer.alloc(records * recordBytes, 'x')
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  const readNumbers = (): number => {
    let total = 0
    for (let word = 0; word < words.length; word += recordBytes / 4) total += (words[word + 12] ?? 0) + (words[word + 14] ?? 0)
    return total
  }
  const readTexts = (): number => {
    let total = 0
    for (let at = 0; at < bytes.length; at += recordBytes) total += bytes.toString('latin1', at, at + textBytes).length
    return total
  }
  const time = (work: () => number): number => {
    for (let round = 0; round < warmUps; round++) sum += work()
    const before = runTimeNs(process.pid)
    for (let round = 0; round < rounds; round++) sum += work()
    return (runTimeNs(process.pid) - before) / (rounds * records)
  }
  return { typedArray: time(readNumbers), text: time(readTexts) }
}

function goalsOf(outcomes: readonly Outcome[]): GoalResult[] {
  return outcomes.flatMap(({ way, main, reader }) => {
    const goal = (thread: string, limit: number | undefined, values: readonly number[]): GoalResult[] =>
      limit === undefined || Number.isNaN(limit)
        ? []
        : [judge({ what: `A record to JavaScript, ${way.name}: ${thread}`, limit, unit: 'ns', digits: 0 }, summarise(values))]
    return [...goal('main thread', way.goals.main, main), ...goal('reader thread', way.goals.reader, reader)]
  })
}

/** Measures, and returns a section. */
export function ringPath({ quick }: Settings): Promise<Report> {
  makeRoomForTarget()
  multiplyRecords(loadNative(), RECORDS_A_HIT)
  return Workshop.use(async (workshop) => {
    const path = workshop.build('target')
    const target = await workshop.startTarget(path)
    const rounds = quick ? ROUNDS.quick : ROUNDS.full
    const outcomes: Outcome[] = []
    for (const way of WAYS) outcomes.push(await measure(workshop, target, path, way, rounds))
    const scale = machineScale()
    if (Number.isNaN(sum)) throw new Error('a consumer read something that is no number')
    const show = (summary: Summary): string => summary.median.toFixed(1)
    const rows = outcomes.map(({ way, main, reader, lost }) => {
      const [ours, theirs] = [summarise(main), summarise(reader)]
      return [way.name, show(ours), showQuartiles(ours, 1), show(theirs), showQuartiles(theirs, 1), grouped(lost)]
    })
    return {
      markdown: [
        '## What a record costs the agent',
        table(['consumer', 'main thread, ns', 'half of the rounds', 'reader thread, ns', 'half of the rounds', 'lost'], rows),
        `${rounds} rounds of ${grouped(RECORDS)} records, ${RECORDS_A_HIT} a hit, CPU time of the threads with all that they did meanwhile. For comparison, on this machine and in this run: two numbers read from memory through a typed array take ${scale.typedArray.toFixed(1)} ns, \`buffer.toString('latin1')\` of 63 bytes ${scale.text.toFixed(1)} ns.`,
      ].join('\n\n'),
      goals: goalsOf(outcomes),
    }
  })
}
