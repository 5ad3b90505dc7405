/**
 * Runs the tests with Node's own runner.
 *
 *     npm test                        all
 *     npm test -- elf lifecycle       files whose path contains one of the words
 *     npm test -- --test-name-pattern=counter
 */
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
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

// One file at a time: registrations take kernel-wide locks, and a test that waits for another's is slow, not parallel.
const { status } = spawnSync(
  process.execPath,
  ['--import', 'tsx', '--test', '--test-reporter=spec', '--test-concurrency=1', ...options, ...files],
  { stdio: 'inherit' },
)
process.exit(status ?? 1)
