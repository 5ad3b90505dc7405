/**
 * How `uprobe trace` ends: asked to, by itself, against its will, and with readers of its output that are slow or leave.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import test, { type TestContext } from 'node:test'
import { buildTarget } from '../support/build.js'
import { Cli, type CliOptions, cliProgram, failed, jsonOf, linesOf, succeeded } from '../support/cli.js'
import { isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

interface Summary {
  readonly probe: string
  readonly hits: number
  readonly filtered: number
  readonly delivered: number
  readonly lost: number
}

/** What was traced with `--json`: how many hits were printed, and the summary behind them. */
function traced(stdout: string): { printed: number; summary: Summary[] } {
  const objects = jsonOf(stdout)
  const last = objects.at(-1)
  assert.deepEqual(Object.keys(last ?? {}), ['summary'])
  assert.ok(!objects.slice(0, -1).some((object) => 'summary' in (object as object)))
  return { printed: objects.length - 1, summary: (last as { summary: Summary[] }).summary }
}

/** Asserts that no counter is up and no breakpoint is in the target. */
async function assertUntouched(target: Target): Promise<void> {
  assert.equal(await target.ask('counters'), '0 0 0 0')
  for (const { name, fileOffset } of notesOf(target.program)) assert.equal(isArmed(target.pid, target.program, fileOffset), false, name)
}

/** A target, and a trace of `specs` in it that is attached. */
async function startTrace(t: TestContext, specs: readonly string[], flags: readonly string[] = [], options: CliOptions = {}) {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const cli = Cli.start(t, ['trace', ...specs, '-p', String(target.pid), '--json', ...flags], options)
  await cli.attached()
  return { target, cli }
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  test(`${signal} takes a claimed counter back too (--counter msb)`, GCC, async (t) => {
    const { target, cli } = await startTrace(t, ['usdt:t:gated', 'usdt:t:shared'], ['--counter', 'msb'])
    assert.equal(await target.ask('counters'), '32768 0 32768 0')
    assert.equal(await target.askNumber('shared 5'), 15)
    cli.kill(signal)
    assert.equal(traced(succeeded(await cli.ended)).printed, 15)
    await assertUntouched(target)
  })

  test(`${signal} detaches, prints what was captured and the summary, and exits with 0`, GCC, async (t) => {
    const { target, cli } = await startTrace(t, ['usdt:t:*'])
    assert.equal(await target.askNumber('shared 50'), 150)
    await target.ask('plain 7')
    cli.kill(signal)
    const { printed, summary } = traced(succeeded(await cli.ended))
    assert.equal(printed, 157)
    assert.deepEqual(
      summary.filter(({ hits }) => hits > 0),
      [
        { probe: 'usdt:t:plain', hits: 7, filtered: 0, delivered: 7, lost: 0 },
        { probe: 'usdt:t:shared', hits: 150, filtered: 0, delivered: 150, lost: 0 },
      ],
    )
    await assertUntouched(target)
  })
}

test('a second and a third signal while it detaches change nothing', GCC, async (t) => {
  const { target, cli } = await startTrace(t, ['usdt:t:gated', 'usdt:t:plain'])
  await target.ask('gated 5')
  cli.kill('SIGINT')
  cli.kill('SIGTERM')
  await waitFor('the counter to go down', async () => (await target.ask('counters')) === '0 0 0 0')
  // If it is through by now, there is nothing left that the signal could cut short.
  if (!cli.hasExited) cli.kill('SIGINT')
  const { printed, summary } = traced(succeeded(await cli.ended))
  assert.equal(printed, 5)
  assert.equal(summary[0]?.delivered, 5)
  await assertUntouched(target)
})

test(
  'a signal before all probes are attached takes back those that are, and it fails, so that nobody takes it for an answer',
  GCC,
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const first = notesOf(target.program, 't:gated')[0]?.fileOffset ?? 0n
    const specs = ['gated', 'shared', 'ungated', 'twin', 'plain', 'gated', 'shared', 'ungated', 'twin', 'plain'].map(
      (name) => `usdt:t:${name}`,
    )
    const cli = Cli.start(t, ['trace', ...specs, '-p', String(target.pid), '--json'])
    await waitFor('the first probe to be armed', () => isArmed(target.pid, target.program, first))
    cli.kill('SIGTERM')
    const { code, stdout, stderr } = await cli.ended
    const message = 'Interrupted before everything was attached: nothing was counted, and nothing is left behind.'
    assert.deepEqual([code, stdout, jsonOf(stderr)], [1, '', [{ error: { code: 'ERR_UPROBE_CLOSED', message } }]])
    await assertUntouched(target)
  },
)

test('-n prints exactly so many hits, of however many came, and ends', GCC, async (t) => {
  const { target, cli } = await startTrace(t, ['usdt:t:plain', 'usdt:t:gated'], ['-n', '5'])
  // More come in one batch than are wanted.
  await target.ask('plain 1000')
  const { printed, summary } = traced(succeeded(await cli.ended))
  assert.equal(printed, 5)
  // On a busy machine it has ended before the target has.
  const [{ hits } = { hits: 0 }] = summary
  assert.ok(hits >= 5 && hits <= 1000, String(hits))
  assert.deepEqual(summary, [
    { probe: 'usdt:t:plain', hits, filtered: 0, delivered: hits, lost: 0 },
    { probe: 'usdt:t:gated', hits: 0, filtered: 0, delivered: 0, lost: 0 },
  ])
  await assertUntouched(target)
})

test('the counts behind -n say how many hits were printed, where that is not how many were delivered', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const cli = Cli.start(t, ['trace', 'usdt:t:plain', 'usdt:t:gated', '-p', String(target.pid), '-n', '5'])
  await cli.attached()
  await target.ask('plain 1000')
  const lines = linesOf(succeeded(await cli.ended))
  assert.equal(lines.length, 7)
  assert.match(lines[5] ?? '', /^usdt:t:plain: \d+ hits, \d+ delivered \(5 printed\), 0 lost$/)
  assert.equal(lines[6], 'usdt:t:gated: 0 hits, 0 delivered, 0 lost')
})

test('-d ends by itself, with what was captured until then, and without a hit', GCC, async (t) => {
  const { target, cli } = await startTrace(t, ['usdt:t:gated'], ['-d', '0.2'])
  assert.deepEqual(traced(succeeded(await cli.ended)), {
    printed: 0,
    summary: [{ probe: 'usdt:t:gated', hits: 0, filtered: 0, delivered: 0, lost: 0 }],
  })
  await assertUntouched(target)
})

test('ends by itself when its last process has exited, with every hit of it', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const [first, second] = [await Target.start(t, program), await Target.start(t, program)]
  const cli = Cli.start(t, ['trace', 'usdt:t:plain', '-p', String(first.pid), '-p', String(second.pid), '--json'])
  await cli.attached()
  await first.ask('plain 3')
  await first.end()
  await second.ask('plain 4')
  await second.end()
  const { printed, summary } = traced(succeeded(await cli.ended))
  assert.equal(printed, 7)
  assert.deepEqual(summary, [{ probe: 'usdt:t:plain', hits: 7, filtered: 0, delivered: 7, lost: 0 }])
})

test('ends by itself when its process becomes another program, and says so once', GCC, async (t) => {
  const { target, cli } = await startTrace(t, ['usdt:t:plain', 'usdt:t:gated'])
  await target.ask('plain 2')
  assert.equal(await target.ask('exec'), 'ready')
  const { code, stdout, stderr } = await cli.ended
  assert.equal(code, 0)
  assert.equal(traced(stdout).printed, 2)
  const message = `Process ${target.pid} has called exec and runs another program now, which is not traced. To trace that, start again.`
  const [, warning = '', ...more] = linesOf(stderr)
  assert.deepEqual([JSON.parse(warning), more], [{ warning: { message } }, []])
})

for (const flags of [[], ['--json']]) {
  test(`says on standard error that hits may have been missed when the leader thread exits (${flags[0] ?? 'text'})`, GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const cli = Cli.start(t, ['trace', 'usdt:t:plain', '-p', String(target.pid), ...flags])
    await cli.attached()
    assert.equal(await target.ask('leader-exit'), 'leader gone')
    await waitFor('the warning', () => linesOf(cli.stderr).length > 1)
    await target.ask('plain 3')
    cli.kill('SIGINT')
    const { code, stdout, stderr } = await cli.ended
    assert.equal(code, 0)
    assert.equal(linesOf(stdout).length, 4)
    const message = `Hits may have been missed in process ${target.pid} (leader-exit).`
    const warning = flags.length === 0 ? `uprobe: warning: ${message}` : JSON.stringify({ warning: { message } })
    assert.deepEqual(linesOf(stderr), ['attached 1 site of 1 probe', warning])
  })
}

test('Ctrl-C on a terminal detaches and prints the counts', needs({ programs: ['gcc', 'script'] }), async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  // A terminal of its own, whose keys are our writing to its standard input; without a shell in between, which would be interrupted too (dash is, and says 130).
  const command = `exec ${process.execPath} ${cliProgram()} trace usdt:t:plain -p ${target.pid}`
  const terminal = spawn('script', ['-qefc', command, '/dev/null'], { stdio: 'pipe' })
  t.after(() => terminal.kill('SIGKILL'))
  let screen = ''
  terminal.stdout.setEncoding('utf8').on('data', (text: string) => {
    screen += text
  })
  const closed = new Promise<number | null>((resolve) => terminal.once('close', resolve))
  await waitFor('the attached line', () => screen.includes('attached 1 site of 1 probe\r\n'))
  await target.ask('plain 2')
  terminal.stdin.write('\x03')
  assert.equal(await closed, 0)
  // The terminal shows the key wherever it is pressed.
  assert.ok(screen.replace('^C', '').endsWith('\r\nusdt:t:plain: 2 hits, 2 delivered, 0 lost\r\n'), screen)
  await assertUntouched(target)
})

test('one SPEC that cannot be attached ends it with 1, before the attached line, and takes back the others', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  for (const flags of [[], ['--json']]) {
    const end = await Cli.start(t, ['trace', 'usdt:t:gated', 'usdt:t:nothing', '-p', String(target.pid), ...flags]).ended
    if (flags.length === 0) {
      assert.match(failed(end, 1, 'ERR_UPROBE_NOT_FOUND'), /t:nothing/)
    } else {
      assert.deepEqual([end.code, end.stdout], [1, ''])
      const [report] = jsonOf(end.stderr) as Array<{ error: { code: string; message: string } }>
      assert.deepEqual(Object.keys(report ?? {}), ['error'])
      assert.deepEqual(Object.keys(report?.error ?? {}), ['code', 'message'])
      assert.equal(report?.error.code, 'ERR_UPROBE_NOT_FOUND')
    }
  }
  await assertUntouched(target)
})

test('a pipe whose reader leaves, as head does, ends it quietly with 0', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  // The shell's own pipe, and its own word on how the first program of the pipeline ended.
  const script = `{ "$0" "$@"; echo "exit $?" >&2; } | head -n 1`
  const cli = Cli.start(t, ['trace', 'usdt:t:gated', '-p', String(target.pid), '--json'], { prefix: ['sh', '-c', script] })
  await cli.attached()
  await target.ask('gated 1')
  await cli.lines(1)
  // The next one finds nobody. What is written between may still find head, so it is fired until the end.
  await waitFor('the trace to end', async () => {
    await target.ask('gated 1')
    return cli.stderr.includes('exit ')
  })
  const { stdout, stderr } = await cli.ended
  assert.equal(linesOf(stdout).length, 1)
  assert.deepEqual(linesOf(stderr), ['attached 1 site of 1 probe', 'exit 0'])
  await assertUntouched(target)
})

test('a parent that stops reading ends it quietly with 0', GCC, async (t) => {
  const { target, cli } = await startTrace(t, ['usdt:t:gated'])
  await target.ask('gated 1')
  await cli.lines(1)
  cli.stopReading()
  await waitFor('the trace to end', async () => {
    await target.ask('gated 1')
    return cli.hasEnded
  })
  succeeded(await cli.ended)
  await assertUntouched(target)
})

test('a connection that its reader resets ends it quietly with 0', GCC, async (t) => {
  // Standard output is the connection itself, as under inetd.
  const server = createServer().listen(0, '127.0.0.1')
  t.after(() => server.close())
  await once(server, 'listening')
  const reader = connect((server.address() as AddressInfo).port, '127.0.0.1')
  const [connection] = (await once(server, 'connection')) as [Socket]
  const { target, cli } = await startTrace(t, ['usdt:t:gated'], [], { stdout: connection })
  connection.destroy()
  await target.ask('gated 1')
  await once(reader, 'data')
  reader.resetAndDestroy()
  await waitFor('the trace to end', async () => {
    await target.ask('gated 1')
    return cli.hasEnded
  })
  succeeded(await cli.ended)
  await assertUntouched(target)
})

test('a reader that is slow delays no detaching, gets every hit that was delivered, and the rest is counted as lost', GCC, async (t) => {
  const { target, cli } = await startTrace(t, ['usdt:t:plain'], [], { stdout: 'unread' })
  const fired = 100_000
  await target.ask(`plain ${fired}`)
  cli.kill('SIGINT')
  await waitFor(
    'it to detach while nobody reads',
    () => !notesOf(target.program, 't:plain').some((n) => isArmed(target.pid, target.program, n.fileOffset)),
  )
  assert.equal(cli.hasEnded, false)
  cli.read()
  const { printed, summary } = traced(succeeded(await cli.ended))
  const [{ hits, filtered, delivered, lost } = { hits: 0, filtered: 0, delivered: 0, lost: 0 }] = summary
  assert.equal(hits, fired)
  assert.equal(filtered, 0)
  assert.equal(delivered, printed)
  assert.equal(delivered + lost, fired)
  assert.ok(lost > 0, 'more was fired than the queue and the socket hold together')
})

test('a reader that does not read at all is not waited for after a second signal, and what is dropped is said', GCC, async (t) => {
  const { target, cli } = await startTrace(t, ['usdt:t:gated'], [], { stdout: 'unread' })
  await target.ask('gated 5000')
  cli.kill('SIGINT')
  await waitFor('it to detach while nobody reads', async () => (await target.ask('counters')) === '0 0 0 0')
  // The counter goes down a moment before the command has closed everything, and until then a signal is only another wish to detach.
  await waitFor('it to end', () => {
    if (!cli.hasExited) cli.kill('SIGINT')
    return cli.hasExited
  })
  cli.read()
  const { code, signal, stderr } = await cli.ended
  assert.deepEqual([code, signal], [0, null])
  const [attached, warning, ...more] = linesOf(stderr)
  assert.equal(attached, 'attached 1 site of 1 probe')
  assert.deepEqual(JSON.parse(warning ?? ''), {
    warning: { message: 'Standard output is not being read. What waited there is dropped, the closing counts with it.' },
  })
  assert.deepEqual(more, [])
  await assertUntouched(target)
})

test('a full disk behind standard output ends it with 1 and leaves nothing', GCC, async (t) => {
  const full = openSync('/dev/full', 'w')
  t.after(() => closeSync(full))
  const { target, cli } = await startTrace(t, ['usdt:t:gated'], [], { stdout: full })
  await target.ask('gated 1')
  const { code, stderr } = await cli.ended
  assert.equal(code, 1)
  const [, report] = linesOf(stderr)
  assert.equal((JSON.parse(report ?? '') as { error: { code: string } }).error.code, 'ENOSPC')
  await assertUntouched(target)
})
