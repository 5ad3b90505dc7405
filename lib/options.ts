/**
 * The options of the public surface, and their checking at the border.
 */
import type { Logger } from 'pino'
import { type Budget, checkBudget } from './budget/options.js'
import { bad, boolean, integer, onlyKnown } from './option-checks.js'

/** Options of a `Tracer`. */
export interface TracerOptions {
  /** A pino logger; the tracer logs through a child of it. Default: no logging. */
  logger?: Logger | false | undefined
  /**
   * Size of the ring buffer that all probes of the tracer share, in bytes: a power of two from 64 KiB to 1 GiB. Default: 8 MiB.
   * Hits that find it full are counted as lost.
   */
  ringBytes?: number | undefined
  /**
   * Shortest time between two deliveries while hits keep coming, on average, in milliseconds, from 1 to 1000. Default: 1. The first hits after a silence, up to
   * four, are each delivered at once, and a ring that fills up is emptied sooner. More saves the agent wake-ups; what a hit costs the target does not depend on it.
   */
  flushIntervalMs?: number | undefined
  /**
   * How many bytes of hits may wait for a busy event loop, beside those in the ring. Default: 32 MiB.
   */
  pendingLimitBytes?: number | undefined
  /**
   * Directory of the leases that `counter: 'msb'` keeps, which all agents of a machine should share. It must be ours alone (mode 0700); it is made if it is not there.
   * Default: `/run/uprobe` for root, else `$XDG_RUNTIME_DIR/uprobe`.
   */
  leaseDir?: string | undefined
  /** What all probes of the tracer together may cost; see {@link Budget}. Aggregations are among them. Default: no bound. */
  budget?: Budget | undefined
}

/** Options of `tracer.attach`. */
export interface AttachOptions {
  /** The target process, or several. Without it the specification's PATH (or `path`) is probed in every process that maps it, now or later. */
  pid?: number | readonly number[] | undefined
  /** The file, as an alternative to PATH in the specification. With `pid` it is a path as that process sees it. */
  path?: string | undefined
  /**
   * How the counter of a USDT probe is held. `kernel`: the kernel counts, shares the counter with any tracer, and takes back what it counted even after a crash. `msb`: the
   * package claims the counter by its most significant bit, so that `pause()` and `resume()` are one store; it keeps kernel tracers away from the probe. See
   * docs/counters.md. Default: `kernel`. What has no counter (functions, and USDT probes that are always on) has nothing to claim: `msb` takes it all the same, leaves its breakpoints in place at `pause()`, and takes them
   * out when it goes on being hit.
   */
  counter?: 'kernel' | 'msb' | undefined
  /** Indexes of arguments that are C strings; they are read at the hit. */
  strings?: readonly number[] | undefined
  /** Longest string that is read, in bytes, up to 4096. Default: 256. */
  stringLimit?: number | undefined
  /** Record the stack of each hit, by frame pointers; see `hit.stack`. Default: false. */
  stack?: boolean | undefined
  /** Most frames of a stack that are recorded, from 2 to 512; to be given with `stack`. Default: 127. */
  stackDepth?: number | undefined
  /** Count hits in the kernel and hand none to JavaScript: the probe takes neither listeners for hits nor an iterator. In `stats()` those that were counted are `delivered`. Default: false. */
  countOnly?: boolean | undefined
  /** Only hits for which this holds are delivered, such as `arg0 > 5 && str(arg1) == "select"`; it is decided in the kernel. docs/guide.md has the grammar. */
  filter?: string | undefined
  /** How many hits may wait for the iterator. Default: 65,536. Further ones are counted as lost. */
  queueLimit?: number | undefined
  /**
   * How many bytes the hits that wait for the iterator may keep in memory, from 64 KiB to 1 GiB; one batch more may wait (1 MiB at most). Further hits are counted as lost.
   * Default: 64 MiB.
   */
  queueLimitBytes?: number | undefined
  /** How many sites a specification may resolve to. Default: 1024. */
  maxSites?: number | undefined
  /** How sites are registered: `auto` takes a uprobe_multi link for several sites of one file, with a budget and for a latency also for one, where the kernel has a right one. Default: `auto`. */
  registration?: 'auto' | 'perf' | 'multi' | undefined
  /** Attach also where it may harm the target: inside an unknown instruction, return probes in Go programs or beside seccomp. Default: false. */
  unsafe?: boolean | undefined
  /**
   * What the hits of this probe may cost; see {@link Budget}. Above it the probe is taken out of its targets for parts of the time, which `'state'` events (`throttled`) and
   * `stats().seenFraction` tell. Default: no bound but that of the tracer.
   */
  budget?: Budget | undefined
  /** Aborting it ends the attach, or detaches the probe. */
  signal?: AbortSignal | undefined
}

/** Checked options of a tracer. */
export interface TracerSettings {
  readonly logger: Logger | false
  readonly ringBytes: number
  readonly flushIntervalMs: number
  readonly pendingLimitBytes: number
  /** `null` for the default. */
  readonly leaseDir: string | null
  readonly budget: Budget | null
}

/** Checked options of an attach. */
export interface AttachSettings {
  readonly pids: readonly number[]
  readonly path: string | null
  readonly counter: 'kernel' | 'msb'
  readonly strings: readonly number[]
  readonly stringLimit: number
  readonly stack: boolean
  readonly stackDepth: number
  readonly countOnly: boolean
  readonly filter: string | null
  readonly queueLimit: number
  readonly queueLimitBytes: number
  readonly maxSites: number
  readonly registration: 'auto' | 'perf' | 'multi'
  readonly unsafe: boolean
  readonly budget: Budget | null
  readonly signal: AbortSignal | null
}

const KIB = 1024
const MIB = 1024 * KIB
const MAX_PID = 2 ** 22
/** USDT probes have at most 12 operands by the macros of sys/sdt.h; other makers may go further. */
const MAX_ARGUMENT = 31

/** Checks the options of a tracer. Throws `ERR_UPROBE_BAD_OPTION`. */
export function checkTracerOptions(options: TracerOptions): TracerSettings {
  if (typeof options !== 'object' || options === null) bad('options', 'give an object')
  onlyKnown(options, ['logger', 'ringBytes', 'flushIntervalMs', 'pendingLimitBytes', 'leaseDir', 'budget'])
  const ringBytes = integer('ringBytes', options.ringBytes, 8 * MIB, 64 * KIB, 1024 * MIB)
  if ((ringBytes & (ringBytes - 1)) !== 0) bad('ringBytes', 'give a power of two')
  const logger = options.logger ?? false
  if (logger !== false && typeof logger.child !== 'function') bad('logger', 'give a pino logger or false')
  const leaseDir: unknown = options.leaseDir ?? null
  if (leaseDir !== null && (typeof leaseDir !== 'string' || !leaseDir.startsWith('/') || leaseDir.includes('\0'))) {
    bad('leaseDir', 'give the absolute path of a directory')
  }
  return {
    logger,
    leaseDir,
    budget: checkBudget(options.budget),
    ringBytes,
    flushIntervalMs: integer('flushIntervalMs', options.flushIntervalMs, 1, 1, 1000),
    pendingLimitBytes: integer('pendingLimitBytes', options.pendingLimitBytes, 32 * MIB, 64 * KIB, 1024 * MIB),
  }
}

/** Who passes a pid alone is told where it goes. Throws `ERR_UPROBE_BAD_OPTION`. */
export function checkIsObject(options: unknown): void {
  const pid = typeof options === 'number' && Number.isSafeInteger(options) && options > 0 ? options : 4242
  if (typeof options !== 'object' || options === null) bad('options', `give an object, such as { pid: ${pid} }`)
}

/** Checks the options of an attach. Throws `ERR_UPROBE_BAD_OPTION`. */
export function checkAttachOptions(options: AttachOptions): AttachSettings {
  checkIsObject(options)
  onlyKnown(options, [
    'pid',
    'path',
    'counter',
    'strings',
    'stringLimit',
    'stack',
    'stackDepth',
    'countOnly',
    'filter',
    'queueLimit',
    'queueLimitBytes',
    'maxSites',
    'registration',
    'unsafe',
    'budget',
    'signal',
  ])
  const given: unknown = options.pid
  const pids: unknown[] = given === undefined ? [] : Array.isArray(given) ? given : [given]
  if (given !== undefined && pids.length === 0) bad('pid', 'the list of processes is empty; leave pid out to mean every process')
  const checkedPids = pids.map((pid) => integer('pid', pid, 0, 1, MAX_PID))
  if (options.path !== undefined && (typeof options.path !== 'string' || options.path === '' || options.path.includes('\0'))) {
    bad('path', 'give the path of a file')
  }
  const counter = options.counter ?? 'kernel'
  if (!['kernel', 'msb'].includes(counter)) bad('counter', "give 'kernel' or 'msb'")
  const strings: unknown = options.strings ?? []
  if (!Array.isArray(strings)) bad('strings', 'give a list of argument indexes, such as [0]')
  const registration = options.registration ?? 'auto'
  if (!['auto', 'perf', 'multi'].includes(registration)) bad('registration', "give 'auto', 'perf' or 'multi'")
  const filter: unknown = options.filter ?? null
  if (filter !== null && typeof filter !== 'string') bad('filter', 'give an expression, such as "arg0 > 5"')
  if (options.stack === true && options.countOnly === true)
    bad('stack', 'a probe that only counts delivers no stacks; give one of stack and countOnly')
  if (strings.length > 0 && options.countOnly === true)
    bad('strings', 'a probe that only counts reads no arguments; give one of strings and countOnly')
  if (options.stackDepth !== undefined && options.stack === undefined)
    bad('stackDepth', 'it is of the stacks that stack: true records; give that too')
  const signal = options.signal ?? null
  if (signal !== null && !(signal instanceof AbortSignal)) bad('signal', 'give an AbortSignal')
  return {
    pids: [...new Set(checkedPids)],
    path: options.path ?? null,
    counter,
    strings: [...new Set(strings.map((index: unknown) => integer('strings', index, 0, 0, MAX_ARGUMENT)))],
    stringLimit: integer('stringLimit', options.stringLimit, 256, 1, 4096),
    stack: boolean('stack', options.stack),
    stackDepth: integer('stackDepth', options.stackDepth, 127, 2, 512),
    countOnly: boolean('countOnly', options.countOnly),
    filter,
    queueLimit: integer('queueLimit', options.queueLimit, 65_536, 1, 2 ** 24),
    queueLimitBytes: integer('queueLimitBytes', options.queueLimitBytes, 64 * MIB, 64 * KIB, 1024 * MIB),
    maxSites: integer('maxSites', options.maxSites, 1024, 1, 2 ** 20),
    registration,
    unsafe: boolean('unsafe', options.unsafe),
    budget: checkBudget(options.budget),
    signal,
  }
}
