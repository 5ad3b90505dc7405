/**
 * Claims and pauses in real programs: CPython, which checks every counter, and PostgreSQL, which checks few.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { leaseDirectory } from '../support/leases.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { POSTGRES, Postgres } from '../support/postgres.js'
import { PYTHON, startPython } from '../support/python.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const CPYTHON = needs({ programs: ['readelf'], files: [PYTHON] })
const POSTGRES_15 = needs({ programs: ['readelf'], files: [POSTGRES] })
const CLAIMED = 0x8000

for (const counter of ['kernel', 'msb'] as const) {
  test(
    `CPython's gc__start is paused and resumed a hundred times, and sees each collection in between (${counter})`,
    CPYTHON,
    async (t) => {
      const rounds = counter === 'msb' ? 100 : 5
      const python = await startPython(t)
      const { fileOffset, refCtrOffset } = gatedNote(python.program, 'python:gc__start')
      const value = (): number => counterValue(python.pid, python.program, refCtrOffset)
      const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:python:gc__start', { pid: python.pid, counter })
      const hits = collect(probe)
      for (let round = 0; round < rounds; round++) {
        assert.equal(value(), counter === 'msb' ? CLAIMED : 1)
        await python.ask('gc 1 1')
        await probe.pause()
        assert.equal(value(), 0)
        // With a claim the breakpoint stays, and nobody comes by it.
        assert.equal(isArmed(python.pid, python.program, fileOffset), counter === 'msb')
        await python.ask('gc 2 0')
        await probe.resume()
      }
      await detachComplete(probe, rounds)
      assert.deepEqual(new Set(hits.map((hit) => hit.args[0])), new Set([1]))
      assert.equal(value(), 0)
      assert.equal(isArmed(python.pid, python.program, fileOffset), false)
    },
  )
}

test("PostgreSQL's query__start goes on being hit while its claim is paused: it is taken out, and put in again", POSTGRES_15, async (t) => {
  const server = await Postgres.start(t)
  const { fileOffset, refCtrOffset } = gatedNote(server.path, 'postgresql:query__start')
  const connection = await server.connect(t)
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:postgresql:query__start', {
    pid: connection.pid,
    counter: 'msb',
    strings: [0],
  })
  const hits = collect(probe)
  const reasons: string[] = []
  probe.on('state', ({ reason }) => reasons.push(reason))
  const armed = (): boolean => isArmed(connection.pid, server.path, fileOffset)
  const value = (): number => counterValue(connection.pid, server.path, refCtrOffset)
  assert.deepEqual([armed(), value()], [true, CLAIMED])
  await connection.query('select 1')
  await probe.pause()
  assert.deepEqual([armed(), value()], [true, 0])
  await waitFor('the hits to be noticed', async () => {
    await connection.query('select 2')
    return reasons.includes('still-hit')
  })
  assert.deepEqual([armed(), value()], [false, 0])
  await connection.query('select 3')
  await probe.resume()
  assert.deepEqual([armed(), value()], [true, CLAIMED])
  await connection.query('select 4')
  await detachComplete(probe, 2)
  assert.deepEqual(
    hits.map((hit) => hit.args[0]),
    ['select 1;', 'select 4;'],
  )
  assert.deepEqual([armed(), value()], [false, 0])
})

test("PostgreSQL's lwlock__acquire, which is checked, is not hit while its claim is paused", POSTGRES_15, async (t) => {
  const server = await Postgres.start(t)
  const { fileOffset, refCtrOffset } = gatedNote(server.path, 'postgresql:lwlock__acquire')
  const connection = await server.connect(t)
  const probe = await newTracer(t, { leaseDir: leaseDirectory() }).attach('usdt:postgresql:lwlock__acquire', {
    pid: connection.pid,
    counter: 'msb',
  })
  await connection.query('select 1')
  await probe.pause()
  const { hits } = probe.stats()
  assert.ok(hits > 0)
  for (let i = 0; i < 20; i++) await connection.query(`select ${i}`)
  assert.equal(probe.stats().hits, hits)
  assert.equal(isArmed(connection.pid, server.path, fileOffset), true)
  await probe.resume()
  await connection.query('select 1')
  await probe.detach()
  assert.ok(probe.stats().hits > hits)
  assert.equal(counterValue(connection.pid, server.path, refCtrOffset), 0)
})
