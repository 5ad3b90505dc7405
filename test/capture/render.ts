/** Operands as the assembler writes them: what the parser's tests compare with. */
import type { Operand, OperandFormat } from '../../lib/capture/operands.js'

const LOW_NAMES: Record<string, Record<1 | 2 | 4, string>> = Object.fromEntries([
  ...['a', 'b', 'c', 'd'].map((x) => [`r${x}x`, { 4: `e${x}x`, 2: `${x}x`, 1: `${x}l` }]),
  ...['si', 'di', 'bp', 'sp'].map((x) => [`r${x}`, { 4: `e${x}`, 2: x, 1: `${x}l` }]),
  ...Array.from({ length: 8 }, (_, i) => [`r${i + 8}`, { 4: `r${i + 8}d`, 2: `r${i + 8}w`, 1: `r${i + 8}b` }]),
])

function x64Register(register: string, size: OperandFormat['size'], shift: 0 | 8): string {
  if (shift === 8) return `${register.charAt(1)}h`
  return size === 8 ? register : (LOW_NAMES[register]?.[size] ?? '?')
}

function prefix({ size, signed, float }: OperandFormat): string {
  return `${signed ? '-' : ''}${size}${float ? 'f' : ''}@`
}

const orNothing = (value: bigint): string => (value === 0n ? '' : `${value}`)

/** `-4@-20(%rbp)` */
export function renderX64(operand: Operand): string {
  switch (operand.kind) {
    case 'unsupported':
      return operand.text
    case 'constant':
      return `${prefix(operand)}$${BigInt.asIntN(64, operand.value)}`
    case 'register':
      return `${prefix(operand)}%${x64Register(operand.register, operand.size, operand.shift)}`
    case 'symbol':
      return `${prefix(operand)}${operand.offset === 0n ? '' : `${operand.offset}+`}${operand.symbol}(%rip)`
    case 'memory': {
      const { base, index, scale, displacement } = operand
      const indexed = index === null ? '' : `,%${index}${scale === 1 ? '' : `,${scale}`}`
      return `${prefix(operand)}${orNothing(displacement)}(${base === null ? '' : `%${base}`}${indexed})`
    }
  }
}

/** `8@[x19, 200]` */
export function renderArm64(operand: Operand): string {
  switch (operand.kind) {
    case 'unsupported':
      return operand.text
    case 'constant':
      return `${prefix(operand)}${BigInt.asIntN(64, operand.value)}`
    case 'register':
      return `${prefix(operand)}${operand.register}`
    case 'symbol':
      throw new Error('arm64 operands name no symbols')
    case 'memory': {
      const { base, index, scale, displacement } = operand
      const shift = scale === 1 ? '' : `, lsl ${Math.log2(scale)}`
      const rest = index !== null ? `, ${index}${shift}` : displacement === 0n ? '' : `, ${displacement}`
      return `${prefix(operand)}[${base}${rest}]`
    }
  }
}
