/**
 * The counter's cell as JavaScript uses it, on a real program. counter_store_test.cc has the cases that a program would have to be made for.
 */
import assert from 'node:assert/strict'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { addonPath } from '../../lib/native.js'
import { type Cell, type CellOptions, cellOn, mappingOf, openCell } from '../counter/cells.js'
import { buildTarget } from '../support/build.js'
import { counterValue, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import type { Cleanup } from '../support/temp.js'
import { native } from './kernel.js'

const tracing = needs({ programs: ['gcc'] })

interface Running {
  readonly target: Target
  readonly program: string
  readonly refCtrOffset: bigint
  /** A cell on the counter of t:gated; what it expects can be made another thing. */
  cell(other?: Partial<CellOptions>): Cell
  /** The counter as others see it. */
  value(): number
}

async function start(t: Cleanup): Promise<Running> {
  const program = buildTarget(t, 'usdt')
  const { refCtrOffset } = gatedNote(program, 't:gated')
  const target = await Target.start(t, program)
  return {
    target,
    program,
    refCtrOffset,
    cell: (other) => openCell(t, target.pid, program, refCtrOffset, other),
    value: () => counterValue(target.pid, program, refCtrOffset),
  }
}

/** Every call on the cell throws with this errno. */
function assertRefused(cell: Cell, code: string): void {
  const error = { code, syscall: 'counter_store' }
  assert.throws(() => cell.read(), error)
  assert.throws(() => cell.setMsb(), error)
  assert.throws(() => cell.clearMsb(), error)
  assert.throws(() => cell.replace(0, 1), error)
}

test('switches a probe of a program on and off', tracing, async (t) => {
  const { target, cell, value } = await start(t)
  const counter = cell()
  assert.equal(await target.ask('gated 3'), 'executed 0')
  assert.equal(counter.setMsb(), 0x8000)
  assert.equal(counter.setMsb(), 0x8000)
  assert.equal(counter.read(), 0x8000)
  assert.equal(value(), 0x8000)
  assert.equal(await target.ask('gated 3'), 'executed 3')
  assert.equal(counter.clearMsb(), 0)
  assert.equal(counter.clearMsb(), 0)
  assert.equal(value(), 0)
  assert.equal(await target.ask('gated 3'), 'executed 0')
})

test('keeps a count that somebody else made', tracing, async (t) => {
  const { target, program, refCtrOffset, cell, value } = await start(t)
  writeCounter(target.pid, program, refCtrOffset, 0x00ff)
  assert.equal(cell().setMsb(), 0x80ff)
  assert.equal(cell().clearMsb(), 0x00ff)
  assert.equal(value(), 0x00ff)
})

test('refuses a high byte that is not its own, and leaves it', tracing, async (t) => {
  const { target, program, refCtrOffset, cell, value } = await start(t)
  writeCounter(target.pid, program, refCtrOffset, 0x4001)
  const counter = cell()
  assert.throws(() => counter.setMsb(), { code: 'ERANGE', syscall: 'counter_store' })
  assert.throws(() => counter.clearMsb(), { code: 'ERANGE', syscall: 'counter_store' })
  assert.equal(counter.read(), 0x4001)
  assert.equal(value(), 0x4001)
})

test('replaces a value only if it is the expected one', tracing, async (t) => {
  const { target, program, refCtrOffset, cell, value } = await start(t)
  writeCounter(target.pid, program, refCtrOffset, 0xffff)
  const counter = cell()
  assert.throws(() => counter.replace(0xfffe, 0), { code: 'EBUSY', syscall: 'counter_store' })
  assert.equal(value(), 0xffff)
  assert.equal(counter.replace(0xffff, 2), undefined)
  assert.equal(value(), 2)
})

test('refuses an address where something else is mapped', tracing, async (t) => {
  const { target, program, refCtrOffset, cell, value } = await start(t)
  const { start: first, offset, device, inode } = mappingOf(target.pid, program, refCtrOffset)
  assertRefused(cell({ inode: inode + 1n }), 'ESTALE')
  assertRefused(cell({ device: `${device}1` }), 'ESTALE')
  assertRefused(cell({ device: '00:00', inode: 0n }), 'ESTALE')
  assertRefused(cell({ fileOffset: refCtrOffset + 2n }), 'ESTALE')
  assertRefused(cell({ address: 0x10n }), 'EFAULT')
  assertRefused(cell({ address: 0xffff_ffff_ffff_fff0n }), 'EFAULT')
  assertRefused(cell({ address: first + refCtrOffset - offset + 1n, fileOffset: refCtrOffset + 1n }), 'EINVAL')
  assert.equal(value(), 0)
})

test('refuses memory that the program cannot write', tracing, async (t) => {
  const { target, program, cell } = await start(t)
  const { start: address, offset: fileOffset } = mappingOf(target.pid, program, gatedNote(program, 't:gated').fileOffset, 'x')
  assertRefused(cell({ address, fileOffset }), 'EACCES')
  assert.equal(await target.ask('plain 1'), 'executed 1')
})

test('writes a counter in memory that is no file’s', tracing, async (t) => {
  const { target, cell } = await start(t)
  // The lowest word of the stack, which the program has not come to yet.
  const stack = /^([0-9a-f]+)-\S+ rw-p \S+ 00:00 0 +\[stack\]$/m.exec(readFileSync(`/proc/${target.pid}/maps`, 'utf8'))?.[1]
  assert.ok(stack)
  const counter = cell({ address: BigInt(`0x${stack}`), device: '00:00', inode: 0n, fileOffset: 77n })
  assert.equal(counter.setMsb(), 0x8000)
  assert.equal(counter.clearMsb(), 0)
})

test('refuses when the program has become another one', tracing, async (t) => {
  const { target, cell } = await start(t)
  const counter = cell()
  assert.equal(counter.setMsb(), 0x8000)
  assert.equal(await target.ask('exec'), 'ready')
  assertRefused(counter, 'ESRCH')
  assert.equal(await target.ask('gated 1'), 'executed 0')
})

test('refuses when the process has ended', tracing, async (t) => {
  const { target, cell } = await start(t)
  const counter = cell()
  await target.end()
  assertRefused(counter, 'ESRCH')
})

test('switches a probe of the own process on and off', needs(), (t) => {
  const addon = addonPath()
  const { refCtrOffset } = gatedNote(addon, 'uprobe:demo')
  const counter = openCell(t, process.pid, addon, refCtrOffset, { own: true })
  assert.equal(native.fireDemo(1, 2n, 'off'), false)
  assert.equal(counter.setMsb(), 0x8000)
  assert.equal(native.demoSemaphore(), 0x8000)
  assert.equal(native.fireDemo(1, 2n, 'on'), true)
  counter.replace(0x8000, 0x8003)
  assert.equal(counter.clearMsb(), 3)
  counter.replace(3, 0)
  assert.equal(native.fireDemo(1, 2n, 'off'), false)
})

test('refuses the counter of another process as its own, instead of crashing', tracing, async (t) => {
  const { target, cell } = await start(t)
  const counter = cell({ own: true })
  for (const call of [() => counter.setMsb(), () => counter.clearMsb(), () => counter.read(), () => counter.replace(0, 1)]) {
    assert.throws(call, ({ code }: NodeJS.ErrnoException) => code === 'EFAULT' || code === 'ESTALE')
  }
  assert.equal(await target.ask('gated 1'), 'executed 0')
})

test('refuses arguments of another kind', () => {
  const fd = openSync('/proc/self/maps', 'r')
  const good = { memFd: fd, mapsFd: fd, address: 2n, device: '08:01', inode: 1n, fileOffset: 0n, own: false }
  const bad: Array<Partial<Record<keyof CellOptions, unknown>>> = [
    { memFd: -1 },
    { mapsFd: '3' },
    { address: 2 },
    { address: -2n },
    { address: 1n << 64n },
    { device: 8 },
    ...['', '08', ':', '08:', ':01', '08:01:02', '8-1', '0x8:1', '123456789:1'].map((device) => ({ device })),
    { inode: 1 },
    { fileOffset: -1n },
    { own: 1 },
  ]
  for (const other of bad) {
    assert.throws(() => cellOn({ ...good, ...other } as CellOptions).read(), { name: 'TypeError' }, JSON.stringify(other, String))
  }
  const counter = cellOn(good)
  for (const [expected, value] of [
    [-1, 0],
    [0, 0x10000],
    [0.5, 0],
    [0, Number.NaN],
  ] as const) {
    assert.throws(() => counter.replace(expected, value), { name: 'TypeError' })
  }
  closeSync(fd)
})
