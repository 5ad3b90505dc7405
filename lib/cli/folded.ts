/**
 * Collecting stacks for a flame graph: how often each was seen, as folded lines (lib/symbolize/folded.ts).
 *
 * Each different stack is explained when it is first seen, as long as its process is there, and from then on it is only counted. How many are kept is bounded; further ones are counted in one line
 * that says so.
 */
import { foldStack, type Hit } from '../index.js'

/** Different stacks, by the name of their thread. */
const MAX_STACKS = 100_000

export class FoldedStacks {
  /** By stack, which is one array for all its hits, then by thread name: the folded stack. */
  readonly #lines = new Map<readonly bigint[], Map<string, string>>()
  readonly #counts = new Map<string, number>()
  #known = 0

  /** Counts a hit. */
  async add(hit: Hit): Promise<void> {
    const line = await this.#lineOf(hit)
    this.#counts.set(line, (this.#counts.get(line) ?? 0) + 1)
  }

  /** The folded lines. */
  lines(): string[] {
    return [...this.#counts].map(([line, count]) => `${line} ${count}`).sort()
  }

  async #lineOf(hit: Hit): Promise<string> {
    const { stack, comm } = hit
    if (stack === null || 'unavailable' in stack) return `${foldStack(comm, [])};[stack not kept]`
    const byName = this.#lines.get(stack)
    const known = byName?.get(comm)
    if (known !== undefined) return known
    if (this.#known >= MAX_STACKS) return `${foldStack(comm, [])};[other stacks]`
    const line = foldStack(comm, await hit.symbolize())
    this.#known++
    if (byName === undefined) this.#lines.set(stack, new Map([[comm, line]]))
    else byName.set(comm, line)
    return line
  }
}
