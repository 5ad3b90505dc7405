/**
 * The USDT probes of one file, as `list()` gives them.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import { ElfFile } from './elf-file.js'
import { collectUsdtNotes } from './stapsdt.js'

/** One site of a USDT probe. Addresses are as stored in the note; offsets are in the file, after all adjustments. */
export interface UsdtListing {
  readonly provider: string
  readonly name: string
  readonly path: string
  readonly pc: bigint
  readonly base: bigint
  /** 0 if the probe has none. */
  readonly semaphore: bigint
  /** The operands, as stored. */
  readonly args: string
  /** `null` when the address has no place in the file. */
  readonly fileOffset: bigint | null
  /** `null` when there is no semaphore, or it has no place in the file. */
  readonly refCtrOffset: bigint | null
}

/**
 * Lists the USDT probes of the file at `path`.
 * @param pattern - `PROVIDER:NAME`, both with `*` and `?`
 * @throws {UprobeError} `ERR_UPROBE_FILE`, `ERR_UPROBE_BAD_ELF` or `ERR_UPROBE_BAD_SPEC`
 */
export async function listFile(path: string, pattern?: string): Promise<UsdtListing[]> {
  const elf = await ElfFile.open(path)
  try {
    return await listElf(elf, pattern)
  } finally {
    await elf.close()
  }
}

/** Lists the USDT probes of an open file; see {@link listFile}. */
export async function listElf(elf: ElfFile, pattern?: string): Promise<UsdtListing[]> {
  const wanted = parsePattern(pattern)
  const { path } = elf
  const offsetOfCode = elf.offsetFinder()
  const offsetOfCounter = elf.offsetFinder()
  return collectUsdtNotes(elf, (provider, name, args, pc, base, semaphore, vaddr, semaphoreVaddr): UsdtListing | null => {
    if (wanted !== null && !wanted(provider, name)) return null
    const fileOffset = offsetOfCode(vaddr)
    const refCtrOffset = semaphoreVaddr === null ? null : offsetOfCounter(semaphoreVaddr)
    return { provider, name, path, pc, base, semaphore, args, fileOffset, refCtrOffset }
  })
}

/** The names that are wanted; `null` for all. */
function parsePattern(pattern: string | undefined): ((provider: string, name: string) => boolean) | null {
  if (pattern === undefined) return null
  const parts = pattern.split(':')
  const [provider, name] = parts
  if (parts.length !== 2 || !provider || !name) {
    throw new UprobeError('ERR_UPROBE_BAD_SPEC', `${escapeForDisplay(pattern)} is not a pattern. Write PROVIDER:NAME; both take * and ?.`)
  }
  // Loaded when it is needed: of `uprobe list`, loading is a good part.
  const { compileGlob } = require('../glob.js') as typeof import('../glob.js')
  const isProvider = compileGlob(provider)
  const isName = compileGlob(name)
  return (p, n) => isProvider(p) && isName(n)
}
