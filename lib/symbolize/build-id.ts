/**
 * The build id of a file: a note that the linker puts into what is mapped, and that debug symbols repeat.
 *
 * A note is: u32 bytes of its name, u32 bytes of its content, u32 type, the name and the content, each padded to 4 bytes (gABI, "Note Section").
 */
import type { ElfFile } from '../elf/elf-file.js'
import { align4, SHT_NOTE } from '../elf/headers.js'
import { saysUnusable } from '../shortage.js'

const PT_NOTE = 4
const NT_GNU_BUILD_ID = 3
const NAME = 'GNU\0'
/** What is looked through of one segment or section. */
const MAX_NOTES_BYTES = 64 * 1024
/** SHA-1 has 20 bytes; `--build-id=0x…` may have any number. */
const MAX_ID_BYTES = 64

/** In hexadecimal digits; `null` if the file has none, or is broken there. */
export async function readBuildId(elf: ElfFile): Promise<string | null> {
  // A file of debug symbols has no content where its program headers point to, but keeps the note as a section.
  const sections = elf.sections.filter(({ type }) => type === SHT_NOTE)
  const segments = elf.segments.filter(({ type }) => type === PT_NOTE).map(({ offset, fileSize }) => ({ offset, size: fileSize }))
  for (const { offset, size } of [...sections, ...segments]) {
    if (size > BigInt(MAX_NOTES_BYTES)) continue
    try {
      const id = await findIn(elf, offset, Number(size))
      if (id !== null) return id
    } catch (error) {
      if (!saysUnusable(error)) throw error
    }
  }
  return null
}

async function findIn(elf: ElfFile, offset: bigint, bytes: number): Promise<string | null> {
  const view = await elf.readView(offset, bytes)
  for (let at = 0; at + 12 <= bytes; ) {
    const nameBytes = view.u32(at)
    const contentBytes = view.u32(at + 4)
    const content = at + 12 + align4(nameBytes)
    const end = content + align4(contentBytes)
    if (end > bytes) return null
    const name = view.buffer.toString('latin1', at + 12, at + 12 + nameBytes)
    if (view.u32(at + 8) === NT_GNU_BUILD_ID && name === NAME && contentBytes > 1 && contentBytes <= MAX_ID_BYTES) {
      return view.buffer.toString('hex', content, content + contentBytes)
    }
    at = end
  }
  return null
}
