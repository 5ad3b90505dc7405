/**
 * The record that a capture program writes at each hit, and where its fields are.
 *
 *      0  u64  time, CLOCK_MONOTONIC in nanoseconds (bpf_ktime_get_ns)
 *      8  u32  thread id, then u32 process id (bpf_get_current_pid_tgid)
 *     16  u32  number of the probe within its tracer
 *     20  u32  slot: which site of the probe
 *     24  u32  cpu
 *     28  u32  flags: bit i is set if operand i could not be read; bit 31 if the record is of the small class
 *     32  char comm[16]
 *     48  u64  one an operand: the raw register or constant, the bytes read from memory, or the address that could not be read
 *      …  i64  one a string: bytes with the final NUL as bpf_probe_read_user_str returns them, or a negative errno
 *      …  u64  twice, if stacks are recorded: what the stack is known by (stack-code.ts)
 *      …       one area a string, as long as the longest string and two bytes more, padded to 8
 *
 * The two bytes more tell a string of exactly the longest length from one that was cut. Since a ring buffer hands out memory only in sizes that the verifier knows, a shape
 * with long strings has two classes of record: a small one for when all strings are short, and the full one.
 */
import { UprobeError } from '../errors.js'
import { type CaptureShape, readableStrings } from './shape.js'
import { STACK_KEY_BYTES } from './stack-code.js'

/** Offsets of the fields that every record has, in bytes. */
export const FIELD = { time: 0, tid: 8, pid: 12, probeId: 16, slot: 20, cpu: 24, flags: 28, comm: 32, operands: 48 } as const

/** Length of `comm`. */
export const COMM_BYTES = 16

/** The flag that marks a record of the small class. */
export const SMALL_RECORD_BIT = 31

/** Bytes of each string area of a small record. */
const SMALL_AREA = 256
/** String space from which on the small class is worth the trouble. */
const SMALL_CLASS_FROM = 1024
/** Largest record. */
export const MAX_RECORD_BYTES = 65_536

/** Where a string of a record is. */
export interface StringArea {
  /** Index of the operand that points to it. */
  readonly operand: number
  /** Offset of its length. */
  readonly lengthAt: number
  /** Offset of its first byte. */
  readonly dataAt: number
  /** Bytes that the kernel may write. */
  readonly bytes: number
}

/** One class of records of a shape. */
export interface RecordClass {
  /** Size of the record. */
  readonly bytes: number
  readonly strings: readonly StringArea[]
  /** Offset of what the stack is known by; `null` if stacks are not recorded. */
  readonly stackAt: number | null
  /** Whether it is the small class. */
  readonly small: boolean
}

/** The records of a shape. */
export interface RecordLayout {
  readonly full: RecordClass
  /** `null` when the full one is small enough. */
  readonly small: RecordClass | null
}

/**
 * Lays out the records of a shape.
 * @throws {UprobeError} `ERR_UPROBE_BAD_OPTION` when the strings do not fit a record
 */
export function layoutOf(shape: CaptureShape): RecordLayout {
  const full = classOf(shape, align8(shape.stringLimit + 2), false)
  if (full.bytes > MAX_RECORD_BYTES) {
    throw new UprobeError(
      'ERR_UPROBE_BAD_OPTION',
      `Options strings and stringLimit ask for records of ${full.bytes} bytes, and ${MAX_RECORD_BYTES} are possible. Ask for fewer or shorter strings.`,
    )
  }
  const space = full.strings.reduce((sum, { bytes }) => sum + bytes, 0)
  return { full, small: space >= SMALL_CLASS_FROM && shape.stringLimit + 2 > SMALL_AREA ? classOf(shape, SMALL_AREA, true) : null }
}

function classOf(shape: CaptureShape, areaBytes: number, small: boolean): RecordClass {
  const indexes = readableStrings(shape)
  const lengths = FIELD.operands + 8 * shape.operands.length
  const stackAt = lengths + 8 * indexes.length
  const areas = stackAt + (shape.stack ? STACK_KEY_BYTES : 0)
  // The area is padded, but the kernel is not told of the padding, so that the limit is kept to the byte.
  const usable = small ? SMALL_AREA : shape.stringLimit + 2
  return {
    small,
    stackAt: shape.stack ? stackAt : null,
    bytes: areas + areaBytes * indexes.length,
    strings: indexes.map((operand, index) => ({
      operand,
      lengthAt: lengths + 8 * index,
      dataAt: areas + areaBytes * index,
      bytes: usable,
    })),
  }
}

/** The next multiple of 8. */
export function align8(bytes: number): number {
  return Math.ceil(bytes / 8) * 8
}

/** Bytes before each record in a batch: u32 length of the record, u32 of the kernel's own. */
export const BATCH_HEAD = 8
