/**
 * A capture shape: what is recorded at a site. Sites with equal operands share one shape, and so the code that captures them.
 */
import type { BoundOperand } from './operands.js'

/** What is recorded at a hit. */
export interface CaptureShape {
  readonly operands: readonly BoundOperand[]
  /** Indexes of operands that are C strings; operands that are unsupported are ignored here. */
  readonly strings: readonly number[]
  /** Longest string, in bytes. */
  readonly stringLimit: number
  /** Whether the stack is recorded, and how. */
  readonly stack?: StackShape | null | undefined
}

/** How the stack is recorded at a site. */
export interface StackShape {
  /** Most addresses that are recorded; at least 2. */
  readonly depth: number
  /** The site is the first instruction of a function, where its caller is found in another place than later on. */
  readonly atEntry: boolean
}

/** Equal for shapes that are captured and decoded alike. */
export function shapeKey(shape: CaptureShape): string {
  const operands = shape.operands.map((operand) => {
    if (operand.kind === 'unsupported') return `?${operand.text}`
    // The text does not tell two distances from the instruction pointer apart.
    return operand.kind === 'pc-relative' ? `${operand.text}:${operand.delta}` : operand.text
  })
  return JSON.stringify([operands, shape.strings, shape.stringLimit, shape.stack ? [shape.stack.depth, shape.stack.atEntry] : null])
}

/** The strings that can be read, in the order of their areas in the record. */
export function readableStrings(shape: CaptureShape): number[] {
  return shape.strings.filter((index) => {
    const operand = shape.operands[index]
    return operand !== undefined && operand.kind !== 'unsupported'
  })
}
