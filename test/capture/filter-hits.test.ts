/**
 * What a filter decides at real hits, one case at a time: what the guide shows, and what random filters (filter-kernel.test.ts) leave out.
 *
 * In guests on 5.10, newest and arm64-6.12 only: it takes long, and the others lie between the first two.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { newTracer, refused } from '../support/tracing.js'

const possible = needs({ programs: ['gcc'] })

/** What they compare is unsigned, and never negative. */
const MISTAKEN: readonly string[] = ['retval == -1', 'arg1 == -2']

for (const [spec, command, filter, passed] of [
  ['uretprobe:f_negative', 'negative', '(retval << 32) - 0 >> 32 == -1', 1],
  ['uretprobe:f_negative', 'negative', '(retval & 0xffffffff) == 0xffffffff', 1],
  ['uretprobe:f_negative', 'negative', 'retval == -1', 0],
  ['uretprobe:f_six', 'six', 'retval - 0 == -21 && arg0 == 0xffffffffffffffeb', 1],
  ['uretprobe:f_text', 'text hello', 'str(retval) == "hello"', 1],
  ['uretprobe:f_depth', 'depth 9', 'retval % 2', 5],
  ['uprobe:f_six', 'six', 'arg1 - 0 == -2 && arg0 + arg2 * arg4 == 16', 1],
  ['uprobe:f_six', 'six', 'arg1 == -2', 0],
  ['uprobe:f_add', 'add 100', 'arg0 > 10 && arg0 <= 20', 10],
  ['uprobe:f_add', 'add 100', '(arg0 & 3) == 3 || arg0 >> 6', 25 + 36 - 9],
  ['uprobe:f_add', 'add 100', 'arg1 / arg0 == 11', 7],
  ['uprobe:f_add', 'add 100', '!(arg1 / arg0 < 1001)', 1],
  ['uprobe:f_text', 'text hello', 'str(arg0) == "hello"', 1],
  ['uprobe:f_text', 'text hello', 'strncmp(str(arg0), "help", 3) == 0', 1],
  ['uprobe:f_text', 'text hello', 'strncmp(str(arg0), "help", 4) == 0', 0],
  ['uprobe:f_text', 'text hello', 'str(arg0).startsWith("hello!")', 0],
  ['uprobe:f_text', 'text hello', 'str(arg0) != "hell" && comm == "func"', 1],
  ['uprobe:f_text', 'text hello', 'comm == "fun" || comm == "func."', 0],
  ['uprobe:f_text', 'text hello', 'comm.startsWith("fun") && !comm.startsWith("func.")', 1],
] as const) {
  test(`of ${spec} at "${command}", ${filter} lets ${passed} pass`, possible, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'func'))
    const probe = await newTracer(t).attach(spec, { pid: target.pid, filter, countOnly: true })
    await target.ask(command)
    await probe.detach()
    const { hits, filtered, delivered } = probe.stats()
    assert.deepEqual([hits - filtered, delivered], [passed, passed])
    const warned = probe.warnings.filter((warning) => /^Option filter: column 1: an unsigned number/.test(warning))
    assert.equal(warned.length, MISTAKEN.includes(filter) ? 1 : 0)
  })
}

test('cpu is that on which the hit is', needs({ programs: ['gcc', 'taskset'] }), async (t) => {
  const target = await Target.start(t, 'taskset', { args: ['-c', '0', buildTarget(t, 'func')] })
  const tracer = newTracer(t)
  const here = await tracer.attach('uprobe:f_add', { pid: target.pid, filter: 'cpu == 0', countOnly: true })
  const elsewhere = await tracer.attach('uprobe:f_add', { pid: target.pid, filter: 'cpu', countOnly: true })
  await target.ask('add 10')
  await here.detach()
  await elsewhere.detach()
  assert.deepEqual([here.stats().filtered, elsewhere.stats().filtered], [0, 10])
})

for (const registration of REGISTRATIONS) {
  test(`a pattern is checked against every probe that matches, and the error names the one (${registration})`, possible, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const tracer = newTracer(t)
    const attach = (filter: string) => tracer.attach('usdt:t:*', { pid: target.pid, registration, filter })
    const { message } = await refused(attach('pid && str(arg1) == "x"'), 'ERR_UPROBE_BAD_OPTION')
    assert.match(message, /^Option filter: column 8: usdt:t:\w+ has 1 argument, counted from 0\n {2}pid && str\(arg1\) == "x"\n {9}\^$/)
    // t:twin has a pointer where the others have an index.
    const probe = await attach('arg0 < 3')
    await target.ask('plain 10')
    await target.ask('shared 4')
    await probe.detach()
    const counts = Object.fromEntries(probe.statsByName().map(({ probe: name, hits, filtered }) => [name, hits - filtered]))
    assert.deepEqual([counts['usdt:t:plain'], counts['usdt:t:shared']], [3, 12])
  })
}

test('only a return probe has retval', possible, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'func'))
  const { message } = await refused(newTracer(t).attach('uprobe:f_six', { pid: target.pid, filter: 'retval > 1' }), 'ERR_UPROBE_BAD_OPTION')
  assert.match(message, /^Option filter: column 1: only a return probe/)
})
