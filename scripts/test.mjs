/**
 * Runs the tests with Node's own runner.
 *
 *     npm test                        all
 *     npm test -- elf lifecycle       files whose path contains one of the words
 *     npm test -- --test-name-pattern=counter
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))))
const options = process.argv.slice(2).filter((argument) => argument.startsWith('-'))
const words = process.argv.slice(2).filter((argument) => !argument.startsWith('-'))

// Node 20 does not expand patterns, so the files are named.
const files = readdirSync('test', { recursive: true })
  .map((name) => join('test', name))
  .filter((name) => name.endsWith('.test.ts') && (words.length === 0 || words.some((word) => name.includes(word))))
  .sort()
if (files.length === 0) {
  console.error(`no test file matches ${words.join(' ')}`)
  process.exit(1)
}
if (process.getuid?.() !== 0) {
  console.error('Not root: the tests that register probes are skipped, each with its reason. Run as root to run them all.')
}

const directory = mkdtempSync(join(tmpdir(), 'uprobe-tally-'))
const tally = join(directory, 'tally.json')
// One file at a time: registrations take kernel-wide locks, and a test that waits for another's is slow, not parallel.
const { status } = spawnSync(
  process.execPath,
  [
    ...['--import', 'tsx', '--test', '--test-concurrency=1'],
    ...['--test-reporter=spec', '--test-reporter-destination=stdout'],
    ...['--test-reporter=./scripts/test-tally.mjs', `--test-reporter-destination=${tally}`],
    ...options,
    ...files,
  ],
  { stdio: 'inherit' },
)
// Node that stops early, for an option it does not know, has written nothing.
const written = existsSync(tally) ? readFileSync(tally, 'utf8') : ''
const { ran, skipped } = written === '' ? { ran: 0, skipped: {} } : JSON.parse(written)
rmSync(directory, { recursive: true })
for (const [reason, count] of Object.entries(skipped)) console.log(`not run: ${count} ${count === 1 ? 'test' : 'tests'} (${reason})`)
if (ran === 0) {
  console.error('no test ran')
  process.exit(1)
}
process.exit(status ?? 1)
