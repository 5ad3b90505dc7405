/**
 * `uprobe trace`: what it prints of a hit, and its closing counts. How it ends is tested in trace-end.test.ts.
 */
import assert from 'node:assert/strict'
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { assertSafeForTerminal, Cli, failed, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { instructionBytes, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { tempDirectory } from '../support/temp.js'

const GCC = needs({ programs: ['gcc'] })
const X64 = process.arch === 'x64' ? GCC : { skip: 'the operands are those of x86-64' }

/** A hit without what no test can know, which is checked here. */
function known(hit: unknown): unknown {
  assert.ok(typeof hit === 'object' && hit !== null && 'time' in hit && 'cpu' in hit)
  const { time, cpu, ...rest } = hit
  assert.ok(typeof time === 'string' && /^[1-9]\d*$/.test(time), `time is a decimal string: ${time}`)
  const ageNs = process.hrtime.bigint() - BigInt(time)
  assert.ok(ageNs > 0n && ageNs < 60_000_000_000n, `time is CLOCK_MONOTONIC: ${ageNs} ns ago`)
  assert.ok(Number.isInteger(cpu), `cpu is a number: ${cpu}`)
  return rest
}

/** The arguments of each hit in the output of a trace that ended. */
function argsOf(stdout: string): unknown[] {
  return jsonOf(stdout)
    .slice(0, -1)
    .map((hit) => (hit as { args: unknown }).args)
}

test('prints a JSON object a hit with exactly the fields of the contract, and then one with only the summary', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const cli = Cli.start(t, ['trace', 'usdt:t:gated', '-p', String(target.pid), '--str', '2', '--json'])
  assert.equal(await cli.attached(), 'attached 1 site of 1 probe')
  assert.equal(await target.askNumber('gated 2'), 2)
  cli.kill('SIGINT')
  const objects = jsonOf(succeeded(await cli.ended))

  const hit = { pid: target.pid, tid: target.pid, comm: 'usdt', probe: 'usdt:t:gated', path: target.program }
  assert.deepEqual(objects.slice(0, -1).map(known), [
    { ...hit, args: [0, '9223372036854775808', 'hit 0'] },
    { ...hit, args: [-1, '9223372036854775809', 'hit 1'] },
  ])
  assert.deepEqual(objects[2], { summary: [{ probe: 'usdt:t:gated', hits: 2, filtered: 0, delivered: 2, lost: 0 }] })
})

test('prints columns for people: time of day, task, probe and arguments, and a line of counts at the end', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const cli = Cli.start(t, ['trace', 'usdt:t:gated', '-p', String(target.pid), '--str', '2'])
  await cli.attached()
  await target.ask('gated 1')
  cli.kill('SIGINT')
  const [hit = '', ...closing] = linesOf(succeeded(await cli.ended))
  assert.match(hit.slice(0, 12), /^[0-2]\d:[0-5]\d:[0-5]\d\.\d{3}$/)
  assert.equal(hit.slice(12), `  ${`usdt ${target.pid}/${target.pid}`.padEnd(24)}  usdt:t:gated  0, 9223372036854775808, "hit 0"`)
  assert.deepEqual(closing, ['usdt:t:gated: 1 hit, 1 delivered, 0 lost'])
})

test('writes the attached line once every site of every probe is armed, and nothing before', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const sites = notesOf(target.program).filter(({ name }) => name !== 'plain')
  const armed = (): boolean[] => sites.map(({ fileOffset }) => isArmed(target.pid, target.program, fileOffset))
  const specs = ['gated', 'ungated', 'shared', 'twin'].map((name) => `usdt:t:${name}`)
  const cli = Cli.start(t, ['trace', ...specs, '-p', String(target.pid)])
  const line = await cli.attached()
  assert.deepEqual(armed(), [true, true, true, true, true, true])
  assert.equal(line, 'attached 6 sites of 4 probes')
  assert.equal(cli.stderr, `${line}\n`)
  cli.kill('SIGINT')
  await cli.ended
})

test('an argument that has no plain value is an object that says why', X64, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'operands'))
  const specs = ['floats', 'unreadable', 'text'].map((name) => `usdt:t:${name}`)
  const cli = Cli.start(t, ['trace', ...specs.slice(0, 2), '-p', String(target.pid), '--json'])
  const strings = Cli.start(t, ['trace', ...specs.slice(2), '-p', String(target.pid), '--json', '--str', '0'])
  await Promise.all([cli.attached(), strings.attached()])
  for (const command of ['floats', 'unreadable', 'text 255', 'text 257', 'text 200 é', 'text 0', 'text null']) await target.ask(command)
  cli.kill('SIGINT')
  strings.kill('SIGINT')
  assert.deepEqual(argsOf(succeeded(await cli.ended)), [
    [Math.PI, 1.5, 42, -2.5, { unsupported: '8f@%xmm0' }],
    [{ unreadable: '0x10' }, { unreadable: '0x8' }, { unreadable: '0x7ffffffff000' }, { unreadable: '0xffff800000000020' }, 16],
  ])
  assert.deepEqual(
    argsOf(succeeded(await strings.ended)).map((args) => (args as unknown[])[0]),
    [
      'x'.repeat(255),
      { string: 'x'.repeat(256), truncated: true },
      { string: 'é'.repeat(128), truncated: true },
      '',
      { unreadable: '0x0' },
    ],
  )
})

test('shows people the same: quoted, cut off, unreadable, unsupported', X64, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'operands'))
  const cli = Cli.start(t, ['trace', 'usdt:t:text', 'usdt:t:constants', '-p', String(target.pid), '--str', '0'])
  await cli.attached()
  for (const command of ['text 1', 'text 257', 'text null', 'constants']) await target.ask(command)
  cli.kill('SIGINT')
  const lines = linesOf(succeeded(await cli.ended))
  assert.deepEqual(
    lines.slice(0, 3).map((line) => line.replace(/^.* {2}usdt:t:text {2}(.*?), .*$/, '$1')),
    ['"x"', `"${'x'.repeat(256)}"…`, '<unreadable 0x0>'],
  )
  assert.ok(
    lines[3]?.endsWith('  <unreadable 0xffffffff>, 4294967295, 1572864, 0, -9223372036854775808, 65, <unsupported 8@%fs:40>, 7'),
    lines[3],
  )
})

test('several -p and several SPECs: each hit names its process and probe, in order, and the summary has a row a probe', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [first, second] = [await Target.start(t, program), await Target.start(t, program)]
  const bystander = await Target.start(t, program)
  const cli = Cli.start(t, [
    'trace',
    'usdt:t:plain',
    'usdt:t:gated',
    ...[first, second].flatMap(({ pid }) => ['-p', String(pid)]),
    '--json',
  ])
  assert.equal(await cli.attached(), 'attached 2 sites of 2 probes')
  assert.equal(await bystander.askNumber('gated 3'), 0)
  await bystander.ask('plain 3')
  await first.ask('plain 2')
  await second.ask('gated 1')
  await first.ask('gated 1')
  await second.ask('plain 1')
  cli.kill('SIGINT')
  const objects = jsonOf(succeeded(await cli.ended))
  const expected = [
    [first.pid, 'usdt:t:plain', 0],
    [first.pid, 'usdt:t:plain', 1],
    [second.pid, 'usdt:t:gated', 0],
    [first.pid, 'usdt:t:gated', 0],
    [second.pid, 'usdt:t:plain', 0],
  ]
  const hits = objects.slice(0, -1) as Array<{ time: string; pid: number; probe: string; args: unknown[] }>
  assert.deepEqual(
    hits.map(({ pid, probe, args }) => [pid, probe, args[0]]),
    expected,
  )
  assert.deepEqual(
    hits.map(({ time }) => BigInt(time)),
    hits.map(({ time }) => BigInt(time)).sort((a, b) => (a < b ? -1 : 1)),
  )
  assert.deepEqual(objects.at(-1), {
    summary: [
      { probe: 'usdt:t:plain', hits: 3, filtered: 0, delivered: 3, lost: 0 },
      { probe: 'usdt:t:gated', hits: 2, filtered: 0, delivered: 2, lost: 0 },
    ],
  })
})

test('--str may be repeated; of an argument that the probe does not have it is wrong usage', X64, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'operands'))
  const args = ['trace', 'usdt:t:text', '-p', String(target.pid), '--json']
  const cli = Cli.start(t, [...args, '--str', '0', '--str', '2'])
  await cli.attached()
  await target.ask('text 3')
  cli.kill('SIGINT')
  const [[first, second, third] = []] = argsOf(succeeded(await cli.ended)) as unknown[][]
  assert.deepEqual([first, third], ['xxx', 'xxx'])
  assert.equal(typeof second, 'number', 'the address')
  assert.match(failed(await uprobe(t, ...args.slice(0, -1), '--str', '4'), 2, 'ERR_UPROBE_BAD_OPTION'), /argument 4/)
})

test('without -p, a PATH is traced in every process that maps it, also in one that starts later', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const before = await Target.start(t, program)
  const cli = Cli.start(t, ['trace', `usdt:${program}:t:gated`, '--json'])
  await cli.attached()
  const after = await Target.start(t, program)
  assert.equal(await before.askNumber('gated 1'), 1)
  assert.equal(await after.askNumber('gated 2'), 2)
  cli.kill('SIGINT')
  const objects = jsonOf(succeeded(await cli.ended)) as Array<{ pid: number }>
  assert.deepEqual(
    objects.slice(0, -1).map(({ pid }) => pid),
    [before.pid, after.pid, after.pid],
  )
})

test('--filter rejects in the kernel, and both forms of the summary say how many', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const args = ['trace', 'usdt:t:plain', '-p', String(target.pid), '--filter', 'arg0 >= 7']
  const [json, text] = [Cli.start(t, [...args, '--json']), Cli.start(t, args)]
  await Promise.all([json.attached(), text.attached()])
  await target.ask('plain 10')
  json.kill('SIGINT')
  text.kill('SIGINT')
  const objects = jsonOf(succeeded(await json.ended))
  assert.deepEqual(
    objects.slice(0, -1).map((hit) => (hit as { args: unknown }).args),
    [[7], [8], [9]],
  )
  assert.deepEqual(objects.at(-1), { summary: [{ probe: 'usdt:t:plain', hits: 10, filtered: 7, delivered: 3, lost: 0 }] })
  assert.equal(linesOf(succeeded(await text.ended)).at(-1), 'usdt:t:plain: 10 hits, 7 filtered, 3 delivered, 0 lost')
})

test('--counter msb claims the counter by its highest bit, gives way to uprobe release, and says so', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const cli = Cli.start(t, ['trace', 'usdt:t:gated', '-p', String(target.pid), '--counter', 'msb', '--json'])
  assert.equal(await cli.attached(), 'attached 1 site of 1 probe')
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  assert.equal(await target.askNumber('gated 3'), 3)
  const released = jsonOf(succeeded(await uprobe(t, 'release', String(target.pid), '--json')))
  assert.deepEqual(released, [
    {
      pid: target.pid,
      path: target.program,
      provider: 't',
      name: 'gated',
      owner: { pid: cli.pid, comm: 'node', kind: 'lease' },
      released: true,
    },
  ])
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.equal(await target.askNumber('gated 1'), 0)
  cli.kill('SIGINT')
  const { code, stdout, stderr } = await cli.ended
  assert.equal(code, 0)
  assert.deepEqual(jsonOf(stdout).at(-1), { summary: [{ probe: 'usdt:t:gated', hits: 3, filtered: 0, delivered: 3, lost: 0 }] })
  const message = 'The probe gave way to another tool (uprobe release) and sees no hits any more. To go on, start again.'
  assert.deepEqual(linesOf(stderr), ['attached 1 site of 1 probe', JSON.stringify({ warning: { message } })])
})

test('functions and their return: arguments by the calling convention, the value returned, named without a path', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const cli = Cli.start(t, ['trace', 'uprobe:f_text', 'uretprobe:f_text', '-p', String(target.pid), '--str', '0', '--json'])
  await cli.attached()
  assert.equal(await target.ask('text word'), 'returned word')
  cli.kill('SIGINT')
  const hits = jsonOf(succeeded(await cli.ended)).slice(0, -1) as Array<{ probe: string; args: unknown[] }>
  assert.deepEqual(
    hits.map(({ probe, args }) => [probe, args[0]]),
    [
      ['uprobe:f_text', 'word'],
      ['uretprobe:f_text', 'word'],
    ],
  )
})

/** Bytes that a hostile program may pass, and what they are as text. */
const HOSTILE: ReadonlyArray<readonly [string, Buffer]> = [
  ['a title for the terminal', Buffer.from('\x1b]0;owned\x07\x1b[2J')],
  ['new lines', Buffer.from('one\ntwo\r\n{"summary":[]}\n')],
  ['C1 controls in UTF-8, DEL', Buffer.from('\u009b31m\u0085\x7f')],
  ['C1 controls as bytes, and other bytes that are no UTF-8', Buffer.from([0x9b, 0x33, 0xff, 0xfe, 0xc3, 0x28, 0xed, 0xa0, 0x80])],
  ['characters that turn the direction of text, and separators', Buffer.from('a\u202eb\u2066c\u200fd\u061ce\u2028f\u2029g\ufeff')],
  ['quotes and backslashes', Buffer.from('"\\" \\n \\x1b \\u001b \'')],
  ['ordinary text of several scripts', Buffer.from('naïve 日本語 🚀 \t')],
]

test('what a target passes, calls itself and is called reaches neither the terminal raw nor breaks a line', GCC, async (t) => {
  const folder = tempDirectory(t)
  const program = join(folder, '\x1b[31mred\n{"summary":[]}"\\')
  copyFileSync(buildTarget(t, 'text'), program)
  const target = await Target.start(t, program)
  const args = ['trace', 'usdt:t:text', '-p', String(target.pid), '--str', '0']
  const [json, text] = [Cli.start(t, [...args, '--json']), Cli.start(t, args)]
  await Promise.all([json.attached(), text.attached()])
  const name = Buffer.from('\x1b[1m"\n\u202e\xff', 'latin1')
  await target.ask(`name ${name.toString('hex')}`)
  for (const [, bytes] of HOSTILE) assert.equal(await target.ask(`say ${bytes.toString('hex')}`), `said ${bytes.length}`)
  json.kill('SIGINT')
  text.kill('SIGINT')

  const printed = succeeded(await json.ended)
  assertSafeForTerminal(printed)
  const hits = jsonOf(printed).slice(0, -1) as Array<{ comm: string; path: string; args: unknown }>
  assert.deepEqual(
    hits.map(({ args }) => args),
    HOSTILE.map(([, bytes]) => [bytes.toString('utf8'), bytes.length]),
  )
  for (const hit of hits) {
    assert.equal(hit.path, program)
    assert.equal(hit.comm, name.toString('utf8'))
  }
  const shown = succeeded(await text.ended)
  assertSafeForTerminal(shown)
  const lines = linesOf(shown)
  assert.equal(lines.length, HOSTILE.length + 1)
  assert.ok(lines[0]?.includes('"\\x1b]0;owned\\x07\\x1b[2J"'), lines[0])
  assert.ok(lines[5]?.includes(String.raw`"\"\\\" \\n \\x1b \\u001b '"`), lines[5])
  assert.ok(lines[6]?.includes(String.raw`"naïve 日本語 🚀 \x09"`), lines[6])
})

test('leaves nothing in the target: bytes and counters are as before', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { fileOffset } = gatedNote(target.program, 't:gated')
  const before = instructionBytes(target.pid, target.program, fileOffset)
  const cli = Cli.start(t, ['trace', 'usdt:t:*', '-p', String(target.pid)])
  await cli.attached()
  assert.equal(await target.ask('counters'), '1 1 3 1')
  assert.notEqual(instructionBytes(target.pid, target.program, fileOffset), before)
  cli.kill('SIGINT')
  succeeded(await cli.ended)
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.equal(instructionBytes(target.pid, target.program, fileOffset), before)
})
