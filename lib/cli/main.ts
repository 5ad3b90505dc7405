#!/usr/bin/env node
/**
 * The command line, `uprobe …`: parses, runs one command, and turns its end into an exit code. Each command is a file of its own beside this one,
 * and uses the library only through its public surface.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Command } from 'commander'
import type { ExitCode } from './failure.js'

const HELP = `
A probe is written
  usdt:[PATH:]PROVIDER:NAME        a probe that the program's author placed
  uprobe:[PATH:]SYMBOL[+OFFSET]    an instruction of a function; also uprobe:PATH:0xOFFSET
  uretprobe:[PATH:]SYMBOL          the return of a function
Names take * and ?. Without PATH, the files that the process (-p) maps are searched.

Examples:
  uprobe doctor                                          will it work here, and if not, what helps
  uprobe demo                                            see it work, with nothing else installed
  uprobe list /usr/bin/python3.11                        which probes a program has
  uprobe trace usdt:python:gc__start -p 4242             print each hit
  uprobe count 'usdt:postgresql:*' -p 4242 -d 10         count hits for ten seconds
  uprobe hist uprobe:malloc --arg 0 -p 4242 -d 10        the distribution of sizes
  uprobe hist uprobe:fsync --latency -p 4242             how long calls take
  uprobe counters 4242                                   what switches its probes on, and who holds it
`

/** Loaded when something fails, or help is asked for. */
function failures(): typeof import('./failure.js') {
  return require('./failure.js') as typeof import('./failure.js')
}

function packageVersion(): string {
  const { packageRoot } = require('../native.js') as typeof import('../native.js')
  const manifest: unknown = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8'))
  const hasVersion = typeof manifest === 'object' && manifest !== null && 'version' in manifest
  return hasVersion ? String(manifest.version) : 'unknown'
}

/** The commands, each loaded when it is asked for: starting a command should not take the loading of all others. */
const COMMANDS: ReadonlyMap<string, () => (program: Command) => void> = new Map([
  ['list', () => (require('./list.js') as typeof import('./list.js')).addList],
  ['trace', () => (require('./trace.js') as typeof import('./trace.js')).addTrace],
  ['count', () => (require('./count.js') as typeof import('./count.js')).addCount],
  ['hist', () => (require('./hist.js') as typeof import('./hist.js')).addHist],
  ['counters', () => (require('./counters.js') as typeof import('./counters.js')).addCounters],
  ['repair', () => (require('./repair.js') as typeof import('./repair.js')).addRepair],
  ['release', () => (require('./release.js') as typeof import('./release.js')).addRelease],
  ['doctor', () => (require('./doctor.js') as typeof import('./doctor.js')).addDoctor],
  ['demo', () => (require('./demo.js') as typeof import('./demo.js')).addDemo],
])

/**
 * @param first - the first argument: if it is a command, the program has only that one; otherwise it has all, for its help and its suggestions
 * @param asked - takes the help or version that the arguments ask for
 */
function createProgram(first: string | undefined, asked: string[]): Command {
  const { Command: ProgramCommand } = require('commander') as typeof import('commander')
  const { EXIT_CODES_HELP } = failures()
  const program = new ProgramCommand('uprobe')
    .description('Attach uprobes, return probes and USDT probes to running programs, and read their hits.')
    .version(packageVersion(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand('help [command]', 'print the help of a command')
    .exitOverride()
    // What commander would print of an error it throws as well, and report() prints that in the form of all our failures.
    .configureOutput({ outputError: () => undefined, writeOut: (text) => asked.push(text) })
    .addHelpText('after', HELP + EXIT_CODES_HELP)
  const only = COMMANDS.get(first ?? '')
  for (const load of only === undefined ? COMMANDS.values() : [only]) load()(program)
  return program
}

/** Whether the arguments ask for JSON; needed when they could not be parsed as a whole. */
function asksForJson(args: readonly string[]): boolean {
  const end = args.indexOf('--')
  return (end === -1 ? args : args.slice(0, end)).includes('--json')
}

/**
 * Lists a file without commander, whose loading takes longer than the listing, where the arguments leave nothing to be decided: a path, a pattern or none, and
 * `--json` or not. Answers false if they do.
 */
async function listPlainly([command, ...args]: readonly string[]): Promise<boolean> {
  const [path, pattern, ...more] = args.filter((arg) => arg !== '--json')
  const isPlain = command === 'list' && path !== undefined && more.length === 0
  if (!isPlain || /^\d+$/.test(path) || path.startsWith('-') || pattern?.startsWith('-')) return false
  // What V8 would optimize of a program that ends in a moment comes too late, and the end waits for it.
  const { setFlagsFromString } = require('node:v8') as typeof import('node:v8')
  setFlagsFromString('--no-opt')
  const { printList } = require('./print-list.js') as typeof import('./print-list.js')
  await printList(path, pattern, args.includes('--json'))
  return true
}

async function run(args: readonly string[]): Promise<void> {
  if (await listPlainly(args)) return
  hearStandardError()
  const asked: string[] = []
  try {
    await createProgram(args[0], asked).parseAsync(args, { from: 'user' })
  } catch (error) {
    if (!failures().wasAskedFor(error)) throw error
    const { Output } = require('./output.js') as typeof import('./output.js')
    const output = new Output(process.stdout)
    await output.lines([asked.join('').trimEnd()])
    output.check()
  }
}

/** When standard error is gone there is nobody left to tell; the exit code still says how it ended. */
function hearStandardError(): void {
  process.stderr.on('error', () => undefined)
}

async function main(args: readonly string[]): Promise<ExitCode> {
  try {
    await run(args)
    return 0
  } catch (error) {
    hearStandardError()
    return failures().report(error, asksForJson(args))
  }
}

// The exit code is set instead of calling process.exit(), so that a slow reader still gets what waits in the pipe. `main` does not reject.
void main(process.argv.slice(2)).then((exitCode) => {
  if (exitCode !== 0) process.exitCode = exitCode
})
