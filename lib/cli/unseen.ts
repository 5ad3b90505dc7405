/**
 * What a command that is about every process could not look at. It prints what it has found all the same.
 *
 * Then it fails, as `find` does for a directory that it may not enter: success would say that there is nothing else. But where it has all the rights that can be given, and a process is out of reach
 * nevertheless, as the first one of a container whose user is another's, nobody can mend that, and a failure each time would be of no use: it is a warning then.
 */
import { UprobeError } from '../index.js'
import { lacksRights, rightsForTracing } from '../rights.js'
import { warn } from './failure.js'

export class Unseen {
  readonly #json: boolean
  #denied = 0
  #leases: UprobeError | null = null

  /** @param json - the form of a warning */
  constructor(json: boolean) {
    this.#json = json
  }

  /** Takes note of something that could not be looked at. */
  readonly add = (error: UprobeError): void => {
    if (error.code === 'ERR_UPROBE_TARGET_DENIED') this.#denied++
    else this.#leases = error
  }

  /**
   * Says it.
   * @param failing - whether the command fails for another reason anyway
   * @throws {UprobeError} if that is a failure
   */
  tell(failing: boolean): void {
    const failures = this.#leases === null ? [] : [this.#leases]
    if (this.#denied > 0) {
      const many = this.#denied === 1 ? '1 process' : `${this.#denied} processes`
      const message = `${many} could not be looked at. ${rightsForTracing()}`
      if (lacksRights()) failures.unshift(new UprobeError('ERR_UPROBE_TARGET_DENIED', message))
      else warn(message, this.#json)
    }
    const [first] = failures
    if (first === undefined) return
    const message = failures.map((failure) => failure.message).join(' ')
    if (!failing) throw new UprobeError(first.code, message)
    warn(message, this.#json)
  }
}
