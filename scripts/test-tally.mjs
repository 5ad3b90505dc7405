/**
 * A reporter beside the one that people read: how many tests ran, and how many did not, by reason. One JSON object, at the end.
 *
 * A filter that matches nothing skips every test, and Node calls that a success.
 */
export default async function* tally(events) {
  let ran = 0
  const skipped = {}
  for await (const { type, data } of events) {
    if ((type !== 'test:pass' && type !== 'test:fail') || data.details.type === 'suite') continue
    if (data.skip === undefined) ran++
    else skipped[data.skip] = (skipped[data.skip] ?? 0) + 1
  }
  yield JSON.stringify({ ran, skipped })
}
