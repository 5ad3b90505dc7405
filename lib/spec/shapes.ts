/**
 * The shapes of sites: sites with the same operands share one, so that what hangs on a shape (its code, its layout, the check of a filter) is made once for thousands of sites.
 */
import { bindOperands, type Operand, symbolsOf } from '../capture/operands.js'
import type { CaptureShape, StackShape } from '../capture/shape.js'
import type { AttachSettings } from '../options.js'

/** Makes the shapes of the sites of one probe. */
export class Shapes {
  readonly #shared = new Map<readonly Operand[], CaptureShape[]>()

  constructor(private readonly settings: Pick<AttachSettings, 'strings' | 'stringLimit'>) {}

  /**
   * The shape of a site.
   * @param operands - the same list for sites with the same text
   * @param symbols - where the symbols are that the operands name
   */
  of(operands: readonly Operand[], siteVaddr: bigint, symbols: ReadonlyMap<string, bigint>, stack: StackShape | null): CaptureShape {
    let shared = this.#shared.get(operands)
    if (shared === undefined) {
      shared = []
      this.#shared.set(operands, shared)
    }
    const known = shared.find((shape) => shape.stack?.depth === stack?.depth && shape.stack?.atEntry === stack?.atEntry)
    if (known !== undefined) return known
    const bound = bindOperands(operands, siteVaddr, symbols)
    const strings = this.settings.strings.filter((argument) => argument < bound.length)
    const shape: CaptureShape = { operands: bound, strings, stringLimit: this.settings.stringLimit, stack }
    // Operands that name a symbol are bound to their distance from the site, which is another one at each.
    if (symbolsOf(operands).size === 0) shared.push(shape)
    return shape
  }
}
