/**
 * Processes that come later: not noticed yet. What follows is the shape of it; the kernel's side band goes in here.
 */
import type { Ring } from '../delivery/ring.js'
import type { Native } from '../native.js'
import type { FileIdentity } from './maps.js'

/** Tells of processes that map a file anew, or are born of known ones. */
export class Newcomers {
  static start(
    _native: Native,
    _ring: Ring,
    _files: ReadonlyArray<{ readonly identity: FileIdentity; readonly path: string }>,
    _onProcess: (pid: number, how: 'fork' | 'map') => void,
    _onLost: () => void,
  ): Newcomers {
    return new Newcomers()
  }

  /** Children of these processes are told of from now on. */
  watchForksOf(_pids: readonly number[]): void {}

  close(): void {}
}
