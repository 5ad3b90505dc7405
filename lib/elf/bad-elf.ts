/**
 * How a broken ELF file is refused, and how the names in a file become strings.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'

/**
 * Makes the error that says what is wrong in a file, and where.
 * @param path - as it was given; escaped here
 * @param offset - place in the file, in bytes
 */
export function badElf(path: string, what: string, offset?: bigint | number): UprobeError {
  const shown = escapeForDisplay(path)
  const where = offset === undefined ? '' : ` (at file offset 0x${offset.toString(16)})`
  return new UprobeError(
    'ERR_UPROBE_BAD_ELF',
    `${shown}: ${what}${where}. The file is damaged, or not what it seems; check it with readelf.`,
    {
      path: shown,
    },
  )
}

/** Names are UTF-8 by custom. Where the bytes are not, each stands for itself (Latin-1), so that different names stay different. */
export function decodeName(bytes: Buffer, start = 0, end = bytes.length): string {
  const text = bytes.toString('utf8', start, end)
  return text.includes('\ufffd') && !Buffer.from(text).equals(bytes.subarray(start, end)) ? bytes.toString('latin1', start, end) : text
}
