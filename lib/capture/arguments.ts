/**
 * The arguments of a hit, read from its record.
 */
import type { BatchMemory } from './memory.js'
import { FIELD, layoutOf, type RecordClass, SMALL_RECORD_BIT, type StringArea } from './record.js'
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

/** Arguments as JSON can hold them: an integer beyond 2^53 becomes a decimal string, and so does a number that JSON has no form for. */
export function argsToJson(args: readonly ArgumentValue[]): ArgJson[] {
  return args.map((value) => {
    if (typeof value === 'bigint') {
      return value >= -BigInt(Number.MAX_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value.toString()
    }
    return typeof value === 'number' && !Number.isFinite(value) ? String(value) : value
  })
}

/** What of the layout is needed at every hit, where no time is to be lost in looking it up. */
const { flags: FLAGS, operands: OPERANDS } = FIELD

/** How an operand is read: its size in the low bits, and what the number is like above; or one of the two that are no numbers. */
const UNSUPPORTED = 0
const SIGNED = 16
const FLOAT = 32
const STRING = 64
/** What most arguments are. */
export const INT32 = 4 | SIGNED

type StringAreas = ReadonlyArray<StringArea | undefined>

/** Reads the arguments of all hits of one shape, of any number of arguments. */
export class ArgumentReader {
  /** By operand; for whoever reads {@link INT32} by himself. */
  readonly formats: Uint8Array
  /** Where the string of each operand is that was asked for as one: in a record of the full class, and in one of the small. */
  readonly #areas: StringAreas
  readonly #smallAreas: StringAreas

  constructor(private readonly shape: CaptureShape) {
    const { full, small } = layoutOf(shape)
    const strings = new Set(readableStrings(shape))
    this.formats = Uint8Array.from(shape.operands, (operand, index) => {
      if (operand.kind === 'unsupported') return UNSUPPORTED
      return strings.has(index) ? STRING : operand.size | (operand.float ? FLOAT : operand.signed ? SIGNED : 0)
    })
    const areasOf = ({ strings }: RecordClass) => shape.operands.map((_, index) => strings.find(({ operand }) => operand === index))
    this.#areas = areasOf(full)
    this.#smallAreas = small === null ? this.#areas : areasOf(small)
  }

  /** All arguments of the record at `offset`. */
  read(memory: BatchMemory, offset: number): ArgumentValue[] {
    const { formats } = this
    const flags = memory.int32(offset + FLAGS)
    const args = new Array<ArgumentValue>(formats.length)
    for (let index = 0; index < formats.length; index++) args[index] = this.one(memory, offset + OPERANDS, flags, formats[index], index)
    return args
  }

  /** The argument at `index` of the record at `offset`; `undefined` if there is none. */
  readOne(memory: BatchMemory, offset: number, index: number): ArgumentValue | undefined {
    const format = this.formats[index]
    return format === undefined ? undefined : this.one(memory, offset + OPERANDS, memory.int32(offset + FLAGS), format, index)
  }

  /** Where the bytes of a string are, without its NUL; `null` if it was not asked for as one, or was not readable. */
  stringAt(memory: BatchMemory, offset: number, index: number): { readonly at: number; readonly length: number } | null {
    const area = this.areas(memory.int32(offset + FLAGS))[index]
    if (area === undefined) return null
    const returned = memory.int32(offset + area.lengthAt)
    return returned < 0 ? null : { at: offset + area.dataAt, length: stringLength(area, returned) }
  }

  /**
   * The argument at `index`, of a record whose operands begin at `operands`. So short that it becomes part of whoever calls it, with what most arguments are. Protected, and not `#`: an object with `#`
   * methods is asked for a mark at each call.
   */
  protected one(memory: BatchMemory, operands: number, flags: number, format: number | undefined, index: number): ArgumentValue {
    if (format === INT32 && ((flags >>> index) & 1) === 0) return memory.int32(operands + 8 * index)
    return this.other(memory, operands, flags, format, index)
  }

  private other(memory: BatchMemory, operands: number, flags: number, format: number | undefined, index: number): ArgumentValue {
    const at = operands + 8 * index
    if (((flags >>> index) & 1) === 1) return this.missing(memory.view, at, index)
    if (format === STRING) return this.string(memory, operands - OPERANDS, flags, index)
    if (format === 4) {
      // A number that is as large as no signed one is left to the others: what can be both is kept as a floating-point number by V8, and converted twice.
      const low = memory.int32(at)
      if (low >= 0) return low
    }
    return format === UNSUPPORTED ? this.missing(memory.view, at, index) : readNumber(memory.view, at, format)
  }

  private areas(flags: number): StringAreas {
    return flags >>> SMALL_RECORD_BIT === 1 ? this.#smallAreas : this.#areas
  }

  private string(memory: BatchMemory, offset: number, flags: number, index: number): ArgumentValue {
    const area = this.areas(flags)[index]
    if (area === undefined) throw new RangeError(`operand ${index} is no string`)
    // What the helper returned: a length with the NUL, or a negative errno. Both fit into the lower half of the field.
    const returned = memory.int32(offset + area.lengthAt)
    // The kernel was given two bytes more than may be delivered; it used them all only if the string is longer.
    if (returned > 0 && returned < area.bytes) return memory.text(offset + area.dataAt, returned - 1)
    return this.cutString(memory, offset, area, returned)
  }

  /** A string that is not there as a whole. */
  private cutString(memory: BatchMemory, offset: number, area: StringArea, returned: number): ArgumentValue {
    const at = offset + area.dataAt
    if (returned === 0) return ''
    if (returned > 0) {
      const bytes = memory.bytes.subarray(at, at + stringLength(area, returned))
      return { string: bytes.subarray(0, wholeCharacters(bytes)).toString('utf8'), truncated: true }
    }
    const operand = this.shape.operands[area.operand]
    const bits = operand === undefined || operand.kind === 'unsupported' ? 64 : 8 * operand.size
    // The record has the whole register; the program narrowed it before it read there.
    return { unreadable: hex(BigInt.asUintN(bits, memory.view.getBigUint64(offset + OPERANDS + 8 * area.operand, true))) }
  }

  private missing(view: DataView, at: number, index: number): ArgumentValue {
    const operand = this.shape.operands[index]
    if (operand === undefined || operand.kind === 'unsupported') return { unsupported: operand?.text ?? '' }
    return { unreadable: hex(view.getBigUint64(at, true)) }
  }
}

/*
 * An array that is listed is made in one step, which one that is filled is not. Each length has its reader, since V8 keeps out of memory what is made in one place and never leaves a loop, but not what was made in one of several.
 * There are no more of them than four, which is as many classes as it follows in one call.
 */

class OneArgumentReader extends ArgumentReader {
  override read(memory: BatchMemory, offset: number): ArgumentValue[] {
    const flags = memory.int32(offset + FLAGS)
    const at = offset + OPERANDS
    return [this.one(memory, at, flags, this.formats[0], 0)]
  }
}

class TwoArgumentsReader extends ArgumentReader {
  override read(memory: BatchMemory, offset: number): ArgumentValue[] {
    const { formats } = this
    const flags = memory.int32(offset + FLAGS)
    const at = offset + OPERANDS
    return [this.one(memory, at, flags, formats[0], 0), this.one(memory, at, flags, formats[1], 1)]
  }
}

class ThreeArgumentsReader extends ArgumentReader {
  override read(memory: BatchMemory, offset: number): ArgumentValue[] {
    const { formats } = this
    const flags = memory.int32(offset + FLAGS)
    const at = offset + OPERANDS
    return [
      this.one(memory, at, flags, formats[0], 0),
      this.one(memory, at, flags, formats[1], 1),
      this.one(memory, at, flags, formats[2], 2),
    ]
  }
}

/** The reader for a shape. */
export function argumentReader(shape: CaptureShape): ArgumentReader {
  switch (shape.operands.length) {
    case 1:
      return new OneArgumentReader(shape)
    case 2:
      return new TwoArgumentsReader(shape)
    case 3:
      return new ThreeArgumentsReader(shape)
    default:
      return new ArgumentReader(shape)
  }
}

function readNumber(view: DataView, at: number, format: number | undefined): number | bigint {
  switch (format) {
    case 4:
      return view.getUint32(at, true)
    case 8 | SIGNED:
      return view.getBigInt64(at, true)
    case 1 | SIGNED:
      return view.getInt8(at)
    case 1:
      return view.getUint8(at)
    case 2 | SIGNED:
      return view.getInt16(at, true)
    case 2:
      return view.getUint16(at, true)
    case 4 | FLOAT:
      return view.getFloat32(at, true)
    case 8 | FLOAT:
      return view.getFloat64(at, true)
    default:
      return view.getBigUint64(at, true)
  }
}

/** Bytes of a string without its NUL, at most the limit. */
function stringLength(area: StringArea, returned: number): number {
  return Math.min(Math.max(returned - 1, 0), area.bytes - 2)
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

/** An address or offset, as `0x…`. */
export function hex(value: bigint): string {
  return `0x${value.toString(16)}`
}
