/** Batches made by hand, as the ring reader hands them out. */
import { FIELD, layoutOf, SMALL_RECORD_BIT } from '../../lib/capture/record.js'
import type { CaptureShape } from '../../lib/capture/shape.js'

/** What the kernel would have written. What is left out is zero. */
export interface RecordContent {
  readonly time?: bigint
  readonly pid?: number
  readonly tid?: number
  readonly probeId?: number
  readonly slot?: number
  readonly cpu?: number
  readonly comm?: string | Uint8Array
  /** One u64 an operand. */
  readonly values?: readonly bigint[]
  /** Indexes of operands that could not be read. */
  readonly unreadable?: readonly number[]
  /** By index of the operand: what the string helper copied, and what it returned (default: the bytes and a NUL). */
  readonly strings?: Readonly<Record<number, { bytes: Uint8Array; returned?: number }>>
  /** The record is of the small class. */
  readonly small?: boolean
}

const HEAD_BYTES = 8

/** A batch of records of one shape. Unused bytes are 0xaa, as an old record might have left them. */
export function batchOf(shape: CaptureShape, contents: readonly RecordContent[]): ArrayBuffer {
  const { full, small } = layoutOf(shape)
  const records = contents.map((content) => {
    const record = content.small === true ? small : full
    if (record === null) throw new Error('the shape has no small class')
    const bytes = Buffer.alloc(HEAD_BYTES + Math.ceil(record.bytes / 8) * 8, 0xaa)
    bytes.writeUInt32LE(record.bytes, 0)
    bytes.writeUInt32LE(0, 4)
    const body = bytes.subarray(HEAD_BYTES)
    body.writeBigUInt64LE(content.time ?? 0n, FIELD.time)
    body.writeUInt32LE(content.tid ?? 0, FIELD.tid)
    body.writeUInt32LE(content.pid ?? 0, FIELD.pid)
    body.writeUInt32LE(content.probeId ?? 0, FIELD.probeId)
    body.writeUInt32LE(content.slot ?? 0, FIELD.slot)
    body.writeUInt32LE(content.cpu ?? 0, FIELD.cpu)
    const flags = (content.unreadable ?? []).reduce(
      (bits, index) => bits | (1 << index),
      content.small === true ? 1 << SMALL_RECORD_BIT : 0,
    )
    body.writeUInt32LE(flags >>> 0, FIELD.flags)
    body.fill(0, FIELD.comm, FIELD.operands)
    Buffer.from(content.comm ?? '').copy(body, FIELD.comm, 0, FIELD.operands - FIELD.comm)
    for (const index of shape.operands.keys()) body.writeBigUInt64LE(content.values?.[index] ?? 0n, FIELD.operands + 8 * index)
    for (const area of record.strings) {
      const text = content.strings?.[area.operand]
      body.writeBigInt64LE(BigInt(text === undefined ? -1 : (text.returned ?? text.bytes.length + 1)), area.lengthAt)
      if (text !== undefined) body.set([...text.bytes, 0].slice(0, area.bytes), area.dataAt)
    }
    return bytes
  })
  const all = Buffer.concat(records)
  return all.buffer.slice(all.byteOffset, all.byteOffset + all.length) as ArrayBuffer
}
