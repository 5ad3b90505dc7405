/**
 * How far an attach or detach is, as one line on a terminal that is drawn over again and leaves nothing behind.
 *
 *     checking    [############------------] 5120/10000
 *
 * Only for somebody who looks: a pipe or a file gets nothing.
 */
import type { Progress, ProgressStep } from '../index.js'

/** What the bar is drawn on. */
export interface Terminal {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
}

const BAR = 24

const DOING: Readonly<Record<ProgressStep, string>> = {
  check: 'checking',
  claim: 'claiming',
  register: 'arming',
  verify: 'verifying',
  unregister: 'detaching',
}

/** Erase from the cursor to the end of the line (ECMA-48, EL), having gone to its beginning. */
const ERASE = '\r\u001b[K'

/** Draws the progress of one tracer. */
export class ProgressBar {
  #drawn = ''

  constructor(private readonly terminal: Terminal) {}

  /** Shows how far it is; at the end of a step the line is erased, so that whatever is printed next has it for itself. */
  show({ action, step, done, total }: Progress): void {
    if (this.terminal.isTTY !== true) return
    if (done >= total) {
      this.erase()
      return
    }
    const full = Math.floor((BAR * done) / total)
    const doing = action === 'detach' && step === 'claim' ? 'releasing' : DOING[step]
    const line = `${doing.padEnd(10)} [${'#'.repeat(full)}${'-'.repeat(BAR - full)}] ${done}/${total}`
    // A line that is wrapped could not be erased. A terminal that nobody has given a size says 0.
    const shown = line.slice(0, (this.terminal.columns || 80) - 1)
    if (shown === this.#drawn) return
    this.#drawn = shown
    this.terminal.write(`${ERASE}${shown}`)
  }

  /** Takes the line away. Idempotent. */
  erase(): void {
    if (this.#drawn === '') return
    this.#drawn = ''
    this.terminal.write(ERASE)
  }
}
