/**
 * BPF code that builds the key of a group on the stack, and the reading of keys.
 *
 * Equal keys must be equal bytes, so everything is written, padding included. A string has `stringLimit` bytes and two more: the first of them is 0 behind a whole string of that length, 1 if the string went on, 2 if it
 * could not be read. What lies behind the NUL is 0: the area is cleared, and the kernel copies no more than the string (since Linux 5.10, 6fa6d28051e9).
 */
import { type ArgumentValue, wholeCharacters } from '../capture/arguments.js'
import { type Assembler, HELPER, Label } from '../capture/bpf.js'
import { emitNumber } from '../capture/filter-number-code.js'
import { FRAME, type ReadingProgram, STACK } from '../capture/frame.js'
import { emitString, emitValue } from '../capture/operand-code.js'
import { COMM_BYTES } from '../capture/record.js'
import type { CaptureShape } from '../capture/shape.js'
import { KEY } from './frame.js'
import type { GroupLayout, KeyPart } from './layout.js'
import { bindTerm, readsMemory } from './terms.js'

const CUT = 1
const UNREADABLE = 2

/** Builds the key at {@link KEY}. */
export function emitKey(asm: Assembler, program: ReadingProgram, layout: GroupLayout, shape: CaptureShape): void {
  const { keyFlagsAt } = layout
  if (keyFlagsAt !== null) asm.storeImm(FRAME, KEY + keyFlagsAt, 0, 8)
  for (const [index, part] of layout.key.entries()) emitPart(asm, program, layout, shape, part, index)
}

/** Whether any part of a key is read from memory of the target. */
export function keyReadsMemory({ key }: GroupLayout, operands: CaptureShape['operands']): boolean {
  return key.some((part) => part.kind !== 'comm' && readsMemory(part.term, operands))
}

function emitPart(asm: Assembler, program: ReadingProgram, layout: GroupLayout, shape: CaptureShape, part: KeyPart, index: number): void {
  const at = KEY + part.at
  if (part.kind === 'comm') {
    asm.mov(1, FRAME)
    asm.addImm(1, at)
    asm.load(2, COMM_BYTES)
    asm.call(HELPER.get_current_comm)
    return
  }
  const bound = bindTerm(part.term, shape.operands)
  const unreadable = new Label()
  const done = new Label()
  if (bound.is === 'number') {
    emitNumber(asm, program, bound.number, 0, unreadable)
    asm.storeMemory(FRAME, at, 1, 8)
    if (layout.keyFlagsAt === null) return
    // The verifier refuses code that no jump leads to.
    asm.load(1, 0)
    asm.jumpIf(1, 'jeq', 0, done)
    asm.place(unreadable)
    asm.storeImm(FRAME, at, 0, 8)
    asm.loadMemory(1, FRAME, KEY + layout.keyFlagsAt, 8)
    asm.orImm(1, 1 << index)
    asm.storeMemory(FRAME, KEY + layout.keyFlagsAt, 1, 8)
    asm.place(done)
    return
  }
  const { subject } = bound
  if (subject === null) return
  const mark = at + layout.stringLimit
  const cut = new Label()
  for (let word = 0; word < part.bytes; word += 8) asm.storeImm(FRAME, at + word, 0, 8)
  emitValue(asm, program, subject, unreadable)
  asm.storeMemory(FRAME, STACK.address, 1, 8)
  emitString(asm, program, FRAME, at, layout.stringLimit + 2)
  asm.jumpIf(0, 'jeq', layout.stringLimit + 2, cut)
  asm.jumpIf(0, 'jsge', 0, done)
  asm.place(unreadable)
  asm.storeImm(FRAME, mark, UNREADABLE, 1)
  asm.jump(done)
  asm.place(cut)
  asm.storeImm(FRAME, mark, CUT, 1)
  asm.place(done)
}

/** The parts of a key, in the order of `by`. */
export function decodeKey({ key, keyFlagsAt, stringLimit }: GroupLayout, bytes: Buffer): ArgumentValue[] {
  const flags = keyFlagsAt === null ? 0n : bytes.readBigUInt64LE(keyFlagsAt)
  return key.map((part, index) => {
    if (part.kind === 'number') {
      if (((flags >> BigInt(index)) & 1n) === 1n) return { unreadable: part.term.text }
      const value = part.signed ? bytes.readBigInt64LE(part.at) : bytes.readBigUInt64LE(part.at)
      return part.wide ? value : Number(value)
    }
    const area = bytes.subarray(part.at, part.at + part.bytes)
    const mark = part.kind === 'string' ? area[stringLimit] : 0
    if (mark === UNREADABLE) return { unreadable: part.term.text }
    const text = area.subarray(0, mark === CUT ? stringLimit : area.indexOf(0))
    if (mark !== CUT) return text.toString()
    return { string: text.subarray(0, wholeCharacters(text)).toString(), truncated: true }
  })
}
