/**
 * A hit, decoded from its record when it is looked at.
 *
 * Making an object with all its strings and big integers for every hit would cost far more than receiving it, and most consumers look at a few fields. So a hit keeps
 * where its record is, and each field is read on access.
 */
import { inspect } from 'node:util'
import { UprobeError } from '../errors.js'
import type { ProbeSite } from '../probe-site.js'
import type { StackFrame } from '../symbolize/frame.js'
import { type ArgJson, type ArgumentReader, type ArgumentValue, argsToJson, argumentReader, hex } from './arguments.js'
import type { BatchMemory } from './memory.js'
import { COMM_BYTES, FIELD, layoutOf, type RecordLayout, SMALL_RECORD_BIT } from './record.js'
import type { RecordOffsets } from './record-offsets.js'
import type { CaptureShape } from './shape.js'

/** A hit as `uprobe trace --json` prints it. */
export interface HitJson {
  readonly time: string
  readonly pid: number
  readonly tid: number
  readonly cpu: number
  readonly comm: string
  readonly probe: string
  readonly path: string
  readonly args: readonly ArgJson[]
  /** Addresses of the stack, `0x…`, innermost first; only if stacks are recorded. */
  readonly stack?: readonly string[] | { readonly unavailable: string }
}

/** A recorded stack of one process. */
export interface Stack {
  readonly pid: number
  /** Innermost first. */
  readonly addresses: readonly bigint[]
}

/** Where the stacks of a probe's hits are. */
export interface HitStacks {
  /** The stack that a record refers to at `at`; `null` if it is not kept any more. */
  at(view: DataView, at: number): Stack | null
  /** What its addresses are. */
  symbolize(stack: Stack, hit: Pick<Hit, 'timestamp' | 'site'>): Promise<readonly StackFrame[]>
}

/** What is known of the records of one shape. */
interface RecordSource {
  readonly layout: RecordLayout
  readonly stacks: HitStacks | null
  readonly reader: ArgumentReader
}

/** What the hits of one probe have in common. */
interface ProbeRecords {
  /** By slot. */
  readonly sources: readonly RecordSource[]
  /** The source of every slot, if it is one; else `null`. */
  readonly only: RecordSource | null
  siteOf(slot: number): ProbeSite
}

/** The records of one probe in one batch. */
export class BatchRecords {
  constructor(
    readonly memory: BatchMemory,
    readonly probe: ProbeRecords,
  ) {}

  /** How the arguments of each record are read, if it is the same for all; else none. */
  get formats(): Uint8Array {
    return this.probe.only?.reader.formats ?? NO_FORMATS
  }

  /** The source of the record at `offset`. */
  source(offset: number): RecordSource {
    const { only } = this.probe
    return only === null ? this.sourceOfSlot(offset) : only
  }

  private sourceOfSlot(offset: number): RecordSource {
    const slot = this.memory.int32(offset + FIELD.slot)
    return this.probe.sources[slot] ?? noSuchSlot(slot)
  }

  /** The hit of the record at `offset`. */
  hit(offset: number): Hit {
    return new Hit(this, offset)
  }

  /** One argument of that hit; `undefined` if its site has none with this number. */
  argument(offset: number, argument: number): ArgumentValue | undefined {
    return this.source(offset).reader.readOne(this.memory, offset, argument)
  }

  /** Adds 1 to `counts`, one a slot, for each of the records at `offsets`, from `start` up to `end`. */
  countSlots(offsets: RecordOffsets, start: number, end: number, counts: Float64Array): void {
    if (counts.length === 1) {
      counts[0] = (counts[0] ?? 0) + end - start
      return
    }
    for (let index = start; index < end; index++) {
      const slot = this.memory.int32((offsets.at(index) ?? 0) + FIELD.slot)
      counts[slot] = (counts[slot] ?? 0) + 1
    }
  }
}

const NO_FORMATS = new Uint8Array(0)

function noSuchSlot(slot: number): never {
  throw new RangeError(`a record names slot ${slot}, which does not exist`)
}

const NO_ARGS: readonly ArgumentValue[] = []

/** One execution of a site. */
export class Hit {
  // Methods that only this class calls are `private`, not `#`: an object with `#` methods is marked as such when it is made, which costs more than all the rest.
  readonly #records: BatchRecords
  readonly #offset: number
  #args: readonly ArgumentValue[] = NO_ARGS
  // A flag, which V8 finds to be false in a loop that has just made the hit. That a field which holds null is null it does not find, and keeps the hit and its arguments in memory.
  #isRead = false

  /** @internal */
  constructor(records: BatchRecords, offset: number) {
    this.#records = records
    this.#offset = offset
  }

  /** The site that was executed. */
  get site(): ProbeSite {
    return this.#records.probe.siteOf(this.u32(FIELD.slot))
  }

  /** When it happened: CLOCK_MONOTONIC in nanoseconds, comparable with `process.hrtime.bigint()`. */
  get timestamp(): bigint {
    return this.#records.memory.view.getBigUint64(this.#offset + FIELD.time, true)
  }

  /** Process id, in the initial pid namespace. */
  get pid(): number {
    return this.u32(FIELD.pid)
  }

  /** Thread id, in the initial pid namespace. */
  get tid(): number {
    return this.u32(FIELD.tid)
  }

  /** Number of the CPU. */
  get cpu(): number {
    return this.u32(FIELD.cpu)
  }

  /** Name of the thread at the hit, at most 15 bytes; escape it before printing. */
  get comm(): string {
    const at = this.#offset + FIELD.comm
    const bytes = this.#records.memory.bytes.subarray(at, at + COMM_BYTES)
    const end = bytes.indexOf(0)
    return bytes.toString('utf8', 0, end < 0 ? COMM_BYTES : end)
  }

  /** Resolved name of the probe without its path, as `usdt:postgresql:query__start`. */
  get probe(): string {
    return this.site.probe
  }

  /**
   * The arguments, one an operand of the site. A string may keep up to twelve times its length in memory, since it is a part of one that was made for several hits; who keeps millions makes their
   * own of {@link bytes}.
   */
  get args(): readonly ArgumentValue[] {
    if (this.#isRead) return this.#args
    const args = this.#records.source(this.#offset).reader.read(this.#records.memory, this.#offset)
    this.#args = args
    this.#isRead = true
    return args
  }

  /**
   * The bytes of a string argument, without the final NUL: what `args` decodes as UTF-8.
   * @returns a copy, or `null` if the argument was not asked for as a string or was not readable
   */
  bytes(index: number): Buffer | null {
    const { memory } = this.#records
    const found = this.source().reader.stringAt(memory, this.#offset, index)
    return found === null ? null : Buffer.from(memory.bytes.subarray(found.at, found.at + found.length))
  }

  /**
   * The stack at the hit, if `stack: true` was asked for: addresses, innermost first, the first of them that of the site itself, the others those that their functions return to. Equal stacks of
   * one process are one array.
   * @returns `null` if stacks are not recorded; `{ unavailable: 'forgotten' }` if so many other stacks came since that this one is not kept any more
   */
  get stack(): readonly bigint[] | { readonly unavailable: 'forgotten' } | null {
    const { stacks } = this.source()
    if (stacks === null) return null
    return this.keptStack(stacks)?.addresses ?? { unavailable: 'forgotten' }
  }

  /**
   * What the addresses of the stack are: a frame for each. The work is done by a thread of its own, from the process' mappings as they were when it was first seen. An address of
   * which no name is known for sure has none. Ask soon: what a process has mapped can be read only as long as it runs.
   * @returns no frames if the stack is not kept any more
   * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` if stacks are not recorded
   */
  async symbolize(): Promise<readonly StackFrame[]> {
    const { stacks } = this.source()
    if (stacks === null) throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'The probe records no stacks. Attach it with `stack: true`.')
    const stack = this.keptStack(stacks)
    return stack === null ? [] : stacks.symbolize(stack, this)
  }

  private keptStack(stacks: HitStacks): Stack | null {
    const { full, small } = this.source().layout
    const { stackAt } = small !== null && this.u32(FIELD.flags) >>> SMALL_RECORD_BIT === 1 ? small : full
    return stackAt === null ? null : stacks.at(this.#records.memory.view, this.#offset + stackAt)
  }

  /** The fields of `uprobe trace --json`. */
  toJSON(): HitJson {
    const { stack } = this
    return {
      time: this.timestamp.toString(),
      pid: this.pid,
      tid: this.tid,
      cpu: this.cpu,
      comm: this.comm,
      probe: this.probe,
      path: this.site.path,
      args: argsToJson(this.args),
      ...(stack !== null && { stack: 'unavailable' in stack ? stack : stack.map(hex) }),
    }
  }

  /** Shows the fields, as of a plain object. */
  [inspect.custom](): object {
    const { timestamp, pid, tid, cpu, comm, probe, args } = this
    return { timestamp, pid, tid, cpu, comm, probe, args }
  }

  private u32(field: number): number {
    return this.#records.memory.int32(this.#offset + field) >>> 0
  }

  private source(): RecordSource {
    return this.#records.source(this.#offset)
  }
}

/** Decodes the records of one probe. */
export class HitDecoder {
  readonly #probe: ProbeRecords

  /**
   * @param sites - by slot; their shapes
   * @param siteOf - the site of a slot, as the user sees it
   * @param stacks - where stacks are, if the shapes record them
   */
  constructor(
    sites: ReadonlyArray<{ readonly shape: CaptureShape }>,
    siteOf: (slot: number) => ProbeSite,
    stacks: HitStacks | null = null,
  ) {
    const known = new Map<CaptureShape, RecordSource>()
    let before: { readonly shape: CaptureShape; readonly source: RecordSource } | undefined
    const sources = sites.map(({ shape }) => {
      if (shape === before?.shape) return before.source
      const source = known.get(shape) ?? { layout: layoutOf(shape), stacks: shape.stack ? stacks : null, reader: argumentReader(shape) }
      known.set(shape, source)
      before = { shape, source }
      return source
    })
    const [only] = known.values()
    this.#probe = { sources, only: known.size === 1 && only !== undefined ? only : null, siteOf }
  }

  /** The records of a batch. */
  open(memory: BatchMemory): BatchRecords {
    return new BatchRecords(memory, this.#probe)
  }
}
