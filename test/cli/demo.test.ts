/**
 * `uprobe demo`: the package traces itself, from nothing.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import test from 'node:test'
import { Cli, jsonOf, linesOf, uprobe } from '../support/cli.js'
import { needs } from '../support/needs.js'
import { waitFor } from '../support/wait.js'

const LINUX = needs()

test('with --json: 20 hits with the fields of trace, the summary, and the counter on standard error', LINUX, async (t) => {
  const { code, stdout, stderr } = await uprobe(t, 'demo', '--json')
  assert.equal(code, 0)
  assert.deepEqual(linesOf(stderr), ['counter before: 0', 'attached 1 site of usdt:uprobe:demo', 'counter during: 1', 'counter after: 0'])
  const objects = jsonOf(stdout)
  const hits = objects.slice(0, -1) as Array<Record<string, unknown>>
  assert.deepEqual(
    hits.map(({ args }) => args),
    Array.from({ length: 20 }, (_, index) => [index, String(2n ** 60n + BigInt(index)), `hit number ${index}`]),
  )
  for (const hit of hits) {
    assert.deepEqual(Object.keys(hit), ['time', 'pid', 'tid', 'cpu', 'comm', 'probe', 'path', 'args'])
    assert.equal(hit.probe, 'usdt:uprobe:demo')
    assert.match(String(hit.path), /uprobe[^/]*\.node$/)
  }
  assert.deepEqual(objects.at(-1), { summary: [{ probe: 'usdt:uprobe:demo', hits: 20, filtered: 0, delivered: 20, lost: 0 }] })
})

test('for people: the counter before, during and after, a line each, the hits between them, and the counts', LINUX, async (t) => {
  const { code, stdout, stderr } = await uprobe(t, 'demo')
  assert.deepEqual([code, stderr], [0, 'attached 1 site of usdt:uprobe:demo\n'])
  const lines = linesOf(stdout)
  assert.equal(lines.length, 24)
  assert.deepEqual(lines.slice(0, 2), ['counter before: 0', 'counter during: 1'])
  lines.slice(2, 22).forEach((line, index) => {
    assert.ok(line.endsWith(`  usdt:uprobe:demo  ${index}, ${2n ** 60n + BigInt(index)}, "hit number ${index}"`), line)
  })
  assert.deepEqual(lines.slice(22), ['counter after: 0', '20 hits, 20 delivered, 0 lost'])
})

test('a reader that leaves after a line ends it quietly with 0', LINUX, async (t) => {
  const script = `{ "$0" "$@"; echo "exit $?" >&2; } | head -n 1`
  const { stdout, stderr } = await Cli.start(t, ['demo'], { prefix: ['sh', '-c', script] }).ended
  assert.equal(stdout, 'counter before: 0\n')
  assert.deepEqual(linesOf(stderr), ['attached 1 site of usdt:uprobe:demo', 'exit 0'])
})

test('when it is killed, its child ends by itself', LINUX, async (t) => {
  const cli = Cli.start(t, ['demo', '--json'])
  const [line = ''] = await cli.lines(1)
  const { pid } = JSON.parse(line) as { pid: number }
  assert.ok(existsSync(`/proc/${pid}/exe`))
  cli.kill('SIGKILL')
  // Where nobody reaps orphans it stays as a zombie, which has no program any more.
  await waitFor('the child to end', () => !existsSync(`/proc/${pid}/exe`))
})
