/**
 * `npm run bench [-- --quick] [--seconds=N] [NAME…]`: runs the benchmarks, as root.
 *
 * A full run writes docs/performance.md, the picture beside it and bench/results.json. With names, only those are run, and what is known of the others stays. With `--quick` everything is
 * done a few times only, and the tables go to standard output and nowhere else. `soak` is run only when it is named, and lasts `--seconds`, 1800 unless told otherwise.
 *
 * Each runs in a process of its own, so that none inherits the heap, the threads or the processor of another.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { agentCost } from './agent.js'
import { attachTime } from './attach.js'
import { readingCost } from './elf.js'
import { hitCost } from './hit-cost.js'
import { idleCost } from './idle.js'
import { latency } from './latency.js'
import { pauseCost } from './pause.js'
import { ringPath } from './ring-path.js'
import { soaking } from './soak.js'
import { machine } from './support/markdown.js'
import type { Benchmark, Report, Settings } from './support/report.js'
import { keep, type Result } from './support/results.js'

/** In the order of the document. */
const BENCHMARKS: Readonly<Record<string, Benchmark>> = {
  'hit-cost': hitCost,
  latency,
  'ring-path': ringPath,
  attach: attachTime,
  elf: readingCost,
  pause: pauseCost,
  agent: agentCost,
  idle: idleCost,
  soak: soaking,
}

/** Run only when they are named. */
const LONG: readonly string[] = ['soak']

/** Where the process of one benchmark puts its report. */
const REPORT_VARIABLE = 'UPROBE_BENCH_REPORT'

async function main(args: readonly string[]): Promise<number> {
  const seconds = args.flatMap((argument) => /^--seconds=(\d+)$/.exec(argument)?.[1] ?? []).map(Number)[0]
  const settings: Settings = { quick: args.includes('--quick'), seconds }
  const names = args.filter((argument) => argument !== '--quick' && !/^--seconds=\d+$/.test(argument))
  const unknown = names.find((name) => BENCHMARKS[name] === undefined)
  if (unknown !== undefined) {
    process.stderr.write(`There is no benchmark ${unknown}; there are ${Object.keys(BENCHMARKS).join(', ')}. --quick tries them.\n`)
    return 2
  }
  if (process.getuid?.() !== 0) {
    process.stderr.write('The benchmarks trace programs: run them as root.\n')
    return 1
  }
  const reportPath = process.env[REPORT_VARIABLE]
  if (reportPath !== undefined) {
    const report = await BENCHMARKS[names[0] ?? '']?.(settings)
    writeFileSync(reportPath, JSON.stringify(typeof report === 'string' ? { markdown: report } : report))
    return 0
  }
  return runEach(names.length === 0 ? Object.keys(BENCHMARKS).filter((name) => !LONG.includes(name)) : names, settings)
}

function runEach(names: readonly string[], settings: Settings): number {
  const results: Record<string, Result> = {}
  const failed: string[] = []
  for (const name of names) {
    process.stderr.write(`${name} …\n`)
    const report = runApart(name, settings)
    if (report === null) {
      failed.push(name)
      continue
    }
    process.stdout.write(`${report.markdown}\n\n`)
    results[name] = { report, machine: machine(), date: new Date().toISOString().slice(0, 10) }
  }
  if (!settings.quick) keep(results, Object.keys(BENCHMARKS))
  if (failed.length > 0) process.stderr.write(`Failed: ${failed.join(', ')}.\n`)
  return failed.length > 0 ? 1 : 0
}

/** Runs one in a process of its own; `null` if it failed, which it then has said. */
function runApart(name: string, { quick, seconds }: Settings): Report | null {
  const directory = mkdtempSync(join(tmpdir(), 'uprobe-bench-report-'))
  try {
    const path = join(directory, 'report.json')
    const args = [
      ...process.execArgv,
      __filename,
      name,
      ...(quick ? ['--quick'] : []),
      ...(seconds === undefined ? [] : [`--seconds=${seconds}`]),
    ]
    const { status } = spawnSync(process.execPath, args, {
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...process.env, [REPORT_VARIABLE]: path },
    })
    return status === 0 ? (JSON.parse(readFileSync(path, 'utf8')) as Report) : null
  } finally {
    rmSync(directory, { recursive: true })
  }
}

main(process.argv.slice(2)).then(
  (status) => {
    process.exitCode = status
  },
  (error: unknown) => {
    process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`)
    process.exitCode = 1
  },
)
