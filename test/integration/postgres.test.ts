/**
 * PostgreSQL 15, from Debian's package: 71 sites under 57 names, each with a semaphore, in a server that forks a process for every connection.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'
import { REGISTRATIONS } from '../support/features.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { POSTGRES, Postgres } from '../support/postgres.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'

const POSTGRES_15 = needs({ programs: ['readelf'], files: [POSTGRES] })
const QUERIES = Array.from({ length: 50 }, (_, i) => `select ${i} as n`)

/** The postmaster and the helper processes that it has forked. */
function serverProcesses(postmaster: number): number[] {
  const children = readFileSync(`/proc/${postmaster}/task/${postmaster}/children`, 'utf8')
  return [postmaster, ...children.trim().split(' ').map(Number)]
}

test('query__start: N queries over one connection are N hits with their texts in order', POSTGRES_15, async (t) => {
  const server = await Postgres.start(t)
  const { fileOffset, refCtrOffset } = gatedNote(server.path, 'postgresql:query__start')
  const counters = (): number[] => serverProcesses(server.pid).map((pid) => counterValue(pid, server.path, refCtrOffset))
  assert.deepEqual(new Set(counters()), new Set([0]))

  const probe = await newTracer(t).attach(`usdt:${server.path}:postgresql:query__start`, { strings: [0] })
  const hits = collect(probe)
  assert.deepEqual(new Set(counters()), new Set([1]))
  assert.ok(probe.sites[0]?.targets.some(({ pid, state }) => pid === server.pid && state === 'armed'))
  assert.equal(await server.psql(QUERIES), QUERIES.map((_, i) => `${i}\n`).join(''))
  await detachComplete(probe, 50)

  assert.deepEqual(
    hits.map((hit) => hit.args[0]),
    QUERIES.map((query) => `${query};`),
  )
  const [backend, ...others] = new Set(hits.map((hit) => hit.pid))
  assert.equal(others.length, 0, 'one connection is one process')
  assert.notEqual(backend, server.pid)
  assert.deepEqual(new Set(counters()), new Set([0]))
  assert.equal(isArmed(server.pid, server.path, fileOffset), false)
  await server.psql(QUERIES)
  assert.equal(hits.length, 50)
})

test('query__start, query__execute__start and query__done of N statements are N hits each', POSTGRES_15, async (t) => {
  const server = await Postgres.start(t)
  const probe = await newTracer(t).attach(`usdt:${server.path}:postgresql:query__*`)
  await server.psql(QUERIES)
  await probe.detach()
  const counts = Object.fromEntries(probe.statsByName().map(({ probe: name, hits }) => [name.replace('usdt:postgresql:query__', ''), hits]))
  assert.deepEqual([counts.start, counts.execute__start, counts.execute__done, counts.done], [50, 50, 50, 50])
})

test('query__start to query__done: the time of N statements, by their text, and of one that fails', POSTGRES_15, async (t) => {
  const server = await Postgres.start(t)
  const probe = (name: string): string => `usdt:${server.path}:postgresql:query__${name}`
  const pair = { from: probe('start'), to: probe('done') }
  const aggregation = await newTracer(t).aggregate(pair, { by: 'str(arg0)', stringLimit: 12 })
  await server.psql(['select pg_sleep(0.05)', 'select 1', 'select 1', 'select 22'])
  await assert.rejects(server.psql(['select 1/0']), /division by zero/)
  await aggregation.detach()
  const { groups, other } = await aggregation.snapshot()
  const seen = groups.map(({ key: [text], count, min }) => {
    const cut = typeof text === 'object' && 'string' in text ? `${text.string}…` : text
    return [cut, count, (min ?? 0n) >= 50_000_000n]
  })
  assert.deepEqual(seen, [
    ['select 1;', 2, false],
    ['select 22;', 1, false],
    ['select pg_sl…', 1, true],
  ])
  assert.equal(other, null)
  const { hits, aggregated, unfinished, unmatched, lost } = aggregation.stats()
  assert.deepEqual({ hits, aggregated, unfinished, unmatched, lost }, { hits: 5, aggregated: 4, unfinished: 1, unmatched: 0, lost: 0 })
})

test('lwlock__acquire fires only while its semaphore is up', POSTGRES_15, async (t) => {
  const server = await Postgres.start(t)
  const { fileOffset, refCtrOffset } = gatedNote(server.path, 'postgresql:lwlock__acquire')
  const tracer = newTracer(t)
  assert.equal(counterValue(server.pid, server.path, refCtrOffset), 0)

  // The same instruction without its semaphore, as a tool attaches that knows nothing of semaphores: never reached.
  const unaware = await tracer.attach(`uprobe:${server.path}:0x${fileOffset.toString(16)}`)
  await server.psql(QUERIES)
  await detachComplete(unaware, 0)

  const probe = await tracer.attach(`usdt:${server.path}:postgresql:lwlock__acquire`, { strings: [0] })
  const hits = collect(probe)
  assert.equal(counterValue(server.pid, server.path, refCtrOffset), 1)
  await server.psql(QUERIES)
  await probe.detach()
  assert.equal(counterValue(server.pid, server.path, refCtrOffset), 0)
  const { hits: count, delivered, lost } = probe.stats()
  assert.ok(count > 0)
  assert.deepEqual([delivered, lost, hits.length], [count, 0, count])
  assert.ok(hits.every((hit) => typeof hit.args[0] === 'string' && /^\w+$/.test(hit.args[0])))
  assert.ok(hits.some((hit) => hit.args[0] === 'ProcArray'))
})

for (const registration of REGISTRATIONS) {
  test(`postgresql:* attaches every probe of the server at once (${registration})`, POSTGRES_15, async (t) => {
    const server = await Postgres.start(t)
    const notes = notesOf(server.path)
    const probe = await newTracer(t).attach(`usdt:${server.path}:postgresql:*`, { registration })
    // So many perf events take their time to close, and that is said.
    assert.deepEqual(
      probe.warnings.map((warning) => warning.split(',')[0]),
      registration === 'multi' ? [] : ['71 sites need a perf event each'],
    )
    assert.deepEqual(probe.sites.map((site) => site.fileOffset).sort(), notes.map((note) => note.fileOffset).sort())
    assert.equal(new Set(probe.sites.map((site) => site.probe)).size, 57)
    assert.ok(probe.sites.every((site) => site.targets.length > 0 && site.targets.every(({ state }) => state === 'armed')))
    const sharing = new Map<bigint | null, number>()
    for (const { refCtrOffset } of notes) sharing.set(refCtrOffset, (sharing.get(refCtrOffset) ?? 0) + 1)
    for (const [offset, sites] of sharing) assert.equal(counterValue(server.pid, server.path, offset ?? 0n), sites)

    await server.psql(QUERIES)
    await probe.detach()

    const counts = new Map(probe.statsByName().map(({ probe: name, hits }) => [name, hits]))
    assert.equal(counts.get('usdt:postgresql:query__start'), 50)
    assert.equal(counts.get('usdt:postgresql:query__done'), 50)
    const { hits, filtered, delivered, lost } = probe.stats()
    assert.equal(hits, filtered + delivered + lost)
    for (const { name, fileOffset, refCtrOffset } of notes) {
      assert.equal(isArmed(server.pid, server.path, fileOffset), false, name)
      assert.equal(counterValue(server.pid, server.path, refCtrOffset ?? 0n), 0, name)
    }
    assert.equal(await server.psql(['select 1']), '1\n')
  })
}
