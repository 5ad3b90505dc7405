/**
 * The switch by which a capture program ignores hits while its breakpoint is in. By it, all sites of a probe are counted from one moment to another (lib/arming.ts).
 *
 * A claimed counter is switched off by one store, and a program that looks at its counter then no longer comes by. One that does not look goes on hitting the
 * breakpoint; those hits are neither delivered nor lost, but they are counted here, so that somebody can see that pausing alone did not help.
 *
 * Where a latency begins there is a third position: hits are not counted, but marked (lib/aggregate/paired-arming.ts).
 */
import { PAUSE_STATE, PAUSE_VALUE_BYTES } from '../capture/compile.js'
import type { Native } from '../native.js'
import { BPF_MAP_TYPE_ARRAY, createMap } from './bpf-objects.js'

/** The switch of one probe. */
export class PauseMap {
  readonly fd: number
  #closed = false
  #earlierHits = 0

  constructor(private readonly native: Native) {
    this.fd = createMap(native, {
      type: BPF_MAP_TYPE_ARRAY,
      keyBytes: 4,
      valueBytes: PAUSE_VALUE_BYTES,
      maxEntries: 1,
      name: 'uprobe_pause',
    })
  }

  /** Ignores hits from now on, or no longer; {@link hits} begins anew. */
  set(paused: boolean): void {
    this.#turn(paused ? PAUSE_STATE.paused : PAUSE_STATE.live)
  }

  /** Marks hits from now on, until {@link set}. */
  mark(): void {
    this.#turn(PAUSE_STATE.marking)
  }

  #turn(state: number): void {
    // Another file may have its number by now.
    if (this.#closed) return
    this.#earlierHits += this.hits()
    this.native.bpfMapUpdate(this.fd, 0, new Uint8Array(BigUint64Array.of(BigInt(state), 0n).buffer))
  }

  /** Hits since the probe was paused. */
  hits(): number {
    return Number(new BigUint64Array(this.native.bpfMapRead(this.fd, 0, 1, PAUSE_VALUE_BYTES))[1] ?? 0n)
  }

  /** Hits in all pauses, but for those that came in the very moment of a change. */
  allHits(): number {
    return this.#earlierHits + this.hits()
  }

  /** Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.native.closeFd(this.fd)
  }
}
