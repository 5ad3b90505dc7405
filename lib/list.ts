/**
 * `list()`: the USDT probes of a file, or of all files that a process maps.
 */
import { listElf, listFile, type UsdtListing } from './elf/list.js'
import { UprobeError } from './errors.js'

export type { UsdtListing }

/**
 * Lists USDT probes, one entry a site.
 *
 * @param pathOrPid - a file; or a process id, for every file that the process maps with code
 * @param pattern - `PROVIDER:NAME`, both with `*` and `?`; default: all
 * @returns what the notes say, in the order of the files and their notes; empty if there are none
 * @throws {UprobeError} `ERR_UPROBE_FILE`, `ERR_UPROBE_BAD_ELF`, `ERR_UPROBE_BAD_SPEC`; for a process also `ERR_UPROBE_TARGET_GONE` and `ERR_UPROBE_TARGET_DENIED`
 */
export async function list(pathOrPid: string | number, pattern?: string): Promise<UsdtListing[]> {
  if (typeof pathOrPid === 'string') return listFile(pathOrPid, pattern)
  if (!Number.isInteger(pathOrPid) || pathOrPid < 1) {
    throw new UprobeError('ERR_UPROBE_BAD_OPTION', 'Name a file by its path, or a process by its positive pid.')
  }
  return listProcess(pathOrPid, pattern)
}

async function listProcess(pid: number, pattern: string | undefined): Promise<UsdtListing[]> {
  // Loaded when they are needed: a file needs none of it, and `uprobe list FILE` is mostly loading.
  const { loadNative } = require('./native.js') as typeof import('./native.js')
  const { TargetProcess } = require('./target/process.js') as typeof import('./target/process.js')
  const { resolveFiles } = require('./target/resolve.js') as typeof import('./target/resolve.js')
  const native = loadNative()
  const target = TargetProcess.open(native, pid)
  try {
    const files = await resolveFiles(native, null, [target])
    try {
      const listings: UsdtListing[] = []
      for (const { file } of files) {
        try {
          listings.push(...(await listElf(await file.elf(), pattern)))
        } catch (error) {
          // A mapped file that is no ELF file (a font, an archive mapped executable) holds no probes.
          if (!(error instanceof UprobeError) || error.code !== 'ERR_UPROBE_BAD_ELF') throw error
        }
      }
      return listings
    } finally {
      for (const { file } of files) file.close()
    }
  } finally {
    target.close()
  }
}
