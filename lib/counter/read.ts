/**
 * Reading counters in a target, and what the kernel should have made of them.
 *
 * The kernel adds 1 when it writes a breakpoint, once for each uprobe that carries this counter and each mapping of its instruction, however many tracers share it
 * (`update_ref_ctr` in `uprobe_write_opcode`, kernel/events/uprobes.c). So the expected value in a process is the number of
 * its sites of this counter that are armed; whether a site is armed shows in its bytes, which differ from those of the file.
 */
import { codeAddress, counterAddress, type Mapping, takesBreakpoints } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'

/** The memory of a process, as far as it is needed here. */
type Memory = Pick<TargetProcess, 'readMemory'>

/** What was found in one process for one counter. */
export interface CounterReading {
  /** Address of the counter; `null` where the kernel finds none. */
  readonly address: bigint | null
  /** The 16 bits, unsigned; `null` if they could not be read. */
  readonly value: number | null
  /** Sites of this counter whose breakpoint is in, whoever put it there; each as often as the process maps it with one ({@link armedOffsets}), as the kernel counts. */
  readonly armedSites: number
  /** Whether two readings in a row were the same; otherwise somebody was just coming or going. */
  readonly steady: boolean
}

/** Bytes that a breakpoint replaces: `int3` is one byte, `brk` on arm64 a whole instruction. */
export const BREAKPOINT_BYTES = process.arch === 'arm64' ? 4 : 1

/** Whether the instruction at a file offset differs from the file. */
export function isArmed(target: Memory, mappings: readonly Mapping[], fileOffset: bigint, original: Uint8Array): boolean | null {
  const address = codeAddress(mappings, fileOffset)
  if (address === null) return null
  const bytes = target.readMemory(address, BREAKPOINT_BYTES)
  return bytes === null ? null : !bytes.equals(original.subarray(0, BREAKPOINT_BYTES))
}

/**
 * Where breakpoints are in, as offsets in the file: a site once for each mapping that has it. The kernel puts a breakpoint into every private mapping of the code that is not writable,
 * also where nobody executes it (a program that maps its own file to read its symbols), and counts each (`valid_vma` and `uprobe_write_opcode`, kernel/events/uprobes.c).
 */
export function armedOffsets(target: Memory, mappings: readonly Mapping[], sites: readonly CounterSite[]): bigint[] {
  const eligible = mappings.filter(takesBreakpoints)
  return sites.flatMap(({ fileOffset, original }) =>
    eligible.flatMap(({ start, end, fileOffset: first }) => {
      if (fileOffset < first || fileOffset - first >= end - start) return []
      const bytes = target.readMemory(start + fileOffset - first, BREAKPOINT_BYTES)
      return bytes === null || bytes.equals(original.subarray(0, BREAKPOINT_BYTES)) ? [] : [fileOffset]
    }),
  )
}

/** The 16-bit counter at an address; `null` if it cannot be read. Both supported architectures are little-endian. */
export function readCounter(target: Memory, address: bigint): number | null {
  return target.readMemory(address, 2)?.readUInt16LE(0) ?? null
}

/** The same for the counter that the kernel finds by its offset in the file; `null` also if it finds none. */
export function readCounterOf(target: Memory, ofFile: readonly Mapping[], refCtrOffset: bigint): number | null {
  const address = counterAddress(ofFile, refCtrOffset)
  return address === null ? null : readCounter(target, address)
}

/** A site that shares a counter: where it is, and what the file has there. */
export interface CounterSite {
  readonly fileOffset: bigint
  readonly original: Uint8Array
}

/** A counter of a file, whether the kernel can find it or not. */
export interface FileCounter {
  /** Virtual address of the counter in the file. */
  readonly vaddr: bigint
  /** Offset of the counter in the file; `null` if it has none (`.bss`). */
  readonly refCtrOffset: bigint | null
  /** For a counter in `.bss`: virtual address where the memory that is no file's begins (`ElfFile.anonymousStart`); otherwise `null`. */
  readonly anonymousStart: bigint | null
  /** Of the first probe that names it. */
  readonly provider: string
  readonly name: string
  /** All sites that share it, whoever probes them. */
  readonly sites: readonly SharingSite[]
}

/** The counters of the sites of a probe, by their virtual address in the file. */
export interface CounterMap {
  readonly size: number
  has(vaddr: bigint): boolean
  get(vaddr: bigint): FileCounter | undefined
  keys(): Iterable<bigint>
  values(): Iterable<FileCounter>
  /** Whether several sites share the counter; as quickly as it can be told of thousands. */
  isShared(vaddr: bigint): boolean
}

/** A site that shares a counter, by its place in the file. */
export interface SharingSite extends CounterSite {
  /** Virtual address of the instruction in the file. */
  readonly vaddr: bigint
}

/** The bit by which the package claims a counter: the most significant one. The kernel takes a counter with it for negative. */
export const CLAIM = 0x8000

const READINGS = 8

/**
 * Reads one counter and its sites in one process. A tracer that comes or goes meanwhile changes both, one after the other, so the reading is
 * repeated until value and armed sites stand still.
 */
export function inspectCounter(
  target: Memory,
  mappings: readonly Mapping[],
  refCtrOffset: bigint,
  sites: readonly CounterSite[],
): CounterReading {
  return inspectAt(target, mappings, counterAddress(mappings, refCtrOffset), sites)
}

/** The same for a counter whose address is known. */
export function inspectAt(
  target: Memory,
  mappings: readonly Mapping[],
  address: bigint | null,
  sites: readonly CounterSite[],
): CounterReading {
  let last: CounterReading = { address, value: null, armedSites: -1, steady: false }
  for (let reading = 0; reading < READINGS && !last.steady; reading++) {
    const before = address === null ? null : readCounter(target, address)
    const armedSites = armedOffsets(target, mappings, sites).length
    const value = address === null ? null : readCounter(target, address)
    last = { address, value, armedSites, steady: before === value && last.value === value && last.armedSites === armedSites }
  }
  return last
}
