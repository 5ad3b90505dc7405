/**
 * What all commands share: help, version, wrong usage, the forms of a failure, and the two ways to start the program.
 */
import assert from 'node:assert/strict'
import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { describe } from 'node:test'
import { promisify } from 'node:util'
import { buildTarget } from '../support/build.js'
import { Cli, cliProgram, failed, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'

const ROOT = join(__dirname, '../..')
const LINUX = needs()

/** The options of each command, as its help must name them. */
const OPTIONS: Readonly<Record<string, readonly string[]>> = {
  list: [],
  trace: ['-p, --pid <pid>', '--counter <mode>', '--str <n>', '--filter <expr>', '-n, --hits <hits>', '-d, --duration <seconds>'],
  count: ['-p, --pid <pid>', '--counter <mode>', '--filter <expr>', '-d, --duration <seconds>'],
  counters: ['--lease-dir <dir>'],
  repair: ['--apply', '--lease-dir <dir>'],
  release: ['--lease-dir <dir>'],
  doctor: [],
  demo: [],
}

test('--help names every command, and the form of a probe', async (t) => {
  const help = succeeded(await uprobe(t, '--help'))
  for (const command of Object.keys(OPTIONS)) assert.match(help, new RegExp(`^  ${command} `, 'm'))
  for (const form of ['usdt:[PATH:]PROVIDER:NAME', 'uprobe:[PATH:]SYMBOL[+OFFSET]', 'uretprobe:[PATH:]SYMBOL'])
    assert.ok(help.includes(form), form)
  assert.equal(succeeded(await uprobe(t, '-h')), help)
  assert.equal(succeeded(await uprobe(t, 'help')), help)
})

for (const [command, options] of Object.entries(OPTIONS)) {
  test(`${command} --help names every option and the exit codes`, async (t) => {
    const help = succeeded(await uprobe(t, command, '--help'))
    for (const option of [...options, '--json', '-h, --help']) assert.ok(help.includes(`  ${option} `), `${option} in\n${help}`)
    assert.match(help, /^Exit codes:\n {2}0 {2}success.*\n {2}1 {2}.*\n {2}2 {2}wrong usage\n/m)
  })
}

test('help COMMAND is the same as COMMAND --help', async (t) => {
  assert.equal(succeeded(await uprobe(t, 'help', 'trace')), succeeded(await uprobe(t, 'trace', '--help')))
})

test('--version prints the version of the package', async (t) => {
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string }
  assert.equal(succeeded(await uprobe(t, '--version')), `${version}\n`)
  assert.equal(succeeded(await uprobe(t, '-V')), `${version}\n`)
})

test('without a command it prints its help to standard error, as wrong usage', async (t) => {
  const { code, stdout, stderr } = await uprobe(t)
  assert.deepEqual([code, stdout], [2, ''])
  assert.match(stderr, /^Usage: uprobe /)
})

const WRONG: ReadonlyArray<readonly [args: string, says: RegExp]> = [
  ['nonsense', /unknown command 'nonsense'/],
  ['trace usdt:a:b --nonsense', /unknown option '--nonsense'/],
  ['list', /missing required argument 'path\|pid'/],
  ['trace', /missing required argument 'spec'/],
  ['count -d 1', /missing required argument 'spec'/],
  ['list 1 a:b more', /too many arguments for 'list'/],
  ['doctor more', /too many arguments for 'doctor'/],
  ['counters', /missing required argument 'pid'/],
  ['count usdt:a:b --max-sites 0', /--max-sites.*whole number from 1 to 1048576/],
  ['counters 0', /'pid'.*whole number from 1 to 4194304/],
  ['repair x', /'pid'.*whole number/],
  ['release 1 2', /too many arguments for 'release'/],
  ['list 0', /'path\|pid'.*whole number from 1 to 4194304/],
  ['trace usdt:a:b -p', /'-p, --pid <pid>' argument missing/],
  ['trace usdt:a:b -p 0', /'-p, --pid <pid>' argument '0' .* from 1 to 4194304/],
  ['trace usdt:a:b -p 1 -n 0', /'-n, --hits <hits>' argument '0'/],
  ['trace usdt:a:b -p 1 -d 0', /'-d, --duration <seconds>' argument '0' .* above 0/],
  ['trace usdt:a:b -p 1 --str 32', /'--str <n>' argument '32' .* from 0 to 31/],
  ['trace usdt:a:b -p 1 --counter nonsense', /--counter/],
  ['count usdt:a:b -p 1 --counter nonsense', /--counter/],
]

describe('wrong usage has exit code 2, and a line that says what is wrong', { concurrency: 4 }, () => {
  for (const [args, says] of WRONG) {
    test(`uprobe ${args}`, async (t) => {
      assert.match(failed(await uprobe(t, ...args.split(' ')), 2, 'ERR_UPROBE_BAD_OPTION'), says)
    })
  }
})

test('a SPEC, PATTERN or filter that does not follow its grammar is wrong usage too', LINUX, async (t) => {
  failed(await uprobe(t, 'trace', 'nonsense', '-p', '1'), 2, 'ERR_UPROBE_BAD_SPEC')
  failed(await uprobe(t, 'list', cliProgram(), 'no-colon'), 1, 'ERR_UPROBE_BAD_ELF')
  failed(await uprobe(t, 'list', process.execPath, 'no-colon'), 2, 'ERR_UPROBE_BAD_SPEC')
  failed(await uprobe(t, 'count', 'usdt:a:b'), 2, 'ERR_UPROBE_BAD_OPTION')
})

for (const command of ['trace', 'count']) {
  test(`${command} points at what is wrong in a filter`, LINUX, async (t) => {
    const args = [command, 'usdt:a:b', '-p', String(process.pid), '--filter', 'arg0 > "\x1b"']
    const what = 'Option --filter: column 8: a string is compared with a number'
    const { code, stdout, stderr } = await uprobe(t, ...args)
    const lines = [`uprobe: ${what} (ERR_UPROBE_BAD_OPTION)`, '  arg0 > "\\x1b"', '         ^', '']
    assert.deepEqual({ code, stdout, stderr }, { code: 2, stdout: '', stderr: lines.join('\n') })
    const json = await uprobe(t, ...args, '--json')
    assert.deepEqual(jsonOf(json.stderr), [
      { error: { code: 'ERR_UPROBE_BAD_OPTION', message: `${what}\n${lines.slice(1, 3).join('\n')}` } },
    ])
  })
}

test('what cannot be done here has exit code 1, and a line with the code of the error', LINUX, async (t) => {
  // No process has the largest number that the kernel may give.
  assert.match(failed(await uprobe(t, 'list', '4194304'), 1, 'ERR_UPROBE_TARGET_GONE'), /4194304 does not exist/)
  failed(await uprobe(t, 'trace', 'usdt:a:b', '-p', '4194304'), 1, 'ERR_UPROBE_TARGET_GONE')
  failed(await uprobe(t, 'count', 'usdt:a:b', '-p', '4194304'), 1, 'ERR_UPROBE_TARGET_GONE')
  failed(await uprobe(t, 'counters', '4194304'), 1, 'ERR_UPROBE_TARGET_GONE')
  failed(await uprobe(t, 'repair', '4194304'), 1, 'ERR_UPROBE_TARGET_GONE')
  failed(await uprobe(t, 'list', '/nowhere'), 1, 'ERR_UPROBE_FILE')
  failed(await uprobe(t, 'count', 'uprobe:no_such_function', '-p', String(process.pid)), 1, 'ERR_UPROBE_NOT_FOUND')
})

test('with --json a failure is one object on standard error, whatever its kind, and standard output is empty', LINUX, async (t) => {
  const failures: ReadonlyArray<readonly [string, number, string]> = [
    ['list /nowhere --json', 1, 'ERR_UPROBE_FILE'],
    ['trace --json usdt:a:b -p 4194304', 1, 'ERR_UPROBE_TARGET_GONE'],
    ['trace nonsense --json', 2, 'ERR_UPROBE_BAD_SPEC'],
    ['count usdt:a:b -p x --json', 2, 'ERR_UPROBE_BAD_OPTION'],
    ['doctor --json more', 2, 'ERR_UPROBE_BAD_OPTION'],
  ]
  for (const [args, exitCode, errorCode] of failures) {
    const { code, stdout, stderr } = await uprobe(t, ...args.split(' '))
    assert.deepEqual([code, stdout], [exitCode, ''])
    const [report, ...more] = jsonOf(stderr) as Array<{ error: { code: string; message: string } }>
    assert.deepEqual(more, [])
    assert.deepEqual([Object.keys(report ?? {}), Object.keys(report?.error ?? {})], [['error'], ['code', 'message']])
    assert.equal(report?.error.code, errorCode)
    assert.ok((report?.error.message.length ?? 0) > 0)
  }
})

test('--json behind -- is an argument like any other', async (t) => {
  assert.match(failed(await uprobe(t, 'list', '--', '--json'), 1, 'ERR_UPROBE_FILE'), /--json cannot be opened/)
})

test('a name that a user was given by somebody else is escaped in what is said of it', async (t) => {
  const line = failed(await uprobe(t, 'list', '/no\x1b[31m\nwhere'), 1, 'ERR_UPROBE_FILE')
  assert.ok(line.startsWith(String.raw`uprobe: /no\x1b[31m\x0awhere cannot be opened`), line)
  assert.ok(failed(await uprobe(t, 'non\x1b[31m\nsense'), 2, 'ERR_UPROBE_BAD_OPTION').includes(String.raw`non\x1b[31m`))
})

test('help to a reader that is gone ends quietly, and to a full disk with 1', async (t) => {
  for (const args of ['--help', 'help trace', 'trace --help', '--version']) {
    const script = `{ "$0" "$@"; echo "exit $?" >&2; } | true`
    const cli = Cli.start(t, args.split(' '), { prefix: ['sh', '-c', script] })
    assert.equal((await cli.ended).stderr, 'exit 0\n', args)
  }
  const full = openSync('/dev/full', 'w')
  t.after(() => closeSync(full))
  for (const args of ['--help', '--version', 'doctor']) {
    failed(await Cli.start(t, args.split(' '), { stdout: full }).ended, 1, 'ENOSPC')
  }
})

test(
  'it needs neither a terminal nor a standard input nor a reader of standard error',
  needs({ programs: ['gcc', 'setsid'] }),
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const script = `exec "$0" "$@" <&- 2>&-`
    const cli = Cli.start(t, ['trace', 'usdt:t:plain', '-p', String(target.pid), '-n', '1', '--json'], {
      prefix: ['setsid', 'sh', '-c', script],
    })
    // Nobody says when it is attached.
    while (!cli.hasExited) await target.ask('plain 1')
    const { code, stdout } = await cli.ended
    assert.equal(code, 0)
    assert.equal(linesOf(stdout).length, 2)
  },
)

test('the compiled program is executable, and the sources run through tsx as it does', {
  skip: !__filename.endsWith('.ts') && 'needs the sources',
}, async () => {
  const file = process.execPath
  const compiled = spawnSync(cliProgram(), ['list', file, 'a:b', 'c'], { encoding: 'utf8' })
  assert.deepEqual([compiled.status, compiled.stdout], [2, ''])
  const run = promisify(execFile)
  const { stdout, stderr } = await run(process.execPath, ['--import', 'tsx', 'lib/cli/main.ts', 'trace', '--help'], { cwd: ROOT })
  assert.deepEqual([stdout, stderr], [execFileSync(cliProgram(), ['trace', '--help'], { encoding: 'utf8' }), ''])
})
