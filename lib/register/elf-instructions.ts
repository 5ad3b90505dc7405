/**
 * The code of an ELF file, for the checks of sites.
 *
 * Code is what a loadable, executable segment takes from the file. What such a segment adds beyond the file is zeros, and no code.
 */
import type { ElfFile } from '../elf/elf-file.js'
import { functionContaining } from '../elf/symbols.js'
import type { InstructionSource } from './instruction-start.js'

const PT_LOAD = 1
const PF_X = 1

/** Reads instructions from `elf`, which stays open as long as the source is used. */
export function elfInstructions(elf: ElfFile, arch: InstructionSource['arch']): InstructionSource {
  return {
    arch,
    path: elf.path,
    readCode: (vaddr, atMost) => readCode(elf, vaddr, atMost),
    functionContaining: (vaddr) => functionContaining(elf, vaddr),
  }
}

async function readCode(elf: ElfFile, vaddr: bigint, atMost: number): Promise<Uint8Array> {
  const segment = elf.segments.find(
    ({ type, flags, vaddr: start, fileSize }) => type === PT_LOAD && (flags & PF_X) !== 0 && vaddr >= start && vaddr < start + fileSize,
  )
  if (segment === undefined) return new Uint8Array(0)
  const within = vaddr - segment.vaddr
  const left = segment.fileSize - within
  return elf.read(segment.offset + within, left < BigInt(atMost) ? Number(left) : atMost)
}
