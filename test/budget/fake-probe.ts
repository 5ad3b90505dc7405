/** A probe that is made up, for those who keep its budget. */
import type { Throttled } from '../../lib/budget/member.js'

export class FakeProbe implements Throttled {
  armed = true
  out = false
  unseenShare = 0
  timesCalls = false
  untilMs = 0
  hits: number | null = 0
  calmed = 0
  reads = 0
  /** Thrown by the next switches. */
  failure: Error | null = null
  readonly failures: unknown[] = []
  readonly switches: string[] = []

  trapped(): number | null {
    this.reads++
    return this.hits
  }
  async sitOut(): Promise<void> {
    this.switches.push('out')
    this.armed = false
    this.out = true
  }
  async comeBack(): Promise<void> {
    this.switches.push('back')
    if (this.failure !== null) throw this.failure
    this.armed = true
    this.out = false
  }
  async calm(): Promise<void> {
    this.calmed++
  }
  staysOut(untilMs: number): void {
    this.untilMs = untilMs
  }
  failed(error: unknown): void {
    this.failures.push(error)
  }
}
