/**
 * What a program sees of a probe: its states, its counts and its events.
 */
import type { Hit } from './capture/hit.js'
import type { HitBatch } from './delivery/batch.js'

/**
 * What a probe is doing.
 * - `attached`: its sites are armed and hits are delivered;
 * - `throttled`: its hits cost more than its budget, so its sites are armed a part of the time, and hits of this part are delivered;
 * - `paused`: its sites are switched off until `resume()`;
 * - `detached`: it was detached and holds nothing;
 * - `target-exited`: all its processes exited or called exec, and it holds nothing.
 */
export type ProbeState = 'attached' | 'throttled' | 'paused' | 'detached' | 'target-exited'

/** A `'state'` event. */
export interface ProbeStateChange {
  /** The state of the whole probe after the change. */
  readonly state: ProbeState
  /**
   * What happened: `exit` and `exec` end the probe's part in process `pid`; `leader-exit` means that the leader thread of `pid` exited and the probe was
   * moved to a living one. With `counter: 'msb'`: `arrival` means that process `pid` was found later and its counters were claimed; `still-hit`, that a paused probe went on being hit,
   * since the program does not check its counter, and was therefore taken out; `yield`, that the claims were given up for another tool, and `resume()` will try to take them
   * again. With a budget: `over-budget` and `within-budget` are where it begins to be taken out for parts of the time, and where it has not been for a while; `refused` means that it could not be armed again,
   * as the `'error'` event says, and is paused until `resume()`. The others are what was asked of the probe.
   */
  readonly reason:
    | 'pause'
    | 'resume'
    | 'detach'
    | 'exit'
    | 'exec'
    | 'leader-exit'
    | 'arrival'
    | 'still-hit'
    | 'yield'
    | 'over-budget'
    | 'within-budget'
    | 'refused'
  /** The process, where the change is about one. */
  readonly pid?: number
  /** Whether hits may have been missed, uncounted, in the course of the change. */
  readonly mayHaveMissed: boolean
}

/** Counts of hits. hits = filtered + delivered + lost holds exactly once the probe is detached; before, some are on their way. */
export interface ProbeStats {
  /** Executions of the sites while attached, not paused and not taken out by a budget, counted in the kernel. */
  readonly hits: number
  /** Hits that the filter rejected, in the kernel. */
  readonly filtered: number
  /** Hits handed to listeners or to the queue of the iterator; of a probe that only counts (`countOnly`), which hands out none, all that were counted and not filtered: none of them is lost. */
  readonly delivered: number
  /** All others: `lostRing` + `lostQueue`, and after the end whatever else is missing. */
  readonly lost: number
  /** Hits for which the kernel's ring had no room: JavaScript did not keep up. */
  readonly lostRing: number
  /** Hits for which the queue of the iterator had no room. */
  readonly lostQueue: number
  /** Time in which hits were counted, in milliseconds: from when all sites are in until they begin to be taken out. So `hits / seenMs` is how often the sites were hit, also with a budget. */
  readonly seenMs: number
  /**
   * `seenMs` as a share of the time since the attach, without pauses that `pause()` asked for: 1, unless a budget took the probe out for a while, it could not be armed again (`refused`),
   * or it gave way to another tool (`yield`).
   */
  readonly seenFraction: number
}

/** Counts of one name in one file. */
export interface NamedStats extends ProbeStats {
  readonly probe: string
  readonly path: string
}

/** Events of a {@link Probe}, and what their listeners get. */
export interface ProbeEvents {
  /** One hit. To listen to a probe that only counts, or is iterated, throws `ERR_UPROBE_BAD_OPTION`. */
  hit: [hit: Hit]
  /** The hits that one wake-up delivers. To listen throws as for `hit`. */
  batch: [batch: HitBatch]
  /** The state changed, or a process went away. */
  state: [change: ProbeStateChange]
  /** Something failed in the background; the probe goes on as far as it can. */
  error: [error: Error]
}

/** @internal What every EventEmitter emits before it adds a listener. */
export interface NewListenerEvent {
  newListener: [event: string | symbol]
}
