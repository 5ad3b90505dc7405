/**
 * A hit, decoded from its record when it is looked at.
 *
 * Making an object with all its strings and big integers for every hit would cost far more than receiving it, and most consumers look at a few fields. So a hit keeps
 * where its record is, and each field is read on access.
 */
import { inspect } from 'node:util'
import { UprobeError } from '../errors.js'
import type { ProbeSite } from '../probe-types.js'
import type { StackFrame } from '../symbolize/frame.js'
import type { BoundOperand, OperandFormat } from './operands.js'
import { COMM_BYTES, FIELD, layoutOf, type RecordClass, type RecordLayout, SMALL_RECORD_BIT, type StringArea } from './record.js'
import type { CaptureShape } from './shape.js'

/**
 * The value of an argument.
 *
 * An integer of 8 bytes is a `bigint`, a shorter one and a floating-point number a `number`, a string that was asked for a `string`. Otherwise an object says why there is no plain value: a string that was
 * cut at `stringLimit`; memory that was not readable at the hit, with its address; or an operand that cannot be read at all, as stored in the note.
 */
export type ArgumentValue =
  | number
  | bigint
  | string
  | { readonly string: string; readonly truncated: true }
  | { readonly unreadable: string }
  | { readonly unsupported: string }

/** The value of an argument in JSON: see {@link argsToJson}. */
export type ArgJson = Exclude<ArgumentValue, bigint>

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

interface HitSource {
  readonly shape: CaptureShape
  readonly layout: RecordLayout
  readonly stacks: HitStacks | null
}

/** One execution of a site. */
export class Hit {
  readonly #view: DataView
  readonly #offset: number
  readonly #source: HitSource
  #args: readonly ArgumentValue[] | null = null

  /** The site that was executed. */
  readonly site: ProbeSite

  /** @internal */
  constructor(view: DataView, offset: number, source: HitSource, site: ProbeSite) {
    this.#view = view
    this.#offset = offset
    this.#source = source
    this.site = site
  }

  /** When it happened: CLOCK_MONOTONIC in nanoseconds, comparable with `process.hrtime.bigint()`. */
  get timestamp(): bigint {
    return this.#view.getBigUint64(this.#offset + FIELD.time, true)
  }

  /** Process id, in the initial pid namespace. */
  get pid(): number {
    return this.#u32(FIELD.pid)
  }

  /** Thread id, in the initial pid namespace. */
  get tid(): number {
    return this.#u32(FIELD.tid)
  }

  /** Number of the CPU. */
  get cpu(): number {
    return this.#u32(FIELD.cpu)
  }

  /** Name of the thread at the hit, at most 15 bytes; escape it before printing. */
  get comm(): string {
    const bytes = this.#bytes(FIELD.comm, COMM_BYTES)
    const end = bytes.indexOf(0)
    return bytes.toString('utf8', 0, end < 0 ? COMM_BYTES : end)
  }

  /** Resolved name of the probe without its path, as `usdt:postgresql:query__start`. */
  get probe(): string {
    return this.site.probe
  }

  /** The arguments, one an operand of the site. */
  get args(): readonly ArgumentValue[] {
    this.#args ??= this.#source.shape.operands.map((operand, index) => this.#argument(operand, index))
    return this.#args
  }

  /**
   * The bytes of a string argument, without the final NUL: what `args` decodes as UTF-8.
   * @returns a copy, or `null` if the argument was not asked for as a string or was not readable
   */
  bytes(index: number): Buffer | null {
    const area = this.#class().strings.find(({ operand }) => operand === index)
    const length = area === undefined ? -1 : this.#stringLength(area)
    return area === undefined || length < 0 ? null : Buffer.from(this.#bytes(area.dataAt, length))
  }

  /**
   * The stack at the hit, if `stack: true` was asked for: addresses, innermost first, the first of them that of the site itself, the others those that their functions return to. Equal stacks of
   * one process are one array.
   * @returns `null` if stacks are not recorded; `{ unavailable: 'forgotten' }` if so many other stacks came since that this one is not kept any more
   */
  get stack(): readonly bigint[] | { readonly unavailable: 'forgotten' } | null {
    const stacks = this.#source.stacks
    if (stacks === null) return null
    return this.#stack(stacks)?.addresses ?? { unavailable: 'forgotten' }
  }

  /**
   * What the addresses of the stack are: a frame for each. The work is done by a thread of its own, from the process' mappings as they were when it was first seen. An address of
   * which no name is known for sure has none. Ask soon: what a process has mapped can be read only as long as it runs.
   * @returns no frames if the stack is not kept any more
   * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` if stacks are not recorded
   */
  async symbolize(): Promise<readonly StackFrame[]> {
    const stacks = this.#source.stacks
    if (stacks === null) throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'The probe records no stacks. Attach it with `stack: true`.')
    const stack = this.#stack(stacks)
    return stack === null ? [] : stacks.symbolize(stack, this)
  }

  #stack(stacks: HitStacks): Stack | null {
    const { stackAt } = this.#class()
    return stackAt === null ? null : stacks.at(this.#view, this.#offset + stackAt)
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

  #u32(field: number): number {
    return this.#view.getUint32(this.#offset + field, true)
  }

  #bytes(at: number, length: number): Buffer {
    return Buffer.from(this.#view.buffer as ArrayBuffer, this.#view.byteOffset + this.#offset + at, length)
  }

  #class(): RecordClass {
    const { full, small } = this.#source.layout
    return small !== null && this.#u32(FIELD.flags) >>> SMALL_RECORD_BIT === 1 ? small : full
  }

  /** Bytes of a string without its NUL, at most the limit; negative if it was not readable. */
  #stringLength(area: StringArea): number {
    const returned = Number(this.#view.getBigInt64(this.#offset + area.lengthAt, true))
    return returned < 0 ? -1 : Math.min(Math.max(returned - 1, 0), area.bytes - 2)
  }

  #argument(operand: BoundOperand, index: number): ArgumentValue {
    if (operand.kind === 'unsupported') return { unsupported: operand.text }
    const at = this.#offset + FIELD.operands + 8 * index
    if (((this.#u32(FIELD.flags) >>> index) & 1) === 1) return { unreadable: hex(this.#view.getBigUint64(at, true)) }
    const area = this.#class().strings.find((candidate) => candidate.operand === index)
    return area === undefined ? readNumber(this.#view, at, operand) : this.#string(area, at, operand.size)
  }

  #string(area: StringArea, at: number, pointerBytes: OperandFormat['size']): ArgumentValue {
    const length = this.#stringLength(area)
    // The record has the whole register; the program narrowed it before it read there.
    if (length < 0) return { unreadable: hex(BigInt.asUintN(8 * pointerBytes, this.#view.getBigUint64(at, true))) }
    const bytes = this.#bytes(area.dataAt, length)
    const returned = Number(this.#view.getBigInt64(this.#offset + area.lengthAt, true))
    // The kernel was given two bytes more than may be delivered; it used them all only if the string is longer.
    if (returned < area.bytes) return bytes.toString('utf8')
    return { string: bytes.subarray(0, wholeCharacters(bytes)).toString('utf8'), truncated: true }
  }
}

/** How many bytes are left when a UTF-8 character that was cut at the end is taken away. */
export function wholeCharacters(bytes: Uint8Array): number {
  for (let back = 1; back <= 3 && back <= bytes.length; back++) {
    const byte = bytes[bytes.length - back] ?? 0
    if ((byte & 0xc0) === 0x80) continue
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1
    return length > back ? bytes.length - back : bytes.length
  }
  return bytes.length
}

function readNumber(view: DataView, at: number, operand: Exclude<BoundOperand, { kind: 'unsupported' }>): number | bigint {
  const { size, signed, float } = operand
  switch (size) {
    case 1:
      return signed ? view.getInt8(at) : view.getUint8(at)
    case 2:
      return signed ? view.getInt16(at, true) : view.getUint16(at, true)
    case 4:
      if (float) return view.getFloat32(at, true)
      return signed ? view.getInt32(at, true) : view.getUint32(at, true)
    case 8:
      if (float) return view.getFloat64(at, true)
      return signed ? view.getBigInt64(at, true) : view.getBigUint64(at, true)
  }
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`
}

/** Arguments as JSON can hold them: an integer beyond 2^53 becomes a decimal string, and so does a number that JSON has no form for. */
export function argsToJson(args: readonly ArgumentValue[]): ArgJson[] {
  return args.map((value) => {
    if (typeof value === 'bigint') {
      return value >= -BigInt(Number.MAX_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value.toString()
    }
    return typeof value === 'number' && !Number.isFinite(value) ? String(value) : value
  })
}

/** Decodes the records of one probe. */
export class HitDecoder {
  readonly #sources: readonly HitSource[]
  #view = new DataView(new ArrayBuffer(0))

  /**
   * @param shapes - by slot
   * @param siteOf - the site of a slot, as the user sees it
   * @param stacks - where stacks are, if the shapes record them
   */
  constructor(
    shapes: readonly CaptureShape[],
    private readonly siteOf: (slot: number) => ProbeSite,
    stacks: HitStacks | null = null,
  ) {
    this.#sources = shapes.map((shape) => ({ shape, layout: layoutOf(shape), stacks: shape.stack ? stacks : null }))
  }

  /** The slot of the record at `offset`. */
  slotOf(buffer: ArrayBuffer, offset: number): number {
    return this.#viewOf(buffer).getUint32(offset + FIELD.slot, true)
  }

  /** The hit of the record at `offset`. */
  decode(buffer: ArrayBuffer, offset: number): Hit {
    const view = this.#viewOf(buffer)
    const slot = view.getUint32(offset + FIELD.slot, true)
    const source = this.#sources[slot]
    if (source === undefined) throw new RangeError(`a record names slot ${slot}, which does not exist`)
    return new Hit(view, offset, source, this.siteOf(slot))
  }

  #viewOf(buffer: ArrayBuffer): DataView {
    if (this.#view.buffer !== buffer) this.#view = new DataView(buffer)
    return this.#view
  }
}
