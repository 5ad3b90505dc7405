/**
 * The steps of taking and giving back a claim, by name.
 *
 * An agent may be killed between any two of them, and whoever comes next must find out what was left. Tests stop an agent at each step; for that, the code
 * says where it is. In a running agent nobody listens.
 */
export const STEPS = [
  'guards-in',
  'counters-read',
  'lease-about-to-be-written',
  'lease-written',
  'counter-about-to-be-set',
  'counter-read-again',
  'counter-stored',
  'counter-set',
  'breakpoints-in',
  'counter-about-to-be-cleared',
  'counter-cleared',
  'lease-released',
  'breakpoints-out',
  'lease-removed',
  'guards-out',
] as const

/** One of {@link STEPS}. */
export type Step = (typeof STEPS)[number]

let hook: ((step: Step) => void) | null = null

/** For tests: is called at each step. Not part of the package's surface. */
export function setStepHook(listener: ((step: Step) => void) | null): void {
  hook = listener
}

/** The agent has come this far. */
export function reached(step: Step): void {
  hook?.(step)
}
