/**
 * Being aborted by a signal that belongs to somebody else.
 *
 * An agent may attach with one signal all its life. `AbortSignal.any` leaves a trace of every use in such a signal, and a listener a probe runs into the warning
 * about too many listeners. So a signal gets one listener, however many follow it, and loses it with the last.
 */
interface Followers {
  readonly controllers: Set<AbortController>
  readonly listener: () => void
}

const followersOf = new WeakMap<AbortSignal, Followers>()

/**
 * Aborts `controller` with the reason of `signal` once that is aborted, or at once if it is.
 * @returns ends it; can be called again
 */
export function follow(signal: AbortSignal, controller: AbortController): () => void {
  if (signal.aborted) {
    controller.abort(signal.reason)
    return () => undefined
  }
  const { controllers, listener } = followersOf.get(signal) ?? listenTo(signal)
  controllers.add(controller)
  return () => {
    if (!controllers.delete(controller) || controllers.size > 0) return
    signal.removeEventListener('abort', listener)
    followersOf.delete(signal)
  }
}

function listenTo(signal: AbortSignal): Followers {
  const controllers = new Set<AbortController>()
  const listener = (): void => {
    for (const controller of controllers) controller.abort(signal.reason)
  }
  signal.addEventListener('abort', listener, { once: true })
  const followers = { controllers, listener }
  followersOf.set(signal, followers)
  return followers
}
