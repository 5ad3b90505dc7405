/**
 * Which of many are refused, where only trying some together tells.
 */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { refusedAmong } from '../../lib/register/halving.js'

const ALL = Array.from({ length: 10_000 }, (_, index) => index)

/** Refuses some that have one of the `bad` among them, and counts how often it was asked. */
function trying(bad: readonly number[]): { tries: number; attempt(some: readonly number[]): Promise<unknown> } {
  const trial = {
    tries: 0,
    async attempt(some: readonly number[]): Promise<unknown> {
      trial.tries++
      return bad.find((one) => some.includes(one)) ?? null
    },
  }
  return trial
}

for (const bad of [[0], [9999], [17, 18, 5000], ALL.slice(40, 60)]) {
  it(`finds ${bad.length} of ten thousand that are refused, each with its reason`, async () => {
    const trial = trying(bad)
    const found: unknown[] = []
    for await (const refused of refusedAmong(ALL, 'one of them', trial.attempt)) found.push(refused)
    assert.deepEqual(
      found,
      bad.map((one) => ({ one, error: one })),
    )
    assert.ok(trial.tries <= bad.length * 28, `${trial.tries} tries`)
  })
}

it('goes no further than the first, if no more are wanted', async () => {
  const trial = trying(ALL)
  for await (const { one } of refusedAmong(ALL, 'all of them', trial.attempt)) {
    assert.equal(one, 0)
    break
  }
  assert.ok(trial.tries <= 14, `${trial.tries} tries`)
})

it('finds none where the halves are taken, and the one there is without trying', async () => {
  assert.equal((await refusedAmong(ALL, 'together', trying([]).attempt).next()).done, true)
  const trial = trying([])
  assert.deepEqual((await refusedAmong([7], 'alone', trial.attempt).next()).value, { one: 7, error: 'alone' })
  assert.equal(trial.tries, 0)
})
