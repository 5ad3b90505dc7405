/**
 * Operands: where a USDT note says that its arguments are.
 *
 * The compiler writes one operand an argument into the note, in the assembler's own syntax, behind the argument's size:
 *
 *     -4@%edi   8@%rsi   4@-20(%rbp)   8@(%rax,%rcx,8)   -4@40+CheckpointStats(%rip)   -4@$1   8f@%rax      (x86-64)
 *     -4@x1     8@[x19, 200]   8@[sp, 152]   8@[x0]   -4@1                                                  (arm64)
 *
 * A minus before the size means a signed value, an `f` behind it a floating-point one. The text comes from an untrusted file, so it is parsed here once, by hand-written
 * rules, into a type that cannot be wrong; the compiler to BPF trusts it. What cannot be parsed or read becomes an `unsupported` operand in its place: the attach
 * goes on and the numbering of the others stays. Vector registers (`%xmm0`, `d0`) are unsupported because a BPF program sees only the general ones.
 */

/** Architectures whose operands are understood. */
export type Arch = 'x64' | 'arm64'

/** Size and kind of an argument. */
export interface OperandFormat {
  /** In bytes. */
  readonly size: 1 | 2 | 4 | 8
  readonly signed: boolean
  /** The bits are an IEEE 754 number of this size. */
  readonly float: boolean
}

/** An operand that cannot be read, and why. */
export interface UnsupportedOperand {
  readonly kind: 'unsupported'
  /** As stored in the note. */
  readonly text: string
  readonly reason: string
}

interface Readable extends OperandFormat {
  /** As stored in the note. */
  readonly text: string
}

/** The operand is its own value. */
export interface ConstantOperand extends Readable {
  readonly kind: 'constant'
  readonly value: bigint
}

/** The value is in a register, named as a whole (`rax`, `x19`, `sp`); `shift` is 8 for `%ah` and its like. */
export interface RegisterOperand extends Readable {
  readonly kind: 'register'
  readonly register: string
  readonly shift: 0 | 8
}

/** The value is in memory at base + index * scale + displacement. */
export interface MemoryOperand extends Readable {
  readonly kind: 'memory'
  readonly base: string | null
  readonly index: string | null
  readonly scale: 1 | 2 | 4 | 8
  readonly displacement: bigint
}

/** The value is in memory at a symbol of the same file plus an offset. */
export interface SymbolOperand extends Readable {
  readonly kind: 'symbol'
  readonly symbol: string
  readonly offset: bigint
}

/** The value is in memory at a fixed distance from the probed instruction, wherever the file is mapped. */
export interface PcRelativeOperand extends Readable {
  readonly kind: 'pc-relative'
  readonly delta: bigint
}

/** An operand as a note gives it. */
export type Operand = ConstantOperand | RegisterOperand | MemoryOperand | SymbolOperand | UnsupportedOperand

/** An operand whose symbol, if any, was found. */
export type BoundOperand = ConstantOperand | RegisterOperand | MemoryOperand | PcRelativeOperand | UnsupportedOperand

/** More operands than this are not read, since a record has a bit for each. sys/sdt.h makes at most 12. */
export const MAX_READ_OPERANDS = 31
const MAX_OPERANDS = 64
const MAX_TEXT = 4096

/** Parses the operands of a note. Never throws. */
export function parseOperands(args: string, arch: Arch): Operand[] {
  const parse = arch === 'x64' ? parseX64 : parseArm64
  return splitOperands(args.slice(0, MAX_TEXT)).map((text, index) => {
    if (index >= MAX_READ_OPERANDS) return unsupported(text, `only ${MAX_READ_OPERANDS} arguments are read`)
    const [, sign = '', size = '', float = '', place = text] = /^(-?)(\d+)(f?)@(.*)$/s.exec(text) ?? []
    if (size === '') return parseUnsized(text, arch)
    const format = formatOf(sign, size, float)
    return format === null ? unsupported(text, `arguments of ${size} bytes are not read`) : parse(place.trim(), { ...format, text })
  })
}

/**
 * `8@[x19, 200] -4@1` has two operands: blanks inside brackets do not separate. A blank before `-4@` does in any case, so that a bracket that is not
 * closed costs its own operand and not the ones behind it.
 */
const OPERAND_TEXT = /(?:\[(?:(?!\s+-?\d+f?@)[^\]])*\]?|\((?:(?!\s+-?\d+f?@)[^)])*\)?|[^\s[(])+/g

function splitOperands(args: string): string[] {
  return (args.match(OPERAND_TEXT) ?? []).slice(0, MAX_OPERANDS)
}

function formatOf(sign: string, size: string, float: string): OperandFormat | null {
  switch (size) {
    case '1':
    case '2':
      return float === '' ? { size: size === '1' ? 1 : 2, signed: sign === '-', float: false } : null
    case '4':
    case '8':
      return { size: size === '4' ? 4 : 8, signed: sign === '-', float: float === 'f' }
    default:
      return null
  }
}

/** Files of the first SystemTap versions have operands without a size: `%eax` is as wide as its register, the rest as wide as an address. */
function parseUnsized(text: string, arch: Arch): Operand {
  const width = arch === 'x64' ? (X64_REGISTERS.get(text.slice(1))?.bytes ?? 8) : text.startsWith('w') ? 4 : 8
  return (arch === 'x64' ? parseX64 : parseArm64)(text, { size: width, signed: false, float: false, text })
}

interface X64Register {
  readonly register: string
  readonly bytes: 1 | 2 | 4 | 8
  readonly shift: 0 | 8
}

/** All names of the general registers: `eax` is the low 4 bytes of `rax`, `ah` its second byte. */
const X64_REGISTERS: ReadonlyMap<string, X64Register> = makeX64Registers()

function makeX64Registers(): Map<string, X64Register> {
  const names = new Map<string, X64Register>()
  const add = (register: string, low4: string, low2: string, low1: string): void => {
    names.set(register, { register, bytes: 8, shift: 0 })
    names.set(low4, { register, bytes: 4, shift: 0 })
    names.set(low2, { register, bytes: 2, shift: 0 })
    names.set(low1, { register, bytes: 1, shift: 0 })
  }
  for (const letter of ['a', 'b', 'c', 'd']) {
    add(`r${letter}x`, `e${letter}x`, `${letter}x`, `${letter}l`)
    names.set(`${letter}h`, { register: `r${letter}x`, bytes: 1, shift: 8 })
  }
  for (const name of ['si', 'di', 'bp', 'sp']) add(`r${name}`, `e${name}`, name, `${name}l`)
  for (let number = 8; number <= 15; number++) add(`r${number}`, `r${number}d`, `r${number}w`, `r${number}b`)
  return names
}

function parseX64(place: string, format: Readable): Operand {
  // $-1, $0x10
  if (place.startsWith('$')) return constant(place.slice(1), format)
  // %edi, %r12w, %ah
  if (place.startsWith('%')) {
    const found = X64_REGISTERS.get(place.slice(1))
    if (found === undefined) return unsupported(format.text, `${place} is not a general register`)
    if (found.bytes < format.size) return unsupported(format.text, `${place} holds ${found.bytes} of ${format.size} bytes`)
    return { kind: 'register', ...format, register: found.register, shift: found.shift }
  }
  const parenthesis = place.indexOf('(')
  if (parenthesis < 0 || !place.endsWith(')')) return unsupported(format.text, 'this form of operand is not known')
  const before = place.slice(0, parenthesis)
  const parts = place
    .slice(parenthesis + 1, -1)
    .split(',')
    .map((part) => part.trim())
  // 40+CheckpointStats(%rip), NBuffers(%rip), counter-8(%rip)
  if (parts[0] === '%rip' && parts.length === 1) return parseSymbol(before, format)
  // -20(%rbp), (%rax,%rcx), 8(%rax,%rdx,4), 0(,%rax,8)
  const displacement = before === '' ? 0n : parseNumber(before)
  const [base = '', index = '', scale = '1'] = parts
  if (displacement === null || parts.length > 3 || !/^[1248]$/.test(scale))
    return unsupported(format.text, 'this form of address is not known')
  const baseRegister = base === '' ? null : wholeX64Register(base)
  const indexRegister = index === '' ? null : wholeX64Register(index)
  if (baseRegister === undefined || indexRegister === undefined || (baseRegister ?? indexRegister) === null) {
    return unsupported(format.text, 'the address is not made of 64-bit general registers')
  }
  return {
    kind: 'memory',
    ...format,
    base: baseRegister,
    index: indexRegister,
    scale: Number(scale) as MemoryOperand['scale'],
    displacement,
  }
}

function wholeX64Register(text: string): string | undefined {
  const found = text.startsWith('%') ? X64_REGISTERS.get(text.slice(1)) : undefined
  return found?.bytes === 8 ? found.register : undefined
}

/** The number may come before the symbol or behind it, or not at all. */
function parseSymbol(text: string, format: Readable): Operand {
  const [, first, symbol = '', sign = '+', last = '0'] = /^(?:(-?\w+)\+)?([A-Za-z_.$][\w.$@]*)(?:([+-])(\w+))?$/.exec(text) ?? []
  const before = first === undefined ? 0n : parseNumber(first)
  const behind = parseNumber(last)
  if (symbol === '' || before === null || behind === null)
    return unsupported(format.text, 'the distance from the instruction pointer is not given by a symbol')
  return { kind: 'symbol', ...format, symbol, offset: before + (sign === '-' ? -behind : behind) }
}

function parseArm64(place: string, format: Readable): Operand {
  // 1, -1: a bare number is an immediate here
  if (/^-?\d/.test(place)) return constant(place, format)
  // x19, w0, sp, xzr
  if (/^[wx]zr$/.test(place)) return constant('0', format)
  const register = wholeArm64Register(place.replace(/^w(\d+)$/, 'x$1'))
  if (register !== null) {
    if (place.startsWith('w') && format.size === 8) return unsupported(format.text, `${place} holds 4 of 8 bytes`)
    return { kind: 'register', ...format, register, shift: 0 }
  }
  // [x0], [x19, 200], [sp, -16], [x1, x2], [x1, x2, lsl 3]
  const [, base = '', second = '', shift = '0'] = /^\[\s*(\w+)\s*(?:,\s*#?([^\],\s]+)\s*)?(?:,\s*lsl\s+#?([0-3])\s*)?\]$/.exec(place) ?? []
  const baseRegister = wholeArm64Register(base)
  const indexRegister = second === 'sp' ? null : wholeArm64Register(second)
  const displacement = second === '' || indexRegister !== null ? 0n : parseNumber(second)
  if (baseRegister === null || displacement === null || (shift !== '0' && indexRegister === null)) {
    return unsupported(format.text, 'this form of operand is not known')
  }
  return { kind: 'memory', ...format, base: baseRegister, index: indexRegister, scale: ARM64_SCALES[Number(shift)] ?? 1, displacement }
}

/** By the bits that an index is shifted. */
const ARM64_SCALES = [1, 2, 4, 8] as const

function wholeArm64Register(text: string): string | null {
  if (text === 'sp') return 'sp'
  if (text === 'fp') return 'x29'
  if (text === 'lr') return 'x30'
  const number = /^x(\d{1,2})$/.exec(text)?.[1]
  return number !== undefined && Number(number) <= 30 ? `x${Number(number)}` : null
}

function constant(digits: string, format: Readable): Operand {
  const value = parseNumber(digits)
  if (value === null) return unsupported(format.text, 'the constant is not a number')
  return { kind: 'constant', ...format, value: BigInt.asUintN(64, value) }
}

/** Decimal or hexadecimal, at most 64 bits. */
function parseNumber(text: string): bigint | null {
  const [, sign = '', digits] = /^([+-]?)(0x[0-9a-f]{1,16}|\d{1,20})$/i.exec(text) ?? []
  if (digits === undefined) return null
  const value = BigInt(digits)
  if (value >= 1n << 64n) return null
  return sign === '-' ? -value : value
}

function unsupported(text: string, reason: string): UnsupportedOperand {
  return { kind: 'unsupported', text, reason }
}

/** The registers that hold the first integer or pointer arguments of a function, as operands (System V ABI; AAPCS64). */
export function functionArguments(arch: Arch): Operand[] {
  const names = arch === 'x64' ? ['rdi', 'rsi', 'rdx', 'rcx', 'r8', 'r9'] : ['x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7']
  return names.map((name) => wholeRegister(arch, name))
}

/** The register that holds an integer or pointer result, as the only operand of a return probe. */
export function returnValue(arch: Arch): Operand[] {
  return [wholeRegister(arch, arch === 'x64' ? 'rax' : 'x0')]
}

function wholeRegister(arch: Arch, register: string): RegisterOperand {
  const text = arch === 'x64' ? `8@%${register}` : `8@${register}`
  return { kind: 'register', size: 8, signed: false, float: false, text, register, shift: 0 }
}

/** Symbols that the operands refer to. */
export function symbolsOf(operands: readonly Operand[]): Set<string> {
  return new Set(operands.flatMap((operand) => (operand.kind === 'symbol' ? [operand.symbol] : [])))
}

/**
 * Replaces symbols by their distance from the probed instruction. The distance is the same in every process, wherever the file is mapped, so one
 * program serves them all.
 * @param siteVaddr - address of the instruction in the file
 * @param symbols - addresses in the file
 */
export function bindOperands(operands: readonly Operand[], siteVaddr: bigint, symbols: ReadonlyMap<string, bigint>): BoundOperand[] {
  return operands.map((operand) => {
    if (operand.kind !== 'symbol') return operand
    const { symbol, offset, size, signed, float, text } = operand
    const address = symbols.get(symbol)
    if (address === undefined) return unsupported(text, `the file has no symbol ${symbol}, or several`)
    return { kind: 'pc-relative', size, signed, float, text, delta: address + offset - siteVaddr }
  })
}
