/** `uprobe count`: counts hits in the kernel, delivers none, and prints the counts at the end. */
import type { Command } from 'commander'
import type { Probe } from '../index.js'
import { escapeForDisplay } from '../log.js'
import { EXIT_CODES_HELP } from './failure.js'
import { collectPids, counterOption, filterOption, parseDurationMs } from './options.js'
import { Output } from './output.js'
import { runSession } from './session.js'
import { alignColumns, jsonLine } from './text.js'

const HELP = `
Standard error gets a line that begins with "attached" once every site is armed. The counts are printed at the end: when
interrupted (SIGINT, SIGTERM), after -d, or when the processes have exited. A line has probe, file and hits.

Examples:
  uprobe count 'usdt:postgresql:*' -p 4242 -d 10
  uprobe count uprobe:/lib/x86_64-linux-gnu/libc.so.6:malloc -d 1 --json
  uprobe count uprobe:malloc -p 4242 --filter 'arg0 >= 4096'
${EXIT_CODES_HELP}`

interface CountFlags {
  pid?: number[]
  counter?: 'kernel' | 'msb'
  filter?: string
  duration?: number
  json?: true
}

/** Waits for the end of all probes; a probe that only counts has no hits to give. */
async function untilEnd(probes: readonly Probe[]): Promise<void> {
  await Promise.all(probes.map((probe) => probe[Symbol.asyncIterator]().next()))
}

interface Row {
  readonly probe: string
  readonly path: string
  readonly hits: number
}

/** One row for each probe in each file, with the hits that the filter let through. */
function toRows(probes: readonly Probe[]): Row[] {
  return probes.flatMap((probe) =>
    probe.statsByName().map(({ probe: name, path, hits, filtered }) => ({ probe: name, path, hits: hits - filtered })),
  )
}

function toText(rows: readonly Row[]): string[] {
  return alignColumns(rows.map(({ probe, path, hits }) => [escapeForDisplay(probe), escapeForDisplay(path), String(hits)]))
}

/** Adds the command to `program`. */
export function addCount(program: Command): void {
  program
    .command('count')
    .summary('count the hits of probes')
    .description('Count the hits of the probes, until interrupted.')
    .argument('<spec...>', 'probes, as in usdt:PROVIDER:NAME')
    .option('-p, --pid <pid>', 'the process to trace; may be repeated. Without it, every process that maps PATH', collectPids)
    .addOption(counterOption())
    .addOption(filterOption())
    .option('-d, --duration <seconds>', 'stop after this time', parseDurationMs)
    .option('--json', 'one JSON object a line')
    .addHelpText('after', HELP)
    .action(async (specs: string[], flags: CountFlags) => {
      const json = flags.json ?? false
      const output = new Output(process.stdout)
      const { pid, counter, filter } = flags
      const attach = { ...(pid && { pid }), ...(counter && { counter }), ...(filter !== undefined && { filter }), countOnly: true }
      const rows = toRows(await runSession({ specs, attach, durationMs: flags.duration, json, output }, untilEnd))
      await output.lines(json ? rows.map((row) => jsonLine(row)) : toText(rows))
      output.check()
    })
}
