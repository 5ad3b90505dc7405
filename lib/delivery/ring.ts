/**
 * The ring of one tracer, on the JavaScript side: from the reader's doorbell to the probes.
 *
 * All capture programs of a tracer write into one BPF ring buffer. A native thread empties it and rings; here the batches are taken, and the records are handed
 * to the probes they belong to.
 */
import { AsyncResource } from 'node:async_hooks'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { BatchMemory } from '../capture/memory.js'
import { BATCH_HEAD, MAX_RECORD_BYTES } from '../capture/record.js'
import type { RecordOffsets } from '../capture/record-offsets.js'
import type { Logger } from '../log.js'
import type { MappedRing, Native, RingReader, SidebandEvent, TargetEvent, WatchEvent } from '../native.js'
import { BPF_MAP_TYPE_RINGBUF, createLargeMap } from '../register/bpf-objects.js'
import { Pump } from './pump.js'
import { alikeRecords, firstProbeId, sortRecords } from './sort.js'

/** Who gets the records of one probe. */
export interface RecordSink {
  /**
   * @param memory - a batch, shared with other probes
   * @param offsets - where the records of this probe begin in it, in the order in which the kernel wrote them
   */
  receive(memory: BatchMemory, offsets: RecordOffsets): void
  /** Whether it gets its records of a batch before others do that refer to them. */
  readonly early?: boolean
}

/** Sizes and times of a ring. */
export interface RingOptions {
  readonly ringBytes: number
  readonly flushIntervalMs: number
  readonly pendingLimitBytes: number
}

/** The ring and its reader. */
export class Ring {
  readonly reader: RingReader
  readonly #sinks = new Map<number, RecordSink>()
  readonly #watches = new Map<number, (event: WatchEvent) => void>()
  readonly #pump: Pump
  #closed: Promise<void> | null = null
  #nextProbeId = 1
  #references = 0

  private constructor(
    private readonly native: Native,
    readonly mapFd: number,
    mapped: MappedRing,
    private readonly options: RingOptions,
    private readonly log: Logger,
  ) {
    this.reader = new native.RingReader({ ring: mapped, ...options, onDoorbell: (events) => this.#onDoorbell(events) })
    this.#pump = new Pump({
      take: () => this.#takeOne() > 0,
      waits: () => this.reader.waits,
      onError: (error) => this.log.error({ err: error }, 'delivery failed'),
    })
  }

  /**
   * Makes the ring, and starts its reader.
   * @throws {UprobeError} as {@link createLargeMap}
   */
  static async open(native: Native, options: RingOptions, log: Logger): Promise<Ring> {
    const mapFd = await createLargeMap(native, {
      type: BPF_MAP_TYPE_RINGBUF,
      keyBytes: 0,
      valueBytes: 0,
      maxEntries: options.ringBytes,
      name: 'uprobe_ring',
    })
    try {
      return new Ring(native, mapFd, await native.mapRing(mapFd, options.ringBytes), options, log)
    } catch (error) {
      native.closeFd(mapFd)
      throw error
    }
  }

  /** Size of the ring in bytes. */
  get ringBytes(): number {
    return this.options.ringBytes
  }

  /** A number for a new probe, which its records carry. */
  newProbeId(): number {
    return this.#nextProbeId++
  }

  /** Begins to deliver a probe's records. */
  addSink(probeId: number, sink: RecordSink): void {
    this.#sinks.set(probeId, sink)
  }

  /** Ends the delivery of a probe's records. */
  removeSink(probeId: number): void {
    this.#sinks.delete(probeId)
  }

  /**
   * Calls back on events of a pidfd or task watch, whose fd the reader owns from here on, in the async context of the caller: that of the doorbell belongs to
   * whoever made the ring, or to nobody, depending on the version of Node.
   * @returns what {@link unwatch} takes
   */
  watch(fd: number, kind: 'pidfd' | 'task', callback: (event: TargetEvent['event']) => void): number {
    const watch = this.reader.watch(fd, kind)
    const bound = AsyncResource.bind(callback)
    this.#watches.set(watch, ({ event }) => {
      if (event === 'readable' || event === 'hangup' || event === 'exec') bound(event)
    })
    return watch
  }

  /** The same for a side band, whose ring has `pages` pages. */
  watchSideband(fd: number, pages: number, callback: (event: SidebandEvent) => void): number {
    const watch = this.reader.watch(fd, 'sideband', pages)
    const bound = AsyncResource.bind(callback)
    this.#watches.set(watch, (event) => {
      if (event.event !== 'readable' && event.event !== 'hangup' && event.event !== 'exec') bound(event)
    })
    return watch
  }

  /** Ends a watch. */
  unwatch(watch: number): void {
    this.#watches.delete(watch)
    this.reader.unwatch(watch)
  }

  /** Keeps the event loop alive as long as somebody waits for hits. */
  ref(): void {
    if (this.#references++ === 0) this.reader.ref()
  }

  /** Takes back one {@link ref}. */
  unref(): void {
    if (--this.#references === 0) this.reader.unref()
  }

  /** Resolves when everything that the kernel had written by the time of the call was handed to the sinks. */
  async drain(): Promise<void> {
    this.ref()
    try {
      // Doorbells go on meanwhile, and what they take is delivered: a full reader needs that to go on.
      await this.reader.drain()
      // No more than this can wait by now. Behind it may come, without end, the hits of a probe that is faster than its listeners.
      let left = this.options.pendingLimitBytes + MAX_RECORD_BYTES + BATCH_HEAD
      while (left > 0) {
        const taken = this.#takeOne()
        if (taken === 0) break
        left -= taken
        await nextTurn()
      }
    } finally {
      this.unref()
    }
  }

  /** Stops the reader; when it resolves, nothing is left of the ring. Records that were not drained are dropped. Idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    let unmapped: Promise<void>
    try {
      unmapped = this.reader.close()
    } finally {
      this.native.closeFd(this.mapFd)
    }
    await unmapped
  }

  #onDoorbell(events: boolean): void {
    if (events) for (const event of this.reader.takeEvents()) this.#watches.get(event.watch)?.(event)
    this.#pump.ring()
  }

  /** Takes one batch and hands it out; returns its bytes, 0 if there was none. */
  #takeOne(): number {
    const buffer = this.reader.take()
    if (buffer === undefined) return 0
    const memory = new BatchMemory(buffer)
    const distance = this.reader.takenDistance
    // So it is nearly always, and then takes a few microseconds less.
    if (distance > 0) this.#sinks.get(firstProbeId(memory))?.receive(memory, alikeRecords(memory, distance))
    else this.#handOut(memory)
    return memory.byteLength
  }

  #handOut(memory: BatchMemory): void {
    const byProbe = sortRecords(memory)
    for (const early of [true, false]) {
      for (const [probeId, offsets] of byProbe) {
        const sink = this.#sinks.get(probeId)
        if (sink !== undefined && (sink.early ?? false) === early) sink.receive(memory, offsets)
      }
    }
  }
}
