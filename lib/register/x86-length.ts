/**
 * Lengths of x86-64 instructions.
 *
 * A uprobe replaces the first byte of an instruction. The kernel decodes what it finds at the given address and believes it, so a probe in the
 * middle of an instruction is accepted, and changes an operand of a program that runs. Where instructions begin can only be told by decoding forward
 * from a place that is known to be a beginning, and for that their lengths suffice.
 *
 * An instruction is, in this order (Intel SDM volume 2, chapter 2):
 *
 *     legacy prefixes   66 67 f0 f2 f3 2e 36 3e 26 64 65, any number
 *     REX               40..4f, counts only directly before the opcode
 *     opcode            one byte, or 0f and one byte, or 0f 38 / 0f 3a and one byte
 *     ModRM             which register or memory operand; may bring a SIB byte and a displacement of 1 or 4 bytes
 *     immediate         1, 2, 4 or 8 bytes
 *
 * VEX, EVEX and XOP fold prefixes and the choice of the opcode map into 2 to 4 bytes of their own. So the length depends on the opcode map (does this
 * opcode have a ModRM byte, and which immediate?), on ModRM itself, and on the prefixes 66, 67 and REX.W. The maps below are that knowledge: one
 * character an opcode, explained in {@link operandBytes}.
 *
 * What is not decoded is answered with `null`, which callers take for "cannot tell": the opcodes that 64-bit mode does not have, the forms of
 * Intel APX (REX2, EVEX map 4), and a near branch with a 66 prefix, whose displacement has 4 bytes on Intel and 2 on AMD. Opcodes that are not defined
 * yet get the length that their map implies.
 */

/** The processor refuses longer instructions, whatever they consist of. */
export const MAX_INSTRUCTION_BYTES = 15

/** A row of 16 opcodes is a line; blanks are for the eye. */
function opcodeMap(rows: string): string {
  const map = rows.replace(/\s/g, '')
  if (map.length !== 256) throw new RangeError(`an opcode map has 256 entries, not ${map.length}`)
  return map
}

/** Opcodes without an escape byte. P prefix, R REX, E escape to another map or encoding; the rest as in {@link operandBytes}. */
const ONE_BYTE = opcodeMap(`
  mmmmbzxx mmmmbzxE
  mmmmbzxx mmmmbzxx
  mmmmbzPx mmmmbzPx
  mmmmbzPx mmmmbzPx
  RRRRRRRR RRRRRRRR
  ........ ........
  xxEmPPPP zZbB....
  bbbbbbbb bbbbbbbb
  BZxBmmmm mmmmmmmE
  ........ ..x.....
  oooo.... bz......
  bbbbbbbb vvvvvvvv
  BBw.EEBZ e.w..bx.
  mmmmxEx. mmmmmmmm
  bbbbbbbb rrxb....
  P.PP..tT ......mm
`)

/** Opcodes after 0f. */
const TWO_BYTE = opcodeMap(`
  mmmmx... ..x.xm.B
  mmmmmmmm mmmmmmmm
  ccccxxxx mmmmmmmm
  ......x. ExExxxxx
  mmmmmmmm mmmmmmmm
  mmmmmmmm mmmmmmmm
  mmmmmmmm mmmmmmmm
  BBBBmmm. smxxmmmm
  rrrrrrrr rrrrrrrr
  mmmmmmmm mmmmmmmm
  ...mBmmm ...mBmmm
  mmmmmmmm mmBmmmmm
  mmBmBBBm ........
  mmmmmmmm mmmmmmmm
  mmmmmmmm mmmmmmmm
  mmmmmmmm mmmmmmmm
`)

/** What the prefixes of an instruction change. */
interface Prefixes {
  /** 66: immediates of 2 bytes instead of 4. */
  readonly operandSize: boolean
  /** 67: absolute addresses of 4 bytes instead of 8. */
  readonly addressSize: boolean
  /** f2 or f3. */
  readonly repeat: boolean
  /** REX.W: 64-bit operands; it overrides 66. */
  readonly wide: boolean
}

const NO_PREFIXES: Prefixes = { operandSize: false, addressSize: false, repeat: false, wide: false }

/**
 * Bytes of the instruction at `offset`, from its first prefix to the end of its immediate.
 * @returns `null` if these bytes are no instruction of 64-bit mode, are one that is not decoded here, or end before the instruction does.
 */
export function instructionLength(bytes: Uint8Array, offset: number): number | null {
  const end = decode(bytes, offset)
  if (end === null || end > bytes.length || end - offset > MAX_INSTRUCTION_BYTES) return null
  return end - offset
}

/** Where the instruction ends; beyond the end of `bytes` if it is cut off there. */
function decode(bytes: Uint8Array, offset: number): number | null {
  let at = offset
  let operandSize = false
  let addressSize = false
  let repeat = false
  let locked = false
  let rex = 0
  for (; at - offset < MAX_INSTRUCTION_BYTES; at++) {
    const byte = bytes[at]
    if (byte === undefined) return null
    const kind = ONE_BYTE[byte]
    if (kind === 'R') {
      rex = byte
    } else if (kind === 'P') {
      rex = 0
      operandSize ||= byte === 0x66
      addressSize ||= byte === 0x67
      repeat ||= byte === 0xf2 || byte === 0xf3
      locked ||= byte === 0xf0
    } else {
      const prefixes = { operandSize, addressSize, repeat, wide: (rex & 0x08) !== 0 }
      // VEX, EVEX and XOP carry 66, f2, f3 and REX inside, and are undefined after any of them and after lock.
      const vectorAllowed = rex === 0 && !operandSize && !repeat && !locked
      return kind === 'E' ? decodeEscape(bytes, at, prefixes, vectorAllowed) : operandBytes(kind, bytes, at + 1, prefixes)
    }
  }
  return null
}

/** The opcodes that lead to other maps, and the vector encodings. */
function decodeEscape(bytes: Uint8Array, at: number, prefixes: Prefixes, vectorAllowed: boolean): number | null {
  switch (bytes[at]) {
    case 0x0f:
      return decodeTwoByte(bytes, at + 1, prefixes)
    case 0x8f: {
      const next = bytes[at + 1]
      if (next === undefined) return null
      // The map number of XOP is 8 or more, which would be a register field other than 0: pop has only /0.
      if ((next & 0x1f) < 8) return (next & 0x38) === 0 ? operandBytes('m', bytes, at + 1, prefixes) : null
      return vectorAllowed ? decodeXop(bytes, at) : null
    }
    case 0xc4:
    case 0xc5:
      return vectorAllowed ? decodeVex(bytes, at) : null
    case 0x62:
      return vectorAllowed ? decodeEvex(bytes, at) : null
    default:
      return null
  }
}

function decodeTwoByte(bytes: Uint8Array, at: number, prefixes: Prefixes): number | null {
  const opcode = bytes[at]
  if (opcode === undefined) return null
  if (opcode === 0x38) return operandBytes('m', bytes, at + 2, prefixes)
  if (opcode === 0x3a) return operandBytes('B', bytes, at + 2, prefixes)
  return operandBytes(TWO_BYTE[opcode], bytes, at + 1, prefixes)
}

/** `c5 P opcode` has map 1; `c4 RXB.map P opcode` names its map in the low five bits. */
function decodeVex(bytes: Uint8Array, at: number): number | null {
  const short = bytes[at] === 0xc5
  const map = short ? 1 : (bytes[at + 1] ?? 0) & 0x1f
  return decodeVector(map, bytes, at + (short ? 2 : 3))
}

/** `62 P0 P1 P2 opcode`: three bits of map, and a bit in P1 that is fixed to 1. */
function decodeEvex(bytes: Uint8Array, at: number): number | null {
  const map = (bytes[at + 1] ?? 0) & 0x07
  const fixed = (bytes[at + 2] ?? 0) & 0x04
  return fixed === 0 ? null : decodeVector(map, bytes, at + 4)
}

/** `8f RXB.map P opcode`, of AMD's processors from 2011 to 2017. */
function decodeXop(bytes: Uint8Array, at: number): number | null {
  const map = (bytes[at + 1] ?? 0) & 0x1f
  switch (map) {
    case 8:
      return operandBytes('B', bytes, at + 4, NO_PREFIXES)
    case 9:
      return operandBytes('m', bytes, at + 4, NO_PREFIXES)
    case 10:
      return operandBytes('Z', bytes, at + 4, NO_PREFIXES)
    default:
      return null
  }
}

/** Vector opcodes of maps 1 (0f), 2 (0f 38), 3 (0f 3a), and 5 and 6 (half precision). */
function decodeVector(map: number, bytes: Uint8Array, at: number): number | null {
  const opcode = bytes[at]
  if (opcode === undefined) return null
  switch (map) {
    case 1: {
      const kind = TWO_BYTE[opcode]
      // vzeroupper and vzeroall have no ModRM; of the others only those with an immediate byte in map 0f have one here.
      if (opcode === 0x77) return at + 1
      return operandBytes(kind === 'B' ? 'B' : 'm', bytes, at + 1, NO_PREFIXES)
    }
    case 2:
    case 5:
    case 6:
      return operandBytes('m', bytes, at + 1, NO_PREFIXES)
    case 3:
      return operandBytes('B', bytes, at + 1, NO_PREFIXES)
    default:
      return null
  }
}

/**
 * Where the operands that start at `at` end, by the character of the opcode in its map.
 */
function operandBytes(kind: string | undefined, bytes: Uint8Array, at: number, prefixes: Prefixes): number | null {
  const full = prefixes.operandSize && !prefixes.wide ? 2 : 4
  switch (kind) {
    case '.': // nothing follows: ret
      return at
    case 'b': // an immediate or relative byte: push $1, jne
      return at + 1
    case 'w': // two bytes: ret $8
      return at + 2
    case 'z': // an immediate of the operand's size, at most 4 bytes: add $1,%eax
      return at + full
    case 'v': // the same, but 8 bytes for 64-bit operands: movabs
      return at + (prefixes.wide ? 8 : full)
    case 'o': // an absolute address: movabs 0x…,%al
      return at + (prefixes.addressSize ? 4 : 8)
    case 'e': // enter: two bytes and one
      return at + 3
    case 'r': // a relative displacement: call. Intel ignores 66, AMD does not
      return full === 2 ? null : at + 4
    case 'm': // ModRM: mov
      return modrmEnd(bytes, at)
    case 'c': // ModRM whose mode bits are ignored: mov %cr0,%rax
      return at + 1
    case 'B': // ModRM and a byte: shl $3,%eax
      return plus(modrmEnd(bytes, at), 1)
    case 'Z': // ModRM and an immediate of the operand's size: movl $1,(%rax)
      return plus(modrmEnd(bytes, at), full)
    case 't': // f6: test has an immediate byte (/0 and /1), not, neg, mul, div have none
      return plus(modrmEnd(bytes, at), registerField(bytes, at) < 2 ? 1 : 0)
    case 'T': // f7: the same, of the operand's size
      return plus(modrmEnd(bytes, at), registerField(bytes, at) < 2 ? full : 0)
    case 's': // 0f 78: vmread; with 66 or f2 extrq and insertq of SSE4a, with two bytes
      return plus(modrmEnd(bytes, at), prefixes.operandSize || prefixes.repeat ? 2 : 0)
    default: // x: not in 64-bit mode
      return null
  }
}

function plus(end: number | null, bytes: number): number | null {
  return end === null ? null : end + bytes
}

/** The middle three bits of ModRM, which choose the operation in opcodes that are groups. */
function registerField(bytes: Uint8Array, at: number): number {
  return ((bytes[at] ?? 0) >> 3) & 7
}

/**
 * Where the ModRM byte at `at`, its SIB byte and its displacement end:
 *
 *     mod 3               a register, nothing follows
 *     rm 4                a SIB byte follows
 *     mod 0, rm 5         disp32(%rip); with SIB base 5, disp32 without a base
 *     mod 1, mod 2        a displacement of 1 or 4 bytes
 */
function modrmEnd(bytes: Uint8Array, at: number): number | null {
  const modrm = bytes[at]
  if (modrm === undefined) return null
  const mod = modrm >> 6
  if (mod === 3) return at + 1
  let base = modrm & 7
  let end = at + 1
  if (base === 4) {
    const sib = bytes[end++]
    if (sib === undefined) return null
    base = sib & 7
  }
  if (mod === 1) return end + 1
  return mod === 2 || base === 5 ? end + 4 : end
}

/**
 * Whether the instruction of `length` bytes at `offset` does nothing, or is one of the hints that do nothing on some processors.
 *
 * It is meant for a refusal, and so it answers yes rather than no. It covers everything that the kernel takes for a nop (`insn_is_nop`,
 * arch/x86/lib/insn-eval.c, Linux 6.18): 90, `0f 1f`, a move of a register to itself, `lea 0(%reg),%reg`, a jump to the next instruction, each with any
 * prefixes; and beyond that the whole range `0f 18` to `0f 1f`, pause, and operand sizes that would clear the upper half of a register.
 */
export function isNop(bytes: Uint8Array, offset: number, length: number): boolean {
  const end = offset + length
  let at = offset
  let rex = 0
  for (; at < end; at++) {
    const byte = bytes[at] ?? 0
    if (ONE_BYTE[byte] === 'R') rex = byte
    else if (ONE_BYTE[byte] === 'P') rex = 0
    else break
  }
  const opcode = bytes[at]
  if (opcode === undefined || at >= end) return false
  const rest = bytes.subarray(at + 1, end)
  switch (opcode) {
    case 0x90: // with REX.B it exchanges %r8 and %rax
      return (rex & 1) === 0
    case 0x0f:
      return rest.length > 0 && ((rest[0] ?? 0) & 0xf8) === 0x18
    case 0x89:
    case 0x8b:
      return isSelfMove(rest, rex)
    case 0x8d:
      return isSelfLea(rest, rex)
    case 0xe9:
    case 0xeb:
      return rest.every((byte) => byte === 0)
    default:
      return false
  }
}

/** `mov %reg,%reg` with twice the same register; REX.R and REX.B are the fourth bits of the two. */
function isSelfMove([modrm = 0]: Uint8Array, rex: number): boolean {
  return modrm >> 6 === 3 && register(modrm >> 3, rex >> 2) === register(modrm, rex)
}

/** `lea 0(%reg),%reg`, with or without a SIB byte that names no index. */
function isSelfLea(operand: Uint8Array, rex: number): boolean {
  const [modrm = 0, sib = 0] = operand
  const mod = modrm >> 6
  if (mod === 3) return false
  const hasSib = (modrm & 7) === 4
  if (hasSib && register(sib >> 3, rex >> 1) !== 4) return false
  const base = register(hasSib ? sib : modrm, rex)
  if (mod === 0 && (base & 7) === 5) return false
  return base === register(modrm >> 3, rex >> 2) && operand.subarray(hasSib ? 2 : 1).every((byte) => byte === 0)
}

function register(low: number, extension: number): number {
  return (low & 7) | ((extension & 1) << 3)
}
