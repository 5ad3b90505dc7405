/**
 * Taking back what an attach has done so far, when it fails.
 */
import type { Logger } from './log.js'

/** What is undone when a later step fails, last first. */
export class Undo {
  readonly #steps: Array<() => void | Promise<void>> = []

  add(step: () => void | Promise<void>): void {
    this.#steps.push(step)
  }

  /** Forgets the steps so far in favour of one that covers them. */
  replace(step: () => void | Promise<void>): void {
    this.#steps.splice(0, Infinity, step)
  }

  /** A step that fails does not keep the others from being done, nor hides why they are. */
  async run(log: Logger): Promise<void> {
    for (const step of this.#steps.reverse()) {
      try {
        await step()
      } catch (error) {
        log.error({ err: error }, 'what a failed attach had opened could not be closed')
      }
    }
  }
}
