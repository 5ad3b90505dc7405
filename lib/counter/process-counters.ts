/**
 * Which counters a process has, and where: the counters of a file with all their sites and names, and each copy of them in memory.
 */
import type { ElfFile } from '../elf/elf-file.js'
import { TimeSlice } from '../elf/time-slice.js'
import { readUsdtNotes } from '../elf/usdt-notes.js'
import { UprobeError } from '../errors.js'
import type { TargetFile } from '../target/file.js'
import { counterAddress, type Mapping } from '../target/maps.js'
import { besideCode, type CounterCopy } from './places.js'
import { BREAKPOINT_BYTES, type FileCounter, type SharingSite } from './read.js'

/** How a probe is named in its file. */
export interface ProbeName {
  readonly provider: string
  readonly name: string
}

/** A counter, and all probes that share it. */
export interface NamedCounter {
  readonly counter: FileCounter
  readonly names: readonly ProbeName[]
}

/** The counters of a file. One that is no ELF file, or a broken one, has none: it must not hide those of the others. */
export async function countersOf(file: TargetFile): Promise<NamedCounter[]> {
  try {
    return await readCounters(await file.elf())
  } catch (error) {
    if (error instanceof UprobeError && error.code === 'ERR_UPROBE_BAD_ELF') return []
    throw error
  }
}

async function readCounters(elf: ElfFile): Promise<NamedCounter[]> {
  const counters = new Map<
    bigint,
    { counter: Omit<FileCounter, 'sites'>; names: Map<string, ProbeName>; sites: Map<bigint, SharingSite> }
  >()
  const slice = new TimeSlice()
  for (const { semaphoreVaddr, refCtrOffset, provider, name, vaddr, fileOffset } of await readUsdtNotes(elf)) {
    if (semaphoreVaddr === null || fileOffset === null) continue
    let known = counters.get(semaphoreVaddr)
    if (known === undefined) {
      const anonymousStart = refCtrOffset === null ? elf.anonymousStart(semaphoreVaddr) : null
      known = { counter: { vaddr: semaphoreVaddr, refCtrOffset, anonymousStart, provider, name }, names: new Map(), sites: new Map() }
      counters.set(semaphoreVaddr, known)
    }
    known.names.set(`${provider}\0${name}`, { provider, name })
    if (!known.sites.has(fileOffset)) {
      known.sites.set(fileOffset, { vaddr, fileOffset, original: await elf.read(fileOffset, BREAKPOINT_BYTES) })
    }
    if (slice.isOver) await slice.rest()
  }
  return [...counters.values()].map(({ counter, names, sites }) => ({
    counter: { ...counter, sites: [...sites.values()] },
    names: [...names.values()],
  }))
}

/** A counter in one copy of the file, and the mappings whose breakpoints count on it. */
export interface Place extends NamedCounter {
  /** `null` if no copy of its code is mapped. */
  readonly address: bigint | null
  /** Whether the kernel counts here. */
  readonly counted: boolean
  readonly mappings: readonly Mapping[]
}

/** The copies of counters in a process. */
export async function placesOf(counters: readonly NamedCounter[], all: readonly Mapping[], ofFile: readonly Mapping[]): Promise<Place[]> {
  const places: Place[] = []
  const slice = new TimeSlice()
  for (const named of counters) {
    places.push(...copiesOf(named, all, ofFile))
    if (slice.isOver) await slice.rest()
  }
  return places
}

/**
 * A process may map a file more than once (dlmopen); each copy has a counter of its own. The kernel does not care: it counts every breakpoint of the file on the first mapping that it finds
 * (`find_ref_ctr_vma`, kernel/events/uprobes.c).
 */
function copiesOf({ counter, names }: NamedCounter, all: readonly Mapping[], ofFile: readonly Mapping[]): Place[] {
  const { refCtrOffset, sites } = counter
  // An odd offset is refused (`uprobe_register`).
  const byKernel = refCtrOffset === null || refCtrOffset % 2n !== 0n ? null : counterAddress(ofFile, refCtrOffset)
  let copies: readonly CounterCopy[] = []
  // Any site that is mapped shows the copies; nearly always it is the first.
  for (let index = 0; copies.length === 0 && index < sites.length; index++) {
    const site = sites[index]
    if (site !== undefined) copies = besideCode(all, ofFile, counter, site)
  }
  if (copies.length === 0) return [{ counter, names, address: null, counted: false, mappings: ofFile }]
  return copies.map(({ address, bias }) => {
    const counted = address === byKernel
    return { counter, names, address, counted, mappings: counted ? ofFile : ofFile.filter((mapping) => isOfCopy(mapping, counter, bias)) }
  })
}

/** Whether a mapping has code of a counter at the distance from the file that its copy has. */
function isOfCopy({ start, fileOffset: first }: Mapping, { sites }: FileCounter, bias: bigint): boolean {
  return sites.some(({ fileOffset, vaddr }) => start + fileOffset - first - vaddr === bias)
}
