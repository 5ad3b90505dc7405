/**
 * Operands of every form, read by the kernel at real hits (test/targets/operands.c): what reaches JavaScript is exactly what was in the registers and in memory.
 */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import type { AttachOptions } from '../../lib/index.js'
import { buildTarget, type Linkage } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'

const possible = needs({ programs: ['gcc'] })
const here = process.arch === 'x64' ? possible : { skip: 'the operands are those of x86-64' }

/** Attaches to `usdt:t:NAME`, gives the commands, and returns the arguments of their hits. */
async function argumentsOf(
  t: TestContext,
  name: string,
  commands: readonly string[],
  options: AttachOptions = {},
  linkage: Linkage = 'pie',
) {
  const target = await Target.start(t, buildTarget(t, 'operands', linkage))
  const probe = await newTracer(t).attach(`usdt:t:${name}`, { pid: target.pid, ...options })
  const hits = collect(probe)
  for (const command of commands) assert.equal(await target.ask(command), 'fired')
  await detachComplete(probe, commands.length)
  return hits
}

const RAX = 0x8182_8384_8586_8788n
const MOST_NEGATIVE = -(1n << 63n)

const expected = {
  registers: [
    ...[RAX, BigInt.asIntN(64, RAX), 0x8586_8788, 0x8586_8788 - 2 ** 32, 0x8788, 0x8788 - 2 ** 16, 0x88, 0x88 - 256, 0x87, 0x87 - 256],
    ...[0xf7, 0xf7 - 256, 0x18, 0x1718, 0x2526_2728, 0x3738, 0x38],
    ...[-2n, -2, -2, -2, 0xffff_ffff_ffff_fffen],
    ...[0x8586_8788, 0x87],
  ],
  memory: [
    ...[RAX, BigInt.asIntN(64, RAX), 0x8586_8788, 0x8182_8384 - 2 ** 32, 0x8788, 0x8182 - 2 ** 16, 0x81, 0x81 - 256],
    ...[0x86, 5n, -10n, 5n, 0x7fff_ffff_ffff_ffffn],
    ...[-3n, 77],
  ],
  variables: [RAX, 5, -10n, -10, 0x81, { unsupported: '8@nowhere(%rip)' }],
  floats: [Math.PI, 1.5, 42, -2.5, { unsupported: '8f@%xmm0' }],
  constants: [-1, 0xffff_ffff, 1_572_864, 0n, MOST_NEGATIVE, 0x41, { unsupported: '8@%fs:40' }, 7],
  unreadable: [{ unreadable: '0x10' }, { unreadable: '0x8' }, { unreadable: '0x7ffffffff000' }, { unreadable: '0xffff800000000020' }, 16],
}

for (const registration of REGISTRATIONS) {
  for (const [name, values] of Object.entries(expected)) {
    test(`reads operands exactly: ${name} (${registration})`, here, async (t) => {
      const hits = await argumentsOf(t, name, [name, name], { registration })
      assert.deepEqual(
        hits.map((hit) => hit.args),
        [values, values],
      )
    })
  }
}

test('reads variables of a program that is not position-independent', here, async (t) => {
  const [hit] = await argumentsOf(t, 'variables', ['variables'], {}, 'no-pie')
  assert.deepEqual(hit?.args, expected.variables)
})

test('one program reads the variables of processes that map the file at different addresses', here, async (t) => {
  const program = buildTarget(t, 'operands')
  const targets = [await Target.start(t, program), await Target.start(t, program)]
  const probe = await newTracer(t).attach(`usdt:${program}:t:variables`)
  const hits = collect(probe)
  for (const target of targets) await target.ask('variables')
  await detachComplete(probe, 2)
  assert.deepEqual(
    hits.map((hit) => [hit.pid, hit.args]),
    targets.map((target) => [target.pid, expected.variables]),
  )
})

/** A string of x, cut at the limit. */
function shown(length: number, limit: number): unknown {
  return length <= limit ? 'x'.repeat(length) : { string: 'x'.repeat(limit), truncated: true }
}

for (const limit of [1, 16, 256, 509, 511, 4096]) {
  test(`reads strings around a limit of ${limit} that end where the memory ends`, here, async (t) => {
    const lengths = [0, 1, limit - 1, limit, limit + 1, limit + 2, 254, 255, 256, 3 * limit]
    const commands = lengths.map((length) => `text ${length}`)
    const hits = await argumentsOf(t, 'text', commands, { strings: [0, 1, 2], stringLimit: limit })
    assert.deepEqual(
      hits.map((hit) => hit.args),
      lengths.map((length) => [shown(length, limit), shown(length, limit), shown(length, limit), 3]),
    )
    for (const [index, hit] of hits.entries()) assert.equal(hit.bytes(1)?.toString(), 'x'.repeat(Math.min(lengths[index] ?? 0, limit)))
  })
}

test('a string that is cut in the middle of a character ends before it', here, async (t) => {
  const [hit] = await argumentsOf(t, 'text', ['text 20 é'], { strings: [0], stringLimit: 15 })
  assert.deepEqual(hit?.args[0], { string: 'é'.repeat(7), truncated: true })
  assert.deepEqual(hit?.bytes(0), Buffer.from('é'.repeat(8)).subarray(0, 15))
})

for (const stringLimit of [256, 4096]) {
  test(`shows a null pointer as unreadable, and the other arguments as they are (limit ${stringLimit})`, here, async (t) => {
    const hits = await argumentsOf(t, 'text', ['text null', 'text 3'], { strings: [1], stringLimit })
    assert.deepEqual(
      hits.map((hit) => hit.args.slice(1, 2).concat(hit.args.slice(3))),
      [
        [{ unreadable: '0x0' }, 3],
        ['xxx', 3],
      ],
    )
  })
}

test('shows a string whose pointer cannot be read by the address of the pointer', here, async (t) => {
  const [hit] = await argumentsOf(t, 'unreadable', ['unreadable'], { strings: [1, 4] })
  assert.deepEqual(hit?.args, [
    { unreadable: '0x10' },
    { unreadable: '0x8' },
    { unreadable: '0x7ffffffff000' },
    { unreadable: '0xffff800000000020' },
    { unreadable: '0x10' },
  ])
})

test('takes a constant for a pointer when it is asked for a string', here, async (t) => {
  const [hit] = await argumentsOf(t, 'constants', ['constants'], { strings: [3, 7] })
  assert.deepEqual(hit?.args[3], { unreadable: '0x0' })
  assert.deepEqual(hit?.args[7], { unreadable: '0x7' })
})

for (const [probe, filter, passes] of [
  ['registers', 'arg0 == 0x8182838485868788', true],
  ['registers', 'arg0 > 0x8182838485868788', false],
  ['registers', 'arg0 > -1', true], // unsigned: never negative
  ['registers', 'arg0 == -9114579201193998456', false], // the same bits, but another number
  ['registers', 'arg1 < 0', true],
  ['registers', 'arg1 == 0x8182838485868788', false],
  ['registers', 'arg1 < 0xffffffffffffffff', true],
  ['registers', 'arg3 == -2054781048', true],
  ['registers', 'arg3 < 0 && arg5 < 0 && arg7 < 0 && arg9 == -121', true],
  ['registers', 'arg8 == 0x87 && arg12 == 0x18', true],
  ['registers', 'arg17 == -2 && arg18 == -2 && arg19 == -2 && arg20 == -2', true],
  ['registers', 'arg21 == 0xfffffffffffffffe', true],
  ['registers', '!(arg12 == 0x18)', false],
  ['registers', 'arg12 == 0 || arg13 == 0x1718', true],
  ['registers', 'arg12 == 0x18 && arg13 == 0', false],
  ['registers', 'tid > 0 && pid > 0', true],
  ['registers', 'pid < 1 || tid == -1', false],
  ['memory', 'arg3 == -2122153084 && arg5 == -32382 && arg7 == -127', true],
  ['memory', 'arg10 == -10 && arg13 == -3', true],
  ['variables', 'arg2 >= -10 && arg2 <= -10', true],
  ['constants', 'arg0 == -1 && arg1 == 0xffffffff && arg5 == 65', true],
  ['unreadable', 'arg0 == 0 || arg4 != 16', false],
  ['unreadable', 'arg0 != 0 || arg4 == 16', true],
] as const) {
  test(`the filter ${filter} ${passes ? 'passes' : 'rejects'} a hit of t:${probe}`, here, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'operands'))
    const attached = await newTracer(t).attach(`usdt:t:${probe}`, { pid: target.pid, filter })
    const hits = collect(attached)
    await target.ask(probe)
    await attached.detach()
    const { hits: seen, filtered, delivered } = attached.stats()
    assert.deepEqual(
      { seen, filtered, delivered, shown: hits.length },
      passes ? { seen: 1, filtered: 0, delivered: 1, shown: 1 } : { seen: 1, filtered: 1, delivered: 0, shown: 0 },
    )
  })
}

test('a filter that cannot be compiled is refused before anything is attached', here, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'operands'))
  const tracer = newTracer(t)
  for (const [probe, filter, message] of [
    ['floats', 'arg0 > 3', /column 1: arg0 of usdt:t:floats is a floating-point number/],
    ['floats', 'arg4 > 3', /column 1: arg4 of usdt:t:floats cannot be read/],
    ['floats', 'arg5 > 3', /column 1: usdt:t:floats has 5 arguments/],
    ['floats', 'arg0 >', /column 7/],
  ] as const) {
    await assert.rejects(tracer.attach(`usdt:t:${probe}`, { pid: target.pid, filter }), { code: 'ERR_UPROBE_BAD_OPTION', message })
  }
})
