/**
 * Values of options and arguments, parsed once, here, into what the commands trust. A wrong one is wrong usage: commander names the option and
 * the sentence given here, and the exit code is 2.
 */
import { existsSync } from 'node:fs'
import { InvalidArgumentError, Option } from 'commander'
import { type TracerOptions, UprobeError } from '../index.js'
import { escapeForDisplay } from '../log.js'

/** The longest delay of a Node timer, in seconds (2^31 - 1 milliseconds, 24.8 days). */
const MAX_TIMER_SECONDS = 2_147_483

function wholeNumber(text: string, smallest: number, largest: number): number {
  const value = Number(text)
  if (!/^\d+$/.test(text) || value < smallest || value > largest) {
    throw new InvalidArgumentError(`It must be a whole number from ${smallest} to ${largest}.`)
  }
  return value
}

/** A process id. The kernel's limit is 2^22 (PID_MAX_LIMIT, include/linux/threads.h). */
export function parsePid(text: string): number {
  return wholeNumber(text, 1, 4_194_304)
}

/** A file, or a process id; a file whose name has digits only is written `./123`. */
export function parseFileOrPid(text: string): string | number {
  return /^\d+$/.test(text) ? parsePid(text) : text
}

/** `-p PID`, repeated. */
export function collectPids(text: string, before: readonly number[] = []): number[] {
  return [...before, parsePid(text)]
}

/** `-p PID`, repeated. */
export function pidOption(): Option {
  return new Option('-p, --pid <pid>', 'the process to trace; may be repeated. Without it, every process that maps PATH').argParser(
    collectPids,
  )
}

/** `--str N`, repeated: the number of an argument, from 0. */
export function collectArgumentNumbers(text: string, before: readonly number[] = []): number[] {
  return [...before, wholeNumber(text, 0, 31)]
}

/** `--counter kernel|msb`. */
export function counterOption(): Option {
  return new Option('--counter <mode>', 'how USDT counters are held: by the count of the kernel, or claimed by their highest bit').choices([
    'kernel',
    'msb',
  ])
}

/** `--max-sites N`. */
export function maxSitesOption(): Option {
  return new Option('--max-sites <n>', 'how many sites a probe may stand for (1024 unless given)').argParser((text: string) =>
    wholeNumber(text, 1, 2 ** 20),
  )
}

/** `--filter EXPR`. */
export function filterOption(): Option {
  return new Option('--filter <expr>', 'only hits for which this holds, such as \'arg0 > 5 && str(arg1) == "select"\'')
}

/** `--by EXPR`, repeated. */
export function byOption(): Option {
  const collect = (text: string, before: readonly string[] = []): string[] => [...before, text]
  return new Option(
    '--by <expr>',
    "group by an argument or expression (arg1, pid, tid, cpu), 'comm' or 'str(arg1)'; may be repeated",
  ).argParser(collect)
}

/** `--arg N`: the number of an argument, or an expression. */
export function parseMeasured(text: string): string {
  return /^\d+$/.test(text) ? `arg${text}` : text
}

/** `--scale N`. */
export function parseScale(text: string): number {
  if (!/^-?[0-5]$/.test(text)) throw new InvalidArgumentError('It must be a whole number from -5 to 5.')
  return Number(text)
}

/** `-n HITS`. */
export function parseHits(text: string): number {
  return wholeNumber(text, 1, Number.MAX_SAFE_INTEGER)
}

/** `-d SECONDS`, into milliseconds. */
export function parseDurationMs(text: string): number {
  const seconds = Number(text)
  if (!/^(\d+(\.\d+)?|\.\d+)$/.test(text) || seconds <= 0 || seconds > MAX_TIMER_SECONDS) {
    throw new InvalidArgumentError(`It must be a number of seconds above 0 and up to ${MAX_TIMER_SECONDS}.`)
  }
  return Math.max(1, Math.round(seconds * 1000))
}

/** `-d SECONDS`. */
export function durationOption(): Option {
  return new Option('-d, --duration <seconds>', 'stop after this time').argParser(parseDurationMs)
}

function parseBetween(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (!/^\d+(\.\d+)?$/.test(text) || value < least || value > most) {
      throw new InvalidArgumentError(`It must be a number from ${least} to ${most}.`)
    }
    return value
  }
}

/** What the options of a budget leave among the flags of a command. */
export interface BudgetFlags {
  budgetCpu?: number
  budgetHits?: number
}

/** `--budget-cpu PERCENT`. */
export function budgetCpuOption(): Option {
  return new Option(
    '--budget-cpu <percent>',
    'what hits may cost, in percent of one CPU; above it probes are out for a part of the time',
  ).argParser(parseBetween(0.01, 100_000))
}

/** `--budget-hits N`. */
export function budgetHitsOption(): Option {
  return new Option('--budget-hits <hits>', 'how many hits a second there may be, likewise').argParser(parseBetween(1, 1e9))
}

/** Both, as the tracer takes them. */
export function budgetOf({ budgetCpu: cpuPercent, budgetHits: hitsPerSecond }: BudgetFlags): TracerOptions {
  if (cpuPercent === undefined && hitsPerSecond === undefined) return {}
  return { budget: { cpuPercent, hitsPerSecond } }
}

/** `--lease-dir DIR`. */
export function leaseDirOption(): Option {
  return new Option('--lease-dir <dir>', 'the directory of the leases, if it is not the default')
}

/**
 * Whoever names a directory of leases means one that is there. That of the default may be missing, where nobody has ever claimed anything.
 * @throws {UprobeError} `ERR_UPROBE_LEASE`
 */
export function checkLeaseDir(path: string | undefined): void {
  if (path === undefined || existsSync(path)) return
  throw new UprobeError(
    'ERR_UPROBE_LEASE',
    `The lease directory ${escapeForDisplay(path)} is not there, or may not be reached. Check --lease-dir.`,
  )
}
