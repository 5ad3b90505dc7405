/**
 * What reading a large program costs: Node itself, with some 100 MB and 185,000 symbols, beside `readelf`, which prints all of them.
 *
 * The file is in the page cache, as that of a running program is. Each measurement is a process of its own (elf-reader.cjs).
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { machine, table } from './support/markdown.js'
import { isInstalled } from './support/others.js'
import { showMedian, showQuartiles, summarise } from './support/statistics.js'

const ROUNDS = 15
const FILE = process.execPath

/** One reading. */
interface Reading {
  readonly ms: number
  readonly megabytes: number
  readonly found: number
}

const OURS: Readonly<Record<string, readonly string[]>> = {
  'its USDT probes': ['notes'],
  'a function by its name, `uv_run`': ['symbols', 'uv_run'],
  'functions by a pattern, `uv_*`': ['symbols', 'uv_*'],
  'every function, `*`': ['symbols', '*'],
}

function readOurs(args: readonly string[]): Reading {
  const output = execFileSync(process.execPath, [join(__dirname, 'elf-reader.cjs'), FILE, ...args], { encoding: 'utf8' })
  return JSON.parse(output) as Reading
}

/** Milliseconds of a whole run of readelf; most of it is printing. */
function timeReadelf(option: string): number {
  const before = performance.now()
  const { status, stderr } = spawnSync('readelf', [option, FILE], { stdio: ['ignore', 'ignore', 'pipe'], encoding: 'utf8' })
  if (status !== 0) throw new Error(`readelf failed: ${stderr}`)
  return performance.now() - before
}

function rowOf(what: string, ms: readonly number[], megabytes: string, found: string): string[] {
  const summary = summarise(ms)
  return [what, showMedian(summary, 1), showQuartiles(summary, 1), megabytes, found]
}

/** Measures, and returns a section in Markdown. */
export async function readingCost(): Promise<string> {
  const rows: string[][] = []
  for (const [what, args] of Object.entries(OURS)) {
    // The first brings the file into the page cache.
    const [first, ...readings] = Array.from({ length: ROUNDS + 1 }, () => readOurs(args))
    const megabytes = showMedian(summarise(readings.map((reading) => reading.megabytes)), 1)
    rows.push(
      rowOf(
        what,
        readings.map(({ ms }) => ms),
        megabytes,
        String(first?.found),
      ),
    )
  }
  if (isInstalled('readelf')) {
    for (const option of ['-n', '-sW']) {
      const times = Array.from({ length: ROUNDS }, () => timeReadelf(option))
      rows.push(rowOf(`\`readelf ${option}\``, times, '', ''))
    }
  }
  const size = (statSync(FILE).size / 1e6).toFixed(0)
  return [
    '## What reading a large program costs',
    `${machine()}. Node's own binary of ${size} MB, ${ROUNDS} rounds, each in a new process. Goal for what an attach asks: below 150 ms and 60 MB.`,
    table(['', 'ms', 'half of the rounds', 'MB added', 'found'], rows),
  ].join('\n\n')
}
