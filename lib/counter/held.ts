/**
 * `tracer.counters()`: what the table says, against what the targets' memory says.
 *
 * In a counter that the kernel counts, one is added for each site whose breakpoint is in (`update_ref_ctr`, kernel/events/uprobes.c), whoever put it there; a counter that is claimed
 * reads 0x8000, and 0 while every claim is paused. What is read is what is expected, or somebody else has written it.
 */
import { mappingsOf } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import { counterPlaces } from './places.js'
import { CLAIM, inspectCounter, readCounter } from './read.js'
import type { CounterHolder, CounterMode, CounterTable, HeldSite, TableEntry } from './table.js'

/** A counter in one process. */
export interface HeldCounterTarget {
  readonly pid: number
  /** Address of the counter. */
  readonly address: bigint
  /** The 16 bits, unsigned; `null` if they cannot be read. */
  readonly value: number | null
  /** What it should be: the number of armed sites, or the claim. */
  readonly expected: number
}

/** What holds a counter: a `Probe`, with those of its sites that share the counter. */
export interface HeldCounterProbe {
  /** Whether it holds the counter at the moment; a paused one does not. */
  readonly active: boolean
  readonly sites: readonly HeldSite[]
}

/** A counter that probes of a tracer hold. */
export interface HeldCounter {
  /** The file, as the target knows it. */
  readonly path: string
  /** Device and inode of the file, as stat(2) gives them. */
  readonly device: bigint
  readonly inode: bigint
  /** Offset of the counter in the file; `null` if it lies in `.bss`. */
  readonly refCtrOffset: bigint | null
  readonly mode: CounterMode
  /** The probes of this process that hold it: other tracers' too, since they share the counter. */
  readonly probes: readonly HeldCounterProbe[]
  /** The processes in which it is held. */
  readonly targets: readonly HeldCounterTarget[]
}

/** The counters that a tracer's probes hold. */
export async function heldCounters(table: CounterTable, tracer: object): Promise<HeldCounter[]> {
  const held: HeldCounter[] = []
  for (const entry of table.heldBy(tracer)) {
    const { path, identity, counter, mode, holders } = entry
    const targets = new Map<bigint, HeldCounterTarget>()
    for (const holder of holders) {
      for await (const target of holder.processes()) {
        for (const found of await look(entry, holder, target)) {
          // Two holders in one process look at one counter, which is claimed as long as one of them is active.
          const key = (BigInt(found.pid) << 64n) | found.address
          const known = targets.get(key)
          targets.set(key, mode === 'msb' && known?.expected === CLAIM ? { ...found, expected: CLAIM } : found)
        }
      }
    }
    held.push({
      path,
      ...identity,
      refCtrOffset: counter.refCtrOffset,
      mode,
      probes: [...holders].map((holder) => ({ active: holder.isActive(), sites: holder.sites })),
      targets: [...targets.values()],
    })
  }
  return held
}

async function look({ identity, counter, mode }: TableEntry, holder: CounterHolder, target: TargetProcess): Promise<HeldCounterTarget[]> {
  target.refreshThread()
  const all = await target.maps(true)
  const ofFile = mappingsOf(target.procDirectory, all, identity)
  if (mode === 'msb') {
    const expected = holder.isActive() ? CLAIM : 0
    return counterPlaces(all, ofFile, counter).places.map(({ address }) => ({
      pid: target.pid,
      address,
      value: readCounter(target, address),
      expected,
    }))
  }
  if (counter.refCtrOffset === null) return []
  const { address, value, armedSites } = inspectCounter(target, ofFile, counter.refCtrOffset, counter.sites)
  return address === null ? [] : [{ pid: target.pid, address, value, expected: armedSites }]
}
