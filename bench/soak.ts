/**
 * Half an hour at 100,000 hits a second, while other probes are attached and detached every second: what the agent holds must not grow, and no hit may be missing.
 *
 * It takes its time, so it is run only when it is named: `npm run bench -- soak [--seconds=N]`.
 */
import { join } from 'node:path'
import { buildTarget } from '../test/support/build.js'
import { table } from './support/markdown.js'
import { grouped, type Report, type Settings } from './support/report.js'
import { growthOf, type SoakResult, type SoakSample, soak } from './support/soaking.js'
import { makeRoomForTarget, Workshop } from './support/workshop.js'

const RATE = 100_000
const SECONDS = { full: 1800, quick: 24 }
const ROUND_MS = 1000
const MIB = 2 ** 20
/** The first rounds of each kind of probe compile code and start threads. */
const WARM_UP_ROUNDS = 12

function row(name: string, { residentBytes, heldBytes, descriptors, threads, programs, maps }: SoakSample): string[] {
  const numbers = [residentBytes / MIB, heldBytes / MIB, descriptors, threads, programs, maps]
  return [name, ...numbers.map((number) => grouped(number))]
}

function sectionOf({ samples, executed, stats, outOfOrder, made, left, elapsedMs }: SoakResult): string {
  const warm = samples.slice(WARM_UP_ROUNDS)
  const [first, middle, last] = [warm[0], warm[warm.length >> 1], warm.at(-1)]
  if (first === undefined || middle === undefined || last === undefined) throw new Error('it was too short to say anything')
  const grown = (['residentBytes', 'heldBytes'] as const).map((what) => (growthOf(warm, what) / MIB).toFixed(1))
  return [
    '## How it lasts',
    table(
      ['', 'resident, MiB', 'held by JavaScript, MiB', 'descriptors', 'threads', 'BPF programs', 'BPF maps'],
      [row('after the first probes', first), row('half-way', middle), row('at the end', last)],
    ),
    `${grouped(elapsedMs / 1000)} s, ${grouped((1000 * executed) / elapsedMs)} hits a second: ${grouped(executed)} executed, ${grouped(stats.hits)} counted, ${grouped(stats.delivered)} delivered, ${grouped(stats.lost)} lost, ${grouped(outOfOrder)} out of order. ` +
      `${grouped(samples.length)} other probes came and went meanwhile, with ${grouped(made)} BPF programs and maps, of which the kernel has ${grouped(left)} at the end. ` +
      `The most that was resident in the last third was ${grown[0]} MiB more than in the third before; of what JavaScript held, ${grown[1]} MiB.`,
  ].join('\n\n')
}

/** Runs, and returns a section. */
export function soaking({ quick, seconds }: Settings): Promise<Report> {
  makeRoomForTarget()
  return Workshop.use(async (workshop) => {
    const target = await workshop.startTarget(buildTarget(workshop, 'hot'))
    const rounds = Math.ceil((1000 * (seconds ?? (quick ? SECONDS.quick : SECONDS.full))) / ROUND_MS)
    const result = await soak(workshop, { target, leaseDir: join(workshop.directory, 'leases'), rate: RATE, rounds, roundMs: ROUND_MS })
    return { markdown: sectionOf(result) }
  })
}
