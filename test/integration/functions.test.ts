/**
 * Probes on functions and on their return: in a C program, in libc, in a running node, in the own process.
 */
import assert from 'node:assert/strict'
import { copyFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import test from 'node:test'
import { loadNative } from '../../lib/native.js'
import { buildTarget } from '../support/build.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { functionOffset } from '../support/notes.js'
import { Target } from '../support/target.js'
import { freshCopy, tempDirectory } from '../support/temp.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'

const GCC = needs({ programs: ['gcc'] })
const LIBC = process.arch === 'arm64' ? '/lib/aarch64-linux-gnu/libc.so.6' : '/lib/x86_64-linux-gnu/libc.so.6'

test('a function probe gives the arguments by the calling convention', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const probe = await newTracer(t).attach('uprobe:f_six', { pid: target.pid })
  const hits = collect(probe)
  assert.equal(isArmed(target.pid, target.program, functionOffset(target.program, 'f_six')), true)
  assert.equal(await target.ask('six'), 'returned -21')
  await detachComplete(probe, 1)
  assert.equal(isArmed(target.pid, target.program, functionOffset(target.program, 'f_six')), false)
  assert.deepEqual(
    hits[0]?.args.slice(0, 6).map((value) => (typeof value === 'bigint' ? BigInt.asIntN(64, value) : value)),
    [1n, -2n, 3n, -4n, 5n, -6n],
  )
  assert.equal(hits[0]?.probe, 'uprobe:f_six')
})

test('a string argument of a function is read at the hit', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const probe = await newTracer(t).attach('uprobe:f_text', { pid: target.pid, strings: [0] })
  const hits = collect(probe)
  await target.ask('text first')
  await target.ask('text second')
  await detachComplete(probe, 2)
  assert.deepEqual(
    hits.map((hit) => hit.args[0]),
    ['first', 'second'],
  )
})

test('a return probe gives the return value, also of a function that calls itself', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const tracer = newTracer(t)
  const negative = await tracer.attach('uretprobe:f_negative', { pid: target.pid })
  const depth = await tracer.attach('uretprobe:f_depth', { pid: target.pid })
  const text = await tracer.attach('uretprobe:f_text', { pid: target.pid, strings: [0] })
  const [negatives, depths, texts] = [collect(negative), collect(depth), collect(text)]
  assert.equal(await target.ask('negative'), 'returned -1')
  assert.equal(await target.ask('depth 5'), 'returned 5')
  assert.equal(await target.ask('text back'), 'returned back')
  await detachComplete(negative, 1)
  await detachComplete(depth, 6)
  await detachComplete(text, 1)
  const asInt = (value: unknown): number => Number(BigInt.asIntN(32, BigInt(value as bigint)))
  assert.equal(asInt(negatives[0]?.args[0]), -1)
  assert.deepEqual(
    depths.map((hit) => asInt(hit.args[0])),
    [0, 1, 2, 3, 4, 5],
  )
  assert.equal(texts[0]?.args[0], 'back')
  assert.equal(texts[0]?.probe, 'uretprobe:f_text')
})

test('the same instruction by symbol and by offset in the file', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const tracer = newTracer(t)
  const offset = functionOffset(target.program, 'f_add')
  const bySymbol = await tracer.attach(`uprobe:${target.program}:f_add`, { pid: target.pid })
  const byOffset = await tracer.attach(`uprobe:${target.program}:0x${offset.toString(16)}`, { pid: target.pid })
  assert.equal(bySymbol.sites[0]?.fileOffset, offset)
  assert.equal(byOffset.sites[0]?.fileOffset, offset)
  await target.ask('add 7')
  await detachComplete(bySymbol, 7)
  await detachComplete(byOffset, 7)
})

test('a pattern of functions, each counted by its name', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const probe = await newTracer(t).attach('uprobe:f_?e*', { pid: target.pid })
  assert.deepEqual(probe.sites.map((site) => site.probe).sort(), ['uprobe:f_depth', 'uprobe:f_negative', 'uprobe:f_text'])
  await target.ask('negative')
  await target.ask('depth 2')
  await target.ask('add 9')
  await detachComplete(probe, 4)
  assert.deepEqual(Object.fromEntries(probe.statsByName().map((stats) => [stats.probe, stats.delivered])), {
    'uprobe:f_negative': 1,
    'uprobe:f_depth': 3,
    'uprobe:f_text': 0,
  })
})

test('malloc of libc and its return: every call with its size, every block with its address', GCC, async (t) => {
  const program = buildTarget(t, 'func')
  // A copy, since every process of the machine maps the real one.
  const libc = join(dirname(program), 'libc.so.6')
  copyFileSync(LIBC, libc)
  const target = await Target.start(t, program, { env: { ...process.env, LD_LIBRARY_PATH: dirname(program) } })
  const tracer = newTracer(t)
  const entry = await tracer.attach(`uprobe:${libc}:malloc`, { pid: target.pid })
  const exit = await tracer.attach('uretprobe:malloc', { path: libc, pid: target.pid })
  const [entries, exits] = [collect(entry), collect(exit)]
  const last = await target.askNumber('allocate 100 4242')
  await detachComplete(entry, 100)
  await detachComplete(exit, 100)
  assert.ok(entries.every((hit) => BigInt(hit.args[0] as bigint) === 4242n))
  assert.equal(new Set(exits.map((hit) => hit.args[0])).size, 100)
  assert.equal(exits.at(-1)?.args[0], BigInt(last))
})

/** Obeys `chdir N` and `workers N` in the way of the C targets. */
const NODE_PROGRAM = `
const { Worker } = require('node:worker_threads')
const { once } = require('node:events')
const lines = require('node:readline').createInterface({ input: process.stdin })
lines.on('line', async (line) => {
  const [name, count] = line.split(' ')
  for (let i = 0; i < Number(count); i++) {
    if (name === 'chdir') process.chdir('/proc')
    else await once(new Worker('0', { eval: true }), 'exit')
  }
  console.log('done')
})
console.log('ready')
`

test('a running node: uv_chdir by its name, a C++ function by its mangled name, uv_run in Workers', needs(), async (t) => {
  const target = await Target.start(t, freshCopy(t, process.execPath), { args: ['-e', NODE_PROGRAM] })
  const newWorker = '_ZN4node6worker6Worker3NewERKN2v820FunctionCallbackInfoINS2_5ValueEEE'
  const tracer = newTracer(t)
  const chdir = await tracer.attach('uprobe:uv_chdir', { pid: target.pid, strings: [0] })
  const worker = await tracer.attach(`uprobe:${newWorker}`, { pid: target.pid })
  const run = await tracer.attach('uprobe:uv_run', { pid: target.pid })
  const runReturn = await tracer.attach('uretprobe:uv_run', { pid: target.pid })
  const [chdirs, runs] = [collect(chdir), collect(run)]

  assert.equal(await target.ask('chdir 10'), 'done')
  assert.equal(await target.ask('workers 3'), 'done')

  await detachComplete(chdir, 10)
  assert.deepEqual(
    chdirs.map((hit) => hit.args[0]),
    new Array(10).fill('/proc'),
  )
  await detachComplete(worker, 3)
  await run.detach()
  await runReturn.detach()
  const threads = new Set(runs.map((hit) => hit.tid))
  assert.equal(threads.size, 3, 'uv_run was entered by each Worker')
  assert.equal(threads.has(target.pid), false)
  assert.equal(runReturn.stats().hits, run.stats().hits)
  assert.equal(await target.ask('chdir 1'), 'done')
})

test('the own process: a function, and the USDT probe of the addon on another thread', needs(), async (t) => {
  const tracer = newTracer(t)
  const chdir = await tracer.attach('uprobe:uv_chdir', { pid: process.pid, strings: [0] })
  const selfTest = await tracer.attach('usdt:uprobe:selftest', { pid: process.pid })
  const hits = collect(selfTest)
  const [home, away] = [process.cwd(), tempDirectory(t)]
  process.chdir(away)
  process.chdir(home)
  loadNative().fireSelfTest(1000)
  await detachComplete(chdir, 2)
  await detachComplete(selfTest, 1000)
  assert.equal(new Set(hits.map((hit) => hit.tid)).size, 1)
  assert.notEqual(hits[0]?.tid, process.pid)
})
