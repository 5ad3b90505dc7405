/**
 * Stacks on the command line: below each hit, in JSON, and folded for flame graphs.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import test from 'node:test'
import { promisify } from 'node:util'
import { buildTarget } from '../support/build.js'
import { assertSafeForTerminal, Cli, failed, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { needs } from '../support/needs.js'
import { functionOffset } from '../support/notes.js'
import { Target } from '../support/target.js'

const GCC = needs({ programs: ['gcc'] })
const CHAIN = ['leaf', 'chain_c', 'chain_b', 'chain_a', 'command', 'main']

test('trace --stack prints a line a frame below each hit', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const cli = Cli.start(t, ['trace', 'uprobe:leaf', '-p', String(target.pid), '--stack', '-n', '1'])
  await cli.attached()
  await target.ask('chain 1')
  const output = succeeded(await cli.ended)
  assertSafeForTerminal(output)
  const [hit = '', ...frames] = linesOf(output)
  assert.match(hit, / {2}uprobe:leaf/)
  const shown = frames.map((line) => /^ {4}(\w+)\+0x[0-9a-f]+ \((.*)\)$/.exec(line)?.slice(1))
  assert.deepEqual(
    shown.slice(0, CHAIN.length),
    CHAIN.map((name) => [name, target.program]),
  )
  assert.equal(frames[0], `    leaf+0x0 (${target.program})`)
})

test('trace --stack --json has the frames of each hit', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const cli = Cli.start(t, ['trace', 'uprobe:leaf', '-p', String(target.pid), '--stack', '--json', '-n', '2'])
  await cli.attached()
  await target.ask('chain 2')
  const [first, second, summary] = jsonOf(succeeded(await cli.ended)) as Array<{ stack: Array<Record<string, unknown>> }>
  assert.deepEqual(first?.stack, second?.stack)
  assert.deepEqual(first?.stack.map(({ symbol }) => symbol).slice(0, CHAIN.length), CHAIN)
  const { address, ...rest } = first?.stack[0] ?? {}
  assert.match(String(address), /^0x[0-9a-f]+$/)
  const { buildId, ...place } = rest
  assert.match(String(buildId), /^[0-9a-f]{40}$/)
  const fileOffset = `0x${functionOffset(target.program, 'leaf').toString(16)}`
  assert.deepEqual(place, { symbol: 'leaf', offset: '0x0', module: target.program, fileOffset })
  assert.deepEqual(summary, { summary: [{ probe: 'uprobe:leaf', hits: 2, filtered: 0, delivered: 2, lost: 0 }] })
})

/** Folded lines without what called main: which frames libc has, only libc knows. */
function fromMain(lines: readonly string[]): string[] {
  return lines.map((line) => line.replace(/^stacks;(?:.*;)?main;/, 'stacks;main;'))
}

const FOLDED = [
  'stacks;main;command;chain_a;chain_b;chain_c;leaf 5',
  'stacks;main;command;way_left;leaf 3',
  'stacks;main;command;way_right;leaf 3',
]

test('trace --folded prints each stack with its count, and nothing else', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const cli = Cli.start(t, ['trace', 'uprobe:leaf', '-p', String(target.pid), '--folded'])
  await cli.attached()
  await target.ask('chain 5')
  await target.ask('ways 3')
  cli.kill('SIGINT')
  const { code, stdout, stderr } = await cli.ended
  assert.equal(code, 0)
  assert.deepEqual(fromMain(linesOf(stdout)), FOLDED)
  assert.deepEqual(linesOf(stderr).slice(1), ['uprobe:leaf: 11 hits, 11 delivered, 0 lost'])
})

test('trace --folded of a process that exits still has its names', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const cli = Cli.start(t, ['trace', 'uprobe:leaf', '-p', String(target.pid), '--folded'])
  await cli.attached()
  await target.ask('chain 5')
  await target.ask('ways 3')
  await target.end()
  const { code, stdout } = await cli.ended
  assert.equal(code, 0)
  assert.deepEqual(fromMain(linesOf(stdout)), FOLDED)
})

test('--folded and --json are not for each other', async (t) => {
  failed(await uprobe(t, 'trace', 'uprobe:x', '-p', '1', '--folded', '--json').then(withoutJson), 2, 'ERR_UPROBE_BAD_OPTION')
})

/** With --json a failure is an object; the helper expects the line for people. */
function withoutJson(end: Awaited<ReturnType<typeof uprobe>>): typeof end {
  const { error } = JSON.parse(end.stderr) as { error: { code: string; message: string } }
  return { ...end, stderr: `uprobe: ${error.message} (${error.code})\n` }
}

test('examples/flame-graph.mjs prints folded stacks', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const example = join(__dirname, '..', '..', 'examples', 'flame-graph.mjs')
  const run = promisify(execFile)(process.execPath, [example, String(target.pid), 'uprobe:leaf', '2'])
  const attached = new Promise((resolve) => run.child.stderr?.once('data', resolve))
  await attached
  await target.ask('chain 5')
  await target.ask('ways 3')
  const { stdout } = await run
  assert.deepEqual(fromMain(linesOf(stdout)).sort(), FOLDED)
})
