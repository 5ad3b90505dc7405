/**
 * A large program is not read as a whole: what memory that takes. Node itself has some 100 MB and 185,000 symbols. (How long it takes is measured by bench/elf.ts.)
 *
 * Each figure is taken in a process of its own, from the best of several runs: what the collector has not got to yet is not ours.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { tempDirectory } from '../support/temp.js'

const RUNS = 5
const MOST_MEGABYTES = 60

interface Cost {
  readonly megabytes: number
  readonly found: number
}

/** Runs `expression`, which may use `list` and `symbols`, in a fresh process. */
function costOf(folder: string, expression: string): Cost {
  const script = join(folder, 'measure.ts')
  const root = join(__dirname, '..', '..', 'lib', 'elf')
  writeFileSync(
    script,
    `import * as list from ${JSON.stringify(join(root, 'list.js'))}
    import * as symbols from ${JSON.stringify(join(root, 'symbols.js'))}
    import { ElfFile } from ${JSON.stringify(join(root, 'elf-file.js'))}
    void (async () => {
      const file = process.execPath
      const before = process.resourceUsage().maxRSS
      const found = await (${expression})
      process.stdout.write(JSON.stringify({ megabytes: (process.resourceUsage().maxRSS - before) / 1000, found: found.length }))
      void [list, symbols, ElfFile]
    })()`,
  )
  const { stdout, stderr, status } = spawnSync(process.execPath, ['--import', require.resolve('tsx'), script], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  return JSON.parse(stdout) as Cost
}

for (const [what, expression] of [
  ['listing its USDT probes', 'list.listFile(file)'],
  ['finding a function by its name', "ElfFile.open(file).then((elf) => symbols.findFunctions(elf, 'uv_run'))"],
  ['finding functions by a pattern', "ElfFile.open(file).then((elf) => symbols.findFunctions(elf, 'uv_*'))"],
] as const) {
  test(`${what} takes less than ${MOST_MEGABYTES} MB`, (t) => {
    const { size } = statSync(process.execPath)
    assert.ok(size > 50e6, `${process.execPath} has only ${size} bytes`)
    const folder = tempDirectory(t)
    const costs = Array.from({ length: RUNS }, () => costOf(folder, expression))
    const megabytes = Math.min(...costs.map((cost) => cost.megabytes))
    t.diagnostic(`${megabytes.toFixed(1)} MB, ${costs[0]?.found} found`)
    assert.ok(megabytes < MOST_MEGABYTES, `${megabytes} MB`)
  })
}
