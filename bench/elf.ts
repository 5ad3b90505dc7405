/**
 * What reading programs costs: Node itself, with some 100 MB and 185,000 symbols, and a program with 10,000 probes, beside `readelf`, which prints all that there is, and other tracers that list.
 *
 * The files are in the page cache, as those of running programs are. Each measurement is a process of its own (elf-reader.cjs), and all are made in turn, round by round.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { READELF_THERE_MS } from './support/bounds.js'
import { table } from './support/markdown.js'
import { isInstalled } from './support/others.js'
import { type GoalResult, judge, type Report, type Settings } from './support/report.js'
import { percentLess, ratios, showMedian, showQuartiles, summarise } from './support/statistics.js'
import { Workshop } from './support/workshop.js'

const ROUNDS = { full: 15, quick: 3 }
const NODE = process.execPath
/** What Debian calls it. */
const TPLIST = 'tplist-bpfcc'
const MAIN = join(__dirname, '..', 'dist', 'cli', 'main.js')

/** One reading. */
interface Reading {
  readonly ms: number
  /** Only of a call in process. */
  readonly megabytes?: number
  readonly found?: number
}

/** Something that reads. */
interface Way {
  readonly name: string
  read(): Reading
  readonly readings: Reading[]
}

/** A call of the library in a new process, without the start of that. */
function inProcess(name: string, file: string, ...args: readonly string[]): Way {
  const read = (): Reading =>
    JSON.parse(execFileSync(process.execPath, [join(__dirname, 'elf-reader.cjs'), file, ...args], { encoding: 'utf8' })) as Reading
  return { name, read, readings: [] }
}

/** A whole run of a program, whose output goes nowhere. */
function asProcess(name: string, program: string, ...args: readonly string[]): Way {
  const read = (): Reading => {
    const before = performance.now()
    const { status, stderr } = spawnSync(program, args, { stdio: ['ignore', 'ignore', 'pipe'], encoding: 'utf8' })
    if (status !== 0) throw new Error(`${program} ${args.join(' ')} failed: ${stderr}`)
    return { ms: performance.now() - before }
  }
  return { name, read, readings: [] }
}

/** `list` is compared with `readelf`, `command` with the start of Node. */
interface Group {
  readonly title: string
  readonly list: Way
  readonly readelf: Way
  readonly others: readonly Way[]
}

function groupOf(title: string, file: string, others: readonly Way[]): Group {
  return {
    title,
    list: inProcess('its USDT probes, `list()`', file, 'notes'),
    readelf: asProcess('`readelf -n`, a process', 'readelf', '-n', file),
    others,
  }
}

function msOf({ readings }: Way): number[] {
  return readings.map(({ ms }) => ms)
}

function rowOf({ name, readings }: Way): string[] {
  const ms = summarise(readings.map((reading) => reading.ms))
  const megabytes = readings.flatMap((reading) => reading.megabytes ?? [])
  return [
    name,
    showMedian(ms, 1),
    showQuartiles(ms, 1),
    megabytes.length === 0 ? '' : showMedian(summarise(megabytes), 1),
    String(readings[0]?.found ?? ''),
  ]
}

/** Measures, and returns a section. */
export function readingCost({ quick }: Settings): Promise<Report> {
  return Workshop.use(async (workshop) => {
    const rounds = quick ? ROUNDS.quick : ROUNDS.full
    const thousands = workshop.build('thousands')
    const start = asProcess('`node -e ""`', process.execPath, '-e', '')
    const command = asProcess('`uprobe list`, a process', process.execPath, MAIN, 'list', thousands)
    const byName = inProcess('a function by its name, `uv_run`', NODE, 'symbols', 'uv_run')
    const node = groupOf('Node itself', NODE, [
      byName,
      inProcess('functions by a pattern, `uv_*`', NODE, 'symbols', 'uv_*'),
      inProcess('every function, `*`', NODE, 'symbols', '*'),
      asProcess('`readelf -sW`, a process', 'readelf', '-sW', NODE),
    ])
    const many = groupOf('10,000 probes', thousands, [
      command,
      start,
      ...(isInstalled('bpftrace') ? [asProcess('`bpftrace -l`, a process', 'bpftrace', '-l', `usdt:${thousands}:*`)] : []),
      ...(isInstalled(TPLIST, '--help') ? [asProcess('`tplist` of bcc, a process', TPLIST, '-l', thousands)] : []),
    ])
    const ways = [node, many].flatMap(({ list, readelf, others }) => [list, readelf, ...others])
    // The first round brings the files into the page cache.
    for (let round = 0; round <= rounds; round++) {
      for (const way of ways) {
        const reading = way.read()
        if (round > 0) way.readings.push(reading)
      }
    }
    const rows = [node, many].flatMap(({ title, list, readelf, others }) => [[`**${title}**`], ...[list, readelf, ...others].map(rowOf)])
    const size = (statSync(NODE).size / 1e6).toFixed(0)
    return {
      markdown: [
        '## What reading a large program costs',
        `Node's own binary of ${size} MB, and a program with 10,000 USDT probes; ${rounds} rounds, each reading in a new process. Those of the library are the call alone, whose code has never run before.`,
        table(['', 'ms', 'half of the rounds', 'MB added', 'found'], rows),
      ].join('\n\n'),
      behind: [node, many].flatMap(behindReadelf),
      goals: [
        ...[node, many].map(({ title, list, readelf }) => overReadelf(title, list, readelf)),
        judge(
          {
            what: '`uprobe list` of 10,000 probes, beyond the start of Node',
            limit: 30,
            unit: 'ms',
            digits: 0,
            yardstick: { there: READELF_THERE_MS.thousands, here: summarise(msOf(many.readelf)).median },
          },
          summarise(msOf(command).map((ms, round) => ms - (msOf(start)[round] ?? 0))),
        ),
        judge(
          {
            what: 'One function among 185,000 symbols',
            limit: 60,
            unit: 'ms',
            digits: 0,
            yardstick: { there: READELF_THERE_MS.node, here: summarise(msOf(node.readelf)).median },
          },
          summarise(msOf(byName)),
        ),
      ],
    }
  })
}

function overReadelf(title: string, list: Way, readelf: Way): GoalResult {
  return judge({ what: `\`list()\`, ${title}, ratio to \`readelf -n\``, limit: 1 }, summarise(ratios(msOf(list), msOf(readelf))))
}

/** Whether `readelf` takes less in more than three quarters of the rounds, with the start of its process. */
function behindReadelf({ title, list, readelf }: Group): string[] {
  const percent = percentLess(msOf(readelf), msOf(list))
  return percent === null ? [] : [`Listing, ${title}: \`readelf -n\` takes ${percent} % less than \`list()\`.`]
}
