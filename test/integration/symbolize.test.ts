/**
 * What the addresses of stacks are: in libraries, in stripped files with debug symbols elsewhere, in code that a JIT compiler made, and in processes that are gone.
 */
import assert from 'node:assert/strict'
import { copyFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { Worker } from 'node:worker_threads'
import type { Hit, StackFrame } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { functionOffset } from '../support/notes.js'
import { buildIdOf, run, strippedRoot } from '../support/stripped.js'
import { Target } from '../support/target.js'
import { type Cleanup, freshCopy } from '../support/temp.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

function names(frames: readonly StackFrame[]): (string | null)[] {
  return frames.map(({ symbol }) => symbol)
}

/** The names from the innermost one to `last`. */
function until(frames: readonly StackFrame[], last: string): (string | null)[] {
  return names(frames).slice(0, names(frames).indexOf(last) + 1)
}

async function framesOf(hit: Hit | undefined): Promise<readonly StackFrame[]> {
  assert.ok(hit !== undefined)
  return hit.symbolize()
}

test('a library that was loaded after the attach has its names, those without a dynamic symbol too', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const library = buildTarget(t, 'stacks-lib', 'shared')
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true })
  const hits = collect(probe)
  assert.equal(await target.ask(`load ${library}`), 'loaded')
  assert.equal(await target.askNumber('through 3'), 3)
  await detachComplete(probe, 3)
  const frames = await framesOf(hits[2])
  assert.deepEqual(until(frames, 'main'), ['leaf', 'back', 'lib_hidden', 'lib_outer', 'command', 'main'])
  assert.deepEqual(
    frames.slice(0, 6).map(({ module }) => module),
    [target.program, target.program, library, library, target.program, target.program],
  )
  assert.equal(frames[2]?.buildId, buildIdOf(library))
  assert.equal(frames[0]?.buildId, buildIdOf(target.program))
  assert.equal((frames[2]?.fileOffset ?? 0n) - (frames[2]?.offset ?? 0n), functionOffset(library, 'lib_hidden'))
})

test('a process that has exited is explained from what was read of it before', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true })
  const hits = collect(probe)
  await target.ask('chain 1')
  await target.end()
  rmSync(target.program)
  await detachComplete(probe, 1)
  assert.deepEqual(until(await framesOf(hits[0]), 'main'), ['leaf', 'chain_c', 'chain_b', 'chain_a', 'command', 'main'])
})

test('processes of one file, seen at their first stack, are told apart', GCC, async (t) => {
  const program = buildTarget(t, 'stacks')
  const probe = await newTracer(t).attach(`uprobe:${program}:leaf`, { stack: true })
  const hits = collect(probe)
  const targets = [await Target.start(t, program), await Target.start(t, program)]
  for (const target of targets) await target.ask('chain 1')
  for (const target of targets) await target.ask('ways 1')
  await detachComplete(probe, 6)
  for (const target of targets) {
    const own = hits.filter(({ pid }) => pid === target.pid)
    assert.equal(own.length, 3)
    const ways = await Promise.all(own.map(async (hit) => until(await hit.symbolize(), 'main')[1]))
    assert.deepEqual(ways, ['chain_c', 'way_left', 'way_right'])
  }
})

for (const linkage of ['pie', 'no-pie'] as const) {
  test(`a process that calls exec is explained before and after it (${linkage})`, GCC, async (t) => {
    const program = buildTarget(t, 'stacks', linkage)
    const target = await Target.start(t, program)
    const probe = await newTracer(t).attach(`uprobe:${program}:leaf`, { stack: true })
    const hits = collect(probe)
    await target.ask('chain 1')
    await waitFor('the first hit', () => hits.length === 1)
    const before = await framesOf(hits[0])
    assert.equal(await target.ask('again'), 'ready')
    await target.ask('ways 1')
    await waitFor('the other hits', () => hits.length === 3)
    const after = await framesOf(hits[1])
    await detachComplete(probe, 3)
    assert.deepEqual(until(before, 'main'), ['leaf', 'chain_c', 'chain_b', 'chain_a', 'command', 'main'])
    assert.deepEqual(until(after, 'main'), ['leaf', 'way_left', 'command', 'main'])
    assert.deepEqual(await framesOf(hits[0]), before)
  })
}

test('a signal handler is shown on top of what it interrupted, without a name that is not its own', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks', 'static'))
  const probe = await newTracer(t).attach('uprobe:leaf', { pid: target.pid, stack: true })
  const hits = collect(probe)
  await target.ask('signal')
  await detachComplete(probe, 1)
  const frames = await framesOf(hits[0])
  assert.deepEqual(names(frames).slice(0, 2), ['leaf', 'on_signal'])
  // The kernel's trampoline on arm64 has no name here; on x86-64 it is a function of libc.
  assert.equal(frames[2]?.symbol, process.arch === 'arm64' ? null : '__restore_rt', JSON.stringify(names(frames)))
})

const TOOLS = needs({ programs: ['gcc', 'strip', 'objcopy', 'readelf', 'chroot'] })

test('a stripped file is explained by the file of its debug symbols in the root of the process', TOOLS, async (t) => {
  const { root, symbols, place } = strippedRoot(t)
  copyFileSync(symbols, place)
  const target = await Target.start(t, 'chroot', { args: [root, '/stacks'] })
  const probe = await newTracer(t).attach('usdt:s:middle', { pid: target.pid, stack: true })
  const hits = collect(probe)
  await target.ask('usdt 1')
  await detachComplete(probe, 1)
  const frames = await framesOf(hits[0])
  assert.deepEqual(until(frames, 'main'), ['middle', 'command', 'main'])
  assert.equal(frames[0]?.module, join(root, 'stacks'))
})

for (const [what, spoil] of [
  ['are not there', () => undefined],
  ['are those of another file', (t: Cleanup, place: string) => copyFileSync(buildTarget(t, 'func'), place)],
  ['are no ELF file', (_: Cleanup, place: string) => writeFileSync(place, '\x7fELFnonsense')],
] as const) {
  test(`a stripped file whose debug symbols ${what} has no names, but places`, TOOLS, async (t) => {
    const { root, place } = strippedRoot(t)
    const program = join(root, 'stacks')
    spoil(t, place)
    const target = await Target.start(t, 'chroot', { args: [root, '/stacks'] })
    const probe = await newTracer(t).attach('usdt:s:middle', { pid: target.pid, stack: true })
    const hits = collect(probe)
    await target.ask('usdt 1')
    await detachComplete(probe, 1)
    const frames = await framesOf(hits[0])
    assert.ok(frames.length >= 3)
    for (const { symbol, module, fileOffset } of frames.slice(0, 3)) {
      assert.deepEqual({ symbol, module, place: fileOffset !== null }, { symbol: null, module: program, place: true })
    }
    assert.equal(frames[0]?.fileOffset, hits[0]?.site.fileOffset)
  })
}

const JIT_PROGRAM = `
const numbers = [3, 1, 2]
function innerJs(separator) { return numbers.join(separator).length }
function outerJs(separator) { return innerJs(separator) + 1 }
let sum = 0
for (let i = 0; i < 20000; i++) sum += outerJs(i % 10)
console.log('ready')
require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => {
  for (let i = 0; i < Number(line); i++) outerJs(7)
  console.log('executed ' + line)
})`

test('JavaScript functions are named by the map that V8 writes', needs({ programs: ['nm'] }), async (t) => {
  const node = freshCopy(t, process.execPath, 'node')
  if (!run('nm', node).includes(' Builtins_ArrayPrototypeJoin\n')) return t.skip('this node has no symbols of its builtins')
  const args = ['--perf-basic-prof', '--interpreted-frames-native-stack', '-e', JIT_PROGRAM]
  const target = await Target.start(t, node, { args })
  t.after(() => rmSync(`/tmp/perf-${target.pid}.map`, { force: true }))
  const probe = await newTracer(t).attach('uprobe:Builtins_ArrayPrototypeJoin', { pid: target.pid, stack: true })
  const hits = collect(probe)
  assert.equal(await target.askNumber('2'), 2)
  await detachComplete(probe, 2)
  const frames = await framesOf(hits[0])
  assert.equal(frames[0]?.symbol, 'Builtins_ArrayPrototypeJoin')
  const js = frames.filter(({ symbol }) => symbol?.startsWith('JS:') ?? false)
  // The optimizer may have put the inner function into the outer one.
  assert.match(js.map(({ symbol }) => symbol).join('\n'), /^JS:[~*^+]?(innerJs|outerJs) /)
  assert.ok(js.some(({ symbol }) => symbol?.includes('outerJs')))
  assert.ok(names(frames).includes('Builtins_InterpreterEntryTrampoline'))
  assert.ok(names(frames).includes('uv_run'))
})

test('stacks are explained inside a Worker, and its end leaves no thread behind', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'stacks'))
  const inSources = __filename.endsWith('.ts')
  const program = `
    ${inSources ? "require('tsx/cjs')" : ''}
    const { parentPort } = require('node:worker_threads')
    const { Tracer } = require(${JSON.stringify(join(__dirname, '..', '..', 'lib', inSources ? 'index.ts' : 'index.js'))})
    ;(async () => {
      const tracer = new Tracer()
      const probe = await tracer.attach('uprobe:leaf', { pid: ${target.pid}, stack: true })
      parentPort.postMessage('attached')
      for await (const hit of probe) {
        parentPort.postMessage((await hit.symbolize()).map(({ symbol }) => symbol))
        break
      }
      await tracer.close()
    })()`
  const worker = new Worker(program, { eval: true })
  t.after(() => worker.terminate())
  const messages: unknown[] = []
  const ended = new Promise<number>((resolve, reject) => {
    worker.once('exit', resolve)
    worker.once('error', reject)
  })
  worker.on('message', (message) => {
    messages.push(message)
    if (message === 'attached') void target.ask('chain 1')
  })
  // It ends by itself: the symbolizing thread does not keep it.
  assert.equal(await ended, 0)
  const [, found] = messages
  assert.ok(Array.isArray(found))
  assert.deepEqual(found.slice(0, 6), ['leaf', 'chain_c', 'chain_b', 'chain_a', 'command', 'main'])
})
