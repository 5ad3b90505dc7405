/**
 * Where a counter lies in a process, and whether it may be written there.
 *
 * The kernel looks for a counter in a private, writable mapping of the same file (`valid_ref_ctr_vma`, kernel/events/uprobes.c), and for nothing else. A counter in
 * `.bss` has no place in the file, so the kernel never finds it; but it has an address, as far from the code as in the file, and the package can write it. A
 * counter in a read-only mapping is protected, and one in a shared mapping is the file itself: neither is written.
 *
 * A file may be mapped more than once (dlmopen), and then has a counter in each copy.
 */
import type { CounterAt } from '../native.js'
import { codeAddress, counterAddress, covers, type Mapping, mappingAt, takesCounters } from '../target/maps.js'
import type { FileCounter, SharingSite } from './read.js'

/** A counter in one mapping. */
export type CounterPlace = CounterAt

/**
 * Why a counter cannot be held in a process:
 * - `not-mapped`: the process does not map the code, so there is nothing to hold;
 * - `read-only`, `shared`: the mapping it lies in is;
 * - `odd`: its address is not a multiple of 2, so that it cannot be stored at once;
 * - `lost`: it lies in no mapping.
 */
export type PlaceProblem = 'not-mapped' | 'read-only' | 'shared' | 'odd' | 'lost'

/** What was found of a counter in a process. */
export interface CounterPlaces {
  /** Where it may be written. */
  readonly places: readonly CounterPlace[]
  /** Why there is no such place; `null` if there is one. */
  readonly problem: PlaceProblem | null
}

/** Whether the kernel finds a counter in a process. */
export function kernelFindsCounter(ofFile: readonly Mapping[], counter: Pick<FileCounter, 'refCtrOffset'>): boolean {
  const { refCtrOffset } = counter
  return refCtrOffset !== null && counterAddress(ofFile, refCtrOffset) !== null
}

/**
 * Finds a counter.
 * @param all - all mappings of the process, those that are no file's included
 * @param ofFile - those of the file among them
 */
export function counterPlaces(all: readonly Mapping[], ofFile: readonly Mapping[], counter: FileCounter): CounterPlaces {
  const [site] = counter.sites
  if (site === undefined || codeAddress(ofFile, site.fileOffset) === null) return { places: [], problem: 'not-mapped' }
  if (counter.vaddr % 2n !== 0n) return { places: [], problem: 'odd' }
  const candidates = besideCode(all, ofFile, counter, site)
  const places = candidates.filter(({ mapping }) => takesCounters(mapping)).map(({ address, mapping }) => place(address, mapping))
  if (places.length > 0) return { places, problem: null }
  if (candidates.some(({ mapping }) => mapping.shared)) return { places, problem: 'shared' }
  return { places, problem: candidates.length > 0 ? 'read-only' : 'lost' }
}

/** A counter beside one copy of its code, writable or not. */
export interface CounterCopy {
  readonly address: bigint
  readonly mapping: Mapping
  /** How far everything in this copy lies from its virtual address in the file. */
  readonly bias: bigint
}

/**
 * Of each copy of the code, the memory at the counter's distance from it: data of the file, or what the loader added for `.bss`, which is no file's. The distance decides, not the
 * offset: where the last page of one segment and the first of the next are one page of the file, the same offset is mapped twice, and only one of the two is what the
 * program looks at.
 */
export function besideCode(all: readonly Mapping[], ofFile: readonly Mapping[], counter: FileCounter, site: SharingSite): CounterCopy[] {
  return ofFile
    .filter((mapping) => mapping.executable && covers(mapping, site.fileOffset))
    .flatMap((code) => {
      const bias = code.start + site.fileOffset - code.fileOffset - site.vaddr
      const address = bias + counter.vaddr
      const mapping = mappingAt(all, address)
      if (mapping === null || address + 2n > mapping.end) return []
      const ofProgram =
        ofFile.some((m) => m.start === mapping.start) ||
        (isAnonymous(mapping) && counter.anonymousStart !== null && mapping.start >= bias + counter.anonymousStart)
      return ofProgram ? [{ address, mapping, bias }] : []
    })
}

function place(address: bigint, mapping: Mapping): CounterPlace {
  const [device = '', inode = '0'] = mapping.fileKey.split(' ')
  return { address, device, inode: BigInt(inode), fileOffset: isAnonymous(mapping) ? 0n : mapping.fileOffset + address - mapping.start }
}

function isAnonymous(mapping: Mapping): boolean {
  return !mapping.path.startsWith('/') && mapping.fileKey.endsWith(' 0')
}
