/**
 * The code of an ELF file, for the checks of sites.
 *
 * Code is what a loadable, executable segment takes from the file. What such a segment adds beyond the file is zeros, and no code.
 */
import type { ElfFile } from '../elf/elf-file.js'
import { FileWindow } from '../elf/file-window.js'
import { functionContaining } from '../elf/symbols.js'
import type { InstructionSource } from './instruction-start.js'

const PT_LOAD = 1
const PF_X = 1

/**
 * Reads instructions from `elf`, which stays open as long as the source is used.
 * @param window - through which the file is read; others may use it too
 */
export function elfInstructions(elf: ElfFile, arch: InstructionSource['arch'], window = new FileWindow(elf)): InstructionSource {
  return {
    arch,
    path: elf.path,
    readCode: (vaddr, atMost) => readCode(elf, window, vaddr, atMost),
    peekCode: (vaddr, atMost) => peekCode(elf, window, vaddr, atMost),
    peekByte: (fileOffset) => window.peekByte(fileOffset),
    functionContaining: (vaddr) => functionContaining(elf, vaddr),
  }
}

function readCode(elf: ElfFile, window: FileWindow, vaddr: bigint, atMost: number): Promise<Uint8Array> {
  const place = placeOf(elf, vaddr, atMost)
  return place === null ? Promise.resolve(new Uint8Array(0)) : window.read(place.offset, place.bytes)
}

function peekCode(elf: ElfFile, window: FileWindow, vaddr: bigint, atMost: number): Uint8Array | null {
  const place = placeOf(elf, vaddr, atMost)
  return place === null ? null : window.peek(place.offset, place.bytes)
}

/** Where code lies in the file, and how much of it there is. */
function placeOf(elf: ElfFile, vaddr: bigint, atMost: number): { offset: bigint; bytes: number } | null {
  const segment = elf.segments.find(
    ({ type, flags, vaddr: start, fileSize }) => type === PT_LOAD && (flags & PF_X) !== 0 && vaddr >= start && vaddr < start + fileSize,
  )
  if (segment === undefined) return null
  const within = vaddr - segment.vaddr
  const left = segment.fileSize - within
  return { offset: segment.offset + within, bytes: left < BigInt(atMost) ? Number(left) : atMost }
}
