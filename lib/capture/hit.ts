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
import type { OperandFormat } from './operands.js'
import { COMM_BYTES, FIELD, layoutOf, type RecordClass, type RecordLayout, SMALL_RECORD_BIT, type StringArea } from './record.js'
import { type CaptureShape, readableStrings } from './shape.js'

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

/** What of the layout is needed at every hit, where no time is to be lost in looking it up. */
const { slot: SLOT, flags: FLAGS, operands: OPERANDS } = FIELD

interface HitSource {
  readonly shape: CaptureShape
  readonly layout: RecordLayout
  readonly stacks: HitStacks | null
  /** How each operand is read, see {@link formatsOf}. */
  readonly formats: Uint8Array
  /** Whether all operands are numbers, where they can be read. */
  readonly numbers: boolean
  /** Where the string of each operand is that was asked for as one: in a record of the full class, and in one of the small, if there is that. */
  readonly areas: StringAreas
  readonly smallAreas: StringAreas | null
  siteOf(slot: number): ProbeSite
}

type StringAreas = ReadonlyArray<StringArea | undefined>

/** One execution of a site. */
export class Hit {
  // Methods that only this class calls are `private`, not `#`: an object with `#` methods is marked as such when it is made, which costs more than all the rest.
  readonly #view: DataView
  readonly #offset: number
  readonly #source: HitSource
  #args: readonly ArgumentValue[] | null = null

  /** @internal */
  constructor(view: DataView, offset: number, source: HitSource) {
    this.#view = view
    this.#offset = offset
    this.#source = source
  }

  /** The site that was executed. */
  get site(): ProbeSite {
    return this.#source.siteOf(this.u32(SLOT))
  }

  /** When it happened: CLOCK_MONOTONIC in nanoseconds, comparable with `process.hrtime.bigint()`. */
  get timestamp(): bigint {
    return this.#view.getBigUint64(this.#offset + FIELD.time, true)
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
    const bytes = this.bytesAt(FIELD.comm, COMM_BYTES)
    const end = bytes.indexOf(0)
    return bytes.toString('utf8', 0, end < 0 ? COMM_BYTES : end)
  }

  /** Resolved name of the probe without its path, as `usdt:postgresql:query__start`. */
  get probe(): string {
    return this.site.probe
  }

  /** The arguments, one an operand of the site. */
  get args(): readonly ArgumentValue[] {
    const known = this.#args
    if (known !== null) return known
    const { formats, numbers } = this.#source
    const args = numbers && this.u32(FLAGS) === 0 ? readNumbers(this.#view, this.#offset + OPERANDS, formats) : this.mixedArgs()
    this.#args = args
    return args
  }

  /**
   * The bytes of a string argument, without the final NUL: what `args` decodes as UTF-8.
   * @returns a copy, or `null` if the argument was not asked for as a string or was not readable
   */
  bytes(index: number): Buffer | null {
    const area = this.area(index)
    const length = area === undefined ? -1 : this.stringLength(area)
    return area === undefined || length < 0 ? null : Buffer.from(this.bytesAt(area.dataAt, length))
  }

  /**
   * The stack at the hit, if `stack: true` was asked for: addresses, innermost first, the first of them that of the site itself, the others those that their functions return to. Equal stacks of
   * one process are one array.
   * @returns `null` if stacks are not recorded; `{ unavailable: 'forgotten' }` if so many other stacks came since that this one is not kept any more
   */
  get stack(): readonly bigint[] | { readonly unavailable: 'forgotten' } | null {
    const stacks = this.#source.stacks
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
    const stacks = this.#source.stacks
    if (stacks === null) throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'The probe records no stacks. Attach it with `stack: true`.')
    const stack = this.keptStack(stacks)
    return stack === null ? [] : stacks.symbolize(stack, this)
  }

  /** Arguments of which some are no plain numbers. */
  private mixedArgs(): ArgumentValue[] {
    const { formats } = this.#source
    const flags = this.u32(FLAGS)
    const args = new Array<ArgumentValue>(formats.length)
    for (let index = 0; index < formats.length; index++) {
      const format = formats[index] ?? NOT_A_NUMBER
      args[index] =
        format !== NOT_A_NUMBER && ((flags >>> index) & 1) === 0
          ? readNumber(this.#view, this.#offset + OPERANDS + 8 * index, format)
          : this.argument(index)
    }
    return args
  }

  private keptStack(stacks: HitStacks): Stack | null {
    const { stackAt } = this.recordClass()
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

  private u32(field: number): number {
    return this.#view.getUint32(this.#offset + field, true)
  }

  private bytesAt(at: number, length: number): Buffer {
    return Buffer.from(this.#view.buffer as ArrayBuffer, this.#view.byteOffset + this.#offset + at, length)
  }

  private recordClass(): RecordClass {
    const { full, small } = this.#source.layout
    return small !== null && this.u32(FLAGS) >>> SMALL_RECORD_BIT === 1 ? small : full
  }

  /** Where the string of an operand is, if it was asked for as one. */
  private area(index: number): StringArea | undefined {
    const { areas, smallAreas } = this.#source
    return (smallAreas !== null && this.u32(FLAGS) >>> SMALL_RECORD_BIT === 1 ? smallAreas : areas)[index]
  }

  /** Bytes of a string without its NUL, at most the limit; negative if it was not readable. */
  private stringLength(area: StringArea): number {
    const returned = this.returned(area)
    return returned < 0 ? -1 : Math.min(Math.max(returned - 1, 0), area.bytes - 2)
  }

  /** What the helper returned: a length, or a negative errno. Both fit into the lower half of the field. */
  private returned(area: StringArea): number {
    return this.#view.getInt32(this.#offset + area.lengthAt, true)
  }

  /** An argument that is no plain number. */
  private argument(index: number): ArgumentValue {
    const operand = this.#source.shape.operands[index]
    if (operand === undefined || operand.kind === 'unsupported') return { unsupported: operand?.text ?? '' }
    const at = this.#offset + OPERANDS + 8 * index
    const area = ((this.u32(FLAGS) >>> index) & 1) === 1 ? undefined : this.area(index)
    return area === undefined ? { unreadable: hex(this.#view.getBigUint64(at, true)) } : this.string(area, at, operand.size)
  }

  private string(area: StringArea, at: number, pointerBytes: OperandFormat['size']): ArgumentValue {
    const length = this.stringLength(area)
    // The record has the whole register; the program narrowed it before it read there.
    if (length < 0) return { unreadable: hex(BigInt.asUintN(8 * pointerBytes, this.#view.getBigUint64(at, true))) }
    // The kernel was given two bytes more than may be delivered; it used them all only if the string is longer.
    if (this.returned(area) < area.bytes) return readText(this.#view, this.#offset + area.dataAt, length)
    const bytes = this.bytesAt(area.dataAt, length)
    return { string: bytes.subarray(0, wholeCharacters(bytes)).toString('utf8'), truncated: true }
  }
}

/** The batch that a string was read from last, as a Buffer: a view made anew for each string would cost more than the string, and so would asking the view for its memory. */
let lastView: DataView = new DataView(new ArrayBuffer(0))
let lastBatch = Buffer.alloc(0)

/** Reads UTF-8. Most text is ASCII, which is Latin-1 as well, and that is far quicker to make a string of. */
function readText(view: DataView, at: number, length: number): string {
  if (lastView !== view) {
    lastView = view
    lastBatch = Buffer.from(view.buffer as ArrayBuffer, view.byteOffset, view.byteLength)
  }
  return lastBatch.toString(isAscii(view, at, length) ? 'latin1' : 'utf8', at, at + length)
}

function isAscii(view: DataView, at: number, length: number): boolean {
  const whole = length & ~3
  let bits = 0
  for (let index = 0; index < whole; index += 4) bits |= view.getInt32(at + index, true)
  for (let index = whole; index < length; index++) bits |= view.getInt8(at + index)
  return (bits & 0x8080_8080) === 0
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

/** The format of an operand that is a string, or that cannot be read. The others: the size in the low bits, and what the number is like above. */
const NOT_A_NUMBER = 0
const SIGNED = 16
const FLOAT = 32

function formatsOf(shape: CaptureShape): Uint8Array {
  const strings = new Set(readableStrings(shape))
  return Uint8Array.from(shape.operands, (operand, index) => {
    if (operand.kind === 'unsupported' || strings.has(index)) return NOT_A_NUMBER
    return operand.size | (operand.float ? FLOAT : operand.signed ? SIGNED : 0)
  })
}

function sourceOf(shape: CaptureShape, siteOf: HitSource['siteOf'], stacks: HitStacks | null): HitSource {
  const layout = layoutOf(shape)
  const formats = formatsOf(shape)
  const areasOf = ({ strings }: RecordClass) => shape.operands.map((_, index) => strings.find(({ operand }) => operand === index))
  return {
    shape,
    layout,
    stacks,
    formats,
    numbers: !formats.includes(NOT_A_NUMBER),
    areas: areasOf(layout.full),
    smallAreas: layout.small === null ? null : areasOf(layout.small),
    siteOf,
  }
}

/** As many numbers as there are formats. An array that is listed is made in one step, which one that is filled is not. */
function readNumbers(view: DataView, at: number, formats: Uint8Array): Array<number | bigint> {
  const [first, second] = [formats[0], formats[1]]
  if (first === undefined) return []
  if (second === undefined) return [readNumber(view, at, first)]
  const numbers = [readNumber(view, at, first), readNumber(view, at + 8, second)]
  for (let index = 2; index < formats.length; index++) numbers.push(readNumber(view, at + 8 * index, formats[index] ?? NOT_A_NUMBER))
  return numbers
}

function readNumber(view: DataView, at: number, format: number): number | bigint {
  switch (format) {
    case 1 | SIGNED:
      return view.getInt8(at)
    case 1:
      return view.getUint8(at)
    case 2 | SIGNED:
      return view.getInt16(at, true)
    case 2:
      return view.getUint16(at, true)
    case 4 | SIGNED:
      return view.getInt32(at, true)
    case 4:
      return view.getUint32(at, true)
    case 8 | SIGNED:
      return view.getBigInt64(at, true)
    case 4 | FLOAT:
      return view.getFloat32(at, true)
    case 8 | FLOAT:
      return view.getFloat64(at, true)
    default:
      return view.getBigUint64(at, true)
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

/** Where records begin in a batch. */
export type RecordOffsets = Uint32Array

/** Decodes the records of one probe. */
export class HitDecoder {
  readonly #sources: readonly HitSource[]
  #buffer = new ArrayBuffer(0)
  #view = new DataView(this.#buffer)

  /**
   * @param shapes - by slot
   * @param siteOf - the site of a slot, as the user sees it
   * @param stacks - where stacks are, if the shapes record them
   */
  constructor(shapes: readonly CaptureShape[], siteOf: (slot: number) => ProbeSite, stacks: HitStacks | null = null) {
    const sources = new Map<CaptureShape, HitSource>()
    this.#sources = shapes.map((shape) => {
      const known = sources.get(shape)
      if (known !== undefined) return known
      const source = sourceOf(shape, siteOf, shape.stack ? stacks : null)
      sources.set(shape, source)
      return source
    })
  }

  /** Adds 1 to `counts`, one a slot, for each of the records at `offsets`, from `start` up to `end`. */
  countSlots(buffer: ArrayBuffer, offsets: RecordOffsets, start: number, end: number, counts: Float64Array): void {
    if (counts.length === 1) {
      counts[0] = (counts[0] ?? 0) + end - start
      return
    }
    const view = this.#viewOf(buffer)
    for (let index = start; index < end; index++) {
      const slot = view.getUint32((offsets[index] ?? 0) + SLOT, true)
      counts[slot] = (counts[slot] ?? 0) + 1
    }
  }

  /** The hit of the record at `offset`. */
  decode(buffer: ArrayBuffer, offset: number): Hit {
    const view = this.#viewOf(buffer)
    const slot = view.getUint32(offset + SLOT, true)
    const source = this.#sources[slot]
    if (source === undefined) throw new RangeError(`a record names slot ${slot}, which does not exist`)
    return new Hit(view, offset, source)
  }

  #viewOf(buffer: ArrayBuffer): DataView {
    // Not asked of the view, whose getter is a call.
    if (this.#buffer !== buffer) {
      this.#buffer = buffer
      this.#view = new DataView(buffer)
    }
    return this.#view
  }
}
