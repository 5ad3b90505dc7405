/**
 * Random numbers that come again with the same seed, and the seed of a test.
 */

/** A random number generator: xorshift32 (Marsaglia, "Xorshift RNGs", 2003). */
export class Random {
  #state: number

  /** @param seed - any number but 0 */
  constructor(seed: number) {
    this.#state = seed >>> 0 || 1
  }

  /** A whole number from 0 to `limit` - 1. */
  below(limit: number): number {
    this.#state ^= this.#state << 13
    this.#state ^= this.#state >>> 17
    this.#state ^= this.#state << 5
    this.#state >>>= 0
    return this.#state % limit
  }
}

/** UPROBE_TEST_SEED, or a new one. A test prints it. */
export function testSeed(): number {
  return Number(process.env.UPROBE_TEST_SEED ?? 1 + Math.floor(Math.random() * 0x7ffffffe))
}
