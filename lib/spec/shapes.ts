/**
 * The shapes of sites: sites with the same operands share one, so that what hangs on a shape (its code, its layout, the check of a filter) is made once for thousands of sites.
 */
import { bindOperands, type Operand, symbolsOf } from '../capture/operands.js'
import type { CaptureShape, StackShape } from '../capture/shape.js'
import type { AttachSettings } from '../options.js'

/** Makes the shapes of the sites of one probe. */
export class Shapes {
  readonly #shared = new Map<readonly Operand[], readonly CaptureShape[]>()
  /** The operands that were asked about last, if the shapes of their sites are shared. */
  #before: readonly Operand[] | null = null
  #known: readonly CaptureShape[] = []

  constructor(private readonly settings: Pick<AttachSettings, 'strings' | 'stringLimit'>) {}

  /**
   * The shape of a site.
   * @param operands - the same list for sites with the same text
   * @param symbols - where the symbols are that the operands name
   */
  of(operands: readonly Operand[], siteVaddr: bigint, symbols: ReadonlyMap<string, bigint>, stack: StackShape | null): CaptureShape {
    // Sites that follow each other mostly have the same.
    if (operands !== this.#before) {
      this.#before = operands
      this.#known = this.#shared.get(operands) ?? []
    }
    for (let index = 0; index < this.#known.length; index++) {
      const shape = this.#known[index]
      if (shape !== undefined && isStack(shape.stack ?? null, stack)) return shape
    }
    const bound = bindOperands(operands, siteVaddr, symbols)
    const strings = this.settings.strings.filter((argument) => argument < bound.length)
    const shape: CaptureShape = { operands: bound, strings, stringLimit: this.settings.stringLimit, stack }
    // Operands that name a symbol are bound to their distance from the site, which is another one at each.
    if (symbolsOf(operands).size > 0) return shape
    this.#known = [...this.#known, shape]
    this.#shared.set(operands, this.#known)
    return shape
  }
}

function isStack(one: StackShape | null, other: StackShape | null): boolean {
  return one?.depth === other?.depth && one?.atEntry === other?.atEntry
}
