/**
 * What a guest prints: a line a test with its duration, a line a file, every diagnostic, and each failure at once and in full, since a kernel that crashes later takes what was
 * not printed with it; and at the end what failed once more, which is all that is seen of a log that is cut to its end.
 */
import { inspect } from 'node:util'

/** Of one failure, when it is told again. */
const MOST_CHARACTERS = 1500
const MARKS = { pass: 'ok  ', fail: 'FAIL', skip: 'skip' }

export default async function* report(events) {
  const count = { pass: 0, fail: 0, skip: 0 }
  const failures = []
  for await (const { type, data } of events) {
    if (type === 'test:diagnostic' && data.nesting > 0) yield `     ${data.message}\n`
    if (type !== 'test:pass' && type !== 'test:fail') continue
    const { name, nesting, skip, details } = data
    const isFile = nesting === 0
    const outcome = type === 'test:fail' ? 'fail' : skip === undefined ? 'pass' : 'skip'
    if (details.type !== 'suite') count[outcome]++
    else if (outcome === 'fail' && details.error?.failureType !== 'subtestsFailed') count.fail++
    const seconds = `${(details.duration_ms / 1000).toFixed(1)} s`
    const why = typeof skip === 'string' ? ` (${skip})` : ''
    yield `${isFile ? 'file' : MARKS[outcome]} ${seconds.padStart(7)} ${'  '.repeat(Math.max(0, nesting - 1))}${name}${why}\n`
    // A file also fails by itself: if it cannot be loaded, or a hook of its fails.
    if (outcome === 'fail' && details.error?.failureType !== 'subtestsFailed') {
      const text = inspect(details.error?.cause ?? details.error, { depth: 6 })
      yield `${text}\n`
      failures.push(`${name}: ${text.slice(0, MOST_CHARACTERS)}`.split('\n'))
    }
  }
  for (const line of failures.flat()) yield `guest: failed: ${line}\n`
  yield `guest: ${count.pass} passed, ${count.fail} failed, ${count.skip} skipped\n`
}
