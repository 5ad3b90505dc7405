/**
 * `npm run bench [NAME…]`: runs the benchmarks, as root, and writes their tables to standard output.
 *
 * Each runs in a process of its own, so that none inherits the heap, the threads or the processor of another.
 */
import { spawnSync } from 'node:child_process'
import { attachTime } from './attach.js'
import { readingCost } from './elf.js'
import { hitCost } from './hit-cost.js'
import { idleCost } from './idle.js'
import { pauseCost } from './pause.js'

const BENCHMARKS: Readonly<Record<string, () => Promise<string>>> = {
  'hit-cost': hitCost,
  attach: attachTime,
  elf: readingCost,
  pause: pauseCost,
  idle: idleCost,
}

async function main(names: readonly string[]): Promise<number> {
  const unknown = names.find((name) => BENCHMARKS[name] === undefined)
  if (unknown !== undefined) {
    process.stderr.write(`There is no benchmark ${unknown}; there are ${Object.keys(BENCHMARKS).join(', ')}.\n`)
    return 2
  }
  if (process.getuid?.() !== 0) {
    process.stderr.write('The benchmarks trace programs: run them as root.\n')
    return 1
  }
  const [name, ...others] = names
  if (name !== undefined && others.length === 0) {
    process.stdout.write(`${await BENCHMARKS[name]?.()}\n`)
    return 0
  }
  for (const each of names.length === 0 ? Object.keys(BENCHMARKS) : names) {
    const { status } = spawnSync(process.execPath, [...process.execArgv, __filename, each], { stdio: 'inherit' })
    if (status !== 0) return 1
    process.stdout.write('\n')
  }
  return 0
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
