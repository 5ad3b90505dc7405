/**
 * The USDT notes of a file, with the places in the file that they mean.
 */
import type { ElfFile } from './elf-file.js'
import { KnownNotes } from './known-notes.js'
import { collectFrom, readNoteSections, type UsdtNote } from './stapsdt.js'

const knownNotes = new KnownNotes<UsdtNote>()

/**
 * Reads all USDT notes, in the order of the file. Of a file that was read before, and says the same, they may be the same objects.
 * @throws {UprobeError} `ERR_UPROBE_BAD_ELF` if they are damaged, or more than 131,072 notes or 16 MiB
 */
export async function readUsdtNotes(elf: ElfFile): Promise<readonly UsdtNote[]> {
  const read = await readNoteSections(elf)
  const contents = read.sections.map(({ view }) => view.buffer)
  // All that the addresses of notes depend on, but the notes.
  const key = `${elf.layoutKey}/${read.base?.address}/${contents.map(({ length }) => length)}`
  const known = knownNotes.find({ key, contents })
  if (known !== null) return known
  const offsetOfCode = elf.offsetFinder()
  const offsetOfCounter = elf.offsetFinder()
  const notes = await collectFrom(elf, read, (provider, name, args, pc, base, semaphore, vaddr, semaphoreVaddr): UsdtNote => {
    const fileOffset = offsetOfCode(vaddr)
    const refCtrOffset = semaphoreVaddr === null ? null : offsetOfCounter(semaphoreVaddr)
    return { provider, name, args, pc, base, semaphore, vaddr, fileOffset, semaphoreVaddr, refCtrOffset }
  })
  knownNotes.keep({ key, contents }, notes)
  return notes
}
