/**
 * What the kernel refuses, and what would do harm, is refused with a code of its own.
 */
import assert from 'node:assert/strict'
import { closeSync, copyFileSync, openSync, realpathSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { ENOENT } from '../../lib/errno.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { Cli, failed } from '../support/cli.js'
import { counterValue, isArmed, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { functionOffset, gatedNote } from '../support/notes.js'
import { registerForOwnProcess } from '../support/other-tracer.js'
import { Target } from '../support/target.js'
import { tempDirectory } from '../support/temp.js'
import { detachComplete, newTracer, refused } from '../support/tracing.js'

const GCC = needs({ programs: ['gcc'] })
const X64 = process.arch === 'x64' ? GCC : { skip: 'the instruction is one of x86-64' }

test('another tracer that registered the site without its counter: a mismatch', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const other = await registerForOwnProcess(target.program, gatedNote(target.program, 't:gated').fileOffset, 0)
  const tracer = newTracer(t)
  const error = await refused(tracer.attach('usdt:t:gated', { pid: target.pid }), 'ERR_UPROBE_COUNTER_MISMATCH')
  assert.equal(error.syscall, 'perf_event_open')
  assert.equal(error.errno, 22)
  await refused(tracer.attach(`usdt:${target.program}:t:gated`), 'ERR_UPROBE_COUNTER_MISMATCH')
  other.close()
  await detachComplete(await tracer.attach('usdt:t:gated', { pid: target.pid }), 0)
})

test('a site that another tracer registered with a counter cannot be probed without one: a mismatch', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const other = await registerForOwnProcess(target.program, fileOffset, Number(refCtrOffset))
  t.after(() => other.close())
  await refused(
    newTracer(t).attach(`uprobe:${target.program}:0x${fileOffset.toString(16)}`, { pid: target.pid }),
    'ERR_UPROBE_COUNTER_MISMATCH',
  )
})

for (const scope of ['the process', 'every process'] as const) {
  test(`a counter that is negative as the kernel reads it, attached for ${scope}`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
    writeCounter(target.pid, target.program, refCtrOffset, 0x8000)
    const tracer = newTracer(t)
    const attach = () => tracer.attach(`usdt:${target.program}:t:gated`, scope === 'the process' ? { pid: target.pid } : {})
    const error = await refused(attach(), 'ERR_UPROBE_COUNTER_NEGATIVE')
    assert.match(error.message, new RegExp(`\\buprobe repair ${target.pid}\\b`))
    assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0x8000)
    assert.equal(isArmed(target.pid, target.program, fileOffset), false)
    writeCounter(target.pid, target.program, refCtrOffset, 0)
    await detachComplete(await attach(), 0)
    assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)
  })
}

test('a counter at an odd address', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'bad-counter'))
  await refused(newTracer(t).attach('usdt:t:odd', { pid: target.pid }), 'ERR_UPROBE_COUNTER_OFFSET')
})

for (const name of ['readonly', 'bss', 'shared'] as const) {
  test(`a counter that the kernel never finds (${name})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'bad-counter'))
    await refused(newTracer(t).attach(`usdt:t:${name}`, { pid: target.pid }), 'ERR_UPROBE_COUNTER_UNREACHABLE')
    const good = await newTracer(t).attach('usdt:t:good', { pid: target.pid })
    await target.ask('fire')
    await detachComplete(good, 1)
  })
}

test('a counter that another tool raised by hand: a warning, and its count is left as it was', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { refCtrOffset } = gatedNote(target.program, 't:gated')
  writeCounter(target.pid, target.program, refCtrOffset, 1)
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  assert.equal(probe.warnings.length, 1)
  assert.match(probe.warnings[0] ?? '', /reads 2 and 1 of its sites/)
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 2)
  await target.ask('gated 3')
  await detachComplete(probe, 3)
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 1)
})

test('text that the target made writable: the kernel accepts the probe and does not put it in, which is found out', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  assert.equal(await target.ask('writable-text'), 'writable')
  const tracer = newTracer(t)
  await refused(tracer.attach('uprobe:f_add', { pid: target.pid }), 'ERR_UPROBE_NOT_ARMED')
  assert.deepEqual(tracer.probes, [])
})

test('instructions that the kernel cannot execute out of line', X64, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  for (const name of ['f_locked', 'f_trap']) {
    await refused(newTracer(t).attach(`uprobe:${name}`, { pid: target.pid }), 'ERR_UPROBE_UNPROBEABLE')
  }
})

test('an address inside an instruction is refused, and nothing is written', X64, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const offset = functionOffset(target.program, 'f_depth') + 1n
  const tracer = newTracer(t)
  await refused(tracer.attach('uprobe:f_depth+1', { pid: target.pid }), 'ERR_UPROBE_NOT_INSTRUCTION')
  await refused(tracer.attach(`uprobe:${target.program}:0x${offset.toString(16)}`, { pid: target.pid }), 'ERR_UPROBE_NOT_INSTRUCTION')
  assert.equal(isArmed(target.pid, target.program, offset), false)
  assert.equal(await target.ask('depth 3'), 'returned 3')
})

test('an instruction boundary inside a function can be probed', X64, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  // `mov %edi, %eax` or whatever the compiler chose: the second instruction is found by trying, as a user with a disassembler would not need to.
  const tracer = newTracer(t)
  for (let offset = 1; offset < 16; offset++) {
    try {
      const probe = await tracer.attach(`uprobe:f_depth+${offset}`, { pid: target.pid })
      assert.equal(await target.ask('depth 3'), 'returned 3')
      await detachComplete(probe, 4)
      return
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'ERR_UPROBE_NOT_INSTRUCTION')
    }
  }
  assert.fail('no boundary was found')
})

test('names that match nothing, files that are none, and programs for another machine', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t)
  const folder = tempDirectory(t)
  const text = join(folder, 'text')
  writeFileSync(text, 'no program')
  await refused(tracer.attach('usdt:t:absent', { pid: target.pid }), 'ERR_UPROBE_NOT_FOUND')
  await assert.rejects(tracer.attach('usdt:t:gatde', { pid: target.pid }), /nothing matches .* Is usdt:t:gated meant\? /)
  await refused(tracer.attach('usdt:t:*x*', { pid: target.pid }), 'ERR_UPROBE_NOT_FOUND')
  await refused(tracer.attach('uprobe:absent', { pid: target.pid }), 'ERR_UPROBE_NOT_FOUND')
  const absent = join(folder, 'absent')
  const { errno, syscall, path } = await refused(tracer.attach(`usdt:${absent}:t:gated`), 'ERR_UPROBE_FILE')
  assert.deepEqual({ errno, syscall, path }, { errno: ENOENT, syscall: 'open', path: absent })
  await refused(tracer.attach(`usdt:${folder}:t:gated`), 'ERR_UPROBE_FILE')
  await refused(tracer.attach(`usdt:${text}:t:gated`), 'ERR_UPROBE_BAD_ELF')
  const foreign = join(folder, 'foreign')
  copyFileSync(target.program, foreign)
  const fd = openSync(foreign, 'r+')
  writeSync(fd, Buffer.of(process.arch === 'arm64' ? 62 : 183), 0, 1, 18)
  closeSync(fd)
  await refused(tracer.attach(`usdt:${foreign}:t:gated`), 'ERR_UPROBE_ARCH')
  await refused(tracer.attach('usdt:t:*', { pid: target.pid, maxSites: 3 }), 'ERR_UPROBE_TOO_MANY_SITES')
})

const SETPRIV = needs({ programs: ['gcc', 'setpriv'] })

test('root without capabilities: the error names what to grant', SETPRIV, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const agent = await startAgent(t, ['setpriv', '--bounding-set', '-all', '--inh-caps=-all'])
  assert.equal(await attachIn(agent, `usdt:${target.program}:t:gated`, {}), 'ERR_UPROBE_BPF_PERMISSION')
  assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid }), 'ERR_UPROBE_TARGET_DENIED')
  assert.equal(isArmed(target.pid, target.program, gatedNote(target.program, 't:gated').fileOffset), false)
})

test('CAP_BPF and CAP_PERFMON without CAP_SYS_ADMIN: BPF is allowed, the registration is not', SETPRIV, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const agent = await startAgent(t, ['setpriv', '--bounding-set', '-all,+bpf,+perfmon', '--inh-caps=-all'])
  const answer = await agent.ask(`attach ${JSON.stringify([`usdt:${target.program}:t:gated`, { registration: 'perf' }])}`)
  assert.match(answer, /^error ERR_UPROBE_PERMISSION .*CAP_SYS_ADMIN/)
})

test('another user: whatever is named, the error is that the process is denied, and names every right', SETPRIV, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const user = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups']
  // Its own child, which it may look at, and whose files it may not open all the same.
  const besides = (child: string): string => `${child} & trap "kill $!" EXIT; "$0" "$@" -p $!`
  const script = besides('sleep 60')
  for (const [spec, prefix] of [
    ['uprobe:main', ['sh', '-c', script]],
    [`uprobe:${realpathSync('/bin/sleep')}:main`, ['sh', '-c', script]],
    // In guests `sleep` is BusyBox, which maps no library.
    ['uprobe:libc.so.6:read', ['sh', '-c', besides(`"${process.execPath}" -e "setTimeout(() => {}, 60000)"`)]],
    ['usdt:t:gated', ['sh', '-c', `exec "$0" "$@" -p ${target.pid}`]],
    [`usdt:${target.program}:t:gated`, ['sh', '-c', `exec "$0" "$@" -p ${target.pid}`]],
  ] as const) {
    const line = failed(await Cli.start(t, ['count', spec], { prefix: [...user, ...prefix] }).ended, 1, 'ERR_UPROBE_TARGET_DENIED')
    assert.match(line, /This process lacks CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_BPF, CAP_PERFMON: run as root/, spec)
  }
  const demo = await Cli.start(t, ['demo'], { prefix: user }).ended
  assert.equal(demo.code, 1)
  assert.match(demo.stderr, /^uprobe: The files that process \d+ maps may not be opened\. .*\(ERR_UPROBE_TARGET_DENIED\)$/m)
})
