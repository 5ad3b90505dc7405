/**
 * /proc/PID/maps: which files a process maps, and where.
 *
 * The device that `maps` prints is not the one that stat(2) gives on overlayfs and btrfs, so a mapping is tied to a file by
 * `fstat` through /proc/PID/map_files/START-END, which also reaches a file that was deleted or replaced since.
 */
import { statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { isSystemCallError } from '../errors.js'

/** A file, whatever its names: device and inode as stat(2) gives them. */
export interface FileIdentity {
  readonly device: bigint
  readonly inode: bigint
}

/** The identity as a key for maps. */
export function identityKey(identity: FileIdentity): string {
  return `${identity.device}:${identity.inode}`
}

/** One line of /proc/PID/maps. */
export interface Mapping {
  /** First address. */
  readonly start: bigint
  /** First address behind it. */
  readonly end: bigint
  /** Offset in the file of the first byte. */
  readonly fileOffset: bigint
  readonly readable: boolean
  readonly writable: boolean
  readonly executable: boolean
  readonly shared: boolean
  /** `device inode` as printed: equal within one process for mappings of one file, but not to be compared with stat(2). */
  readonly fileKey: string
  /** The path as printed, without ` (deleted)`; for memory that is no file's, a name such as `[heap]` or nothing. */
  readonly path: string
  readonly deleted: boolean
}

const LINE = /^([0-9a-f]+)-([0-9a-f]+) (.)(.)(.)(.) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+ \d+) *(.*)$/
/** What the kernel writes behind the path of a file that has lost its name (`d_path`, fs/d_path.c). */
export const DELETED = ' (deleted)'

/** Parses the text of a `maps` file; lines that map no file are left out, unless `all` are wanted. */
export function parseMaps(text: string, all = false): Mapping[] {
  const mappings: Mapping[] = []
  for (const line of text.split('\n')) {
    const match = LINE.exec(line)
    if (match === null) continue
    const [, start = '', end = '', r, w, x, s, offset = '', fileKey = '', name = ''] = match
    if (!all && !name.startsWith('/')) continue
    const deleted = name.endsWith(DELETED)
    mappings.push({
      start: BigInt(`0x${start}`),
      end: BigInt(`0x${end}`),
      fileOffset: BigInt(`0x${offset}`),
      readable: r === 'r',
      writable: w === 'w',
      executable: x === 'x',
      shared: s === 's',
      fileKey,
      // seq_path (fs/seq_file.c) writes a newline in a name as \012 and leaves everything else.
      path: (deleted ? name.slice(0, -DELETED.length) : name).replaceAll('\\012', '\n'),
      deleted,
    })
  }
  return mappings
}

/**
 * The mappings of a process or thread: those of files, or all.
 * @param procDirectory - `/proc/PID`, or `/proc/TID` of a living thread when the leader has exited.
 */
export async function readMaps(procDirectory: string, all = false): Promise<Mapping[]> {
  return parseMaps(await readFile(`${procDirectory}/maps`, 'utf8'), all)
}

/** Path through which the kernel reaches the file of a mapping, whatever its name is by now. */
export function mapFilesPath(procDirectory: string, mapping: Mapping): string {
  return `${procDirectory}/map_files/${mapping.start.toString(16)}-${mapping.end.toString(16)}`
}

/** Identity of a mapping's file; `undefined` when the mapping or its process is gone. Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE. */
export function mappingIdentity(procDirectory: string, mapping: Mapping): FileIdentity | undefined {
  try {
    const stat = statSync(mapFilesPath(procDirectory, mapping), { bigint: true, throwIfNoEntry: false })
    return stat === undefined ? undefined : { device: stat.dev, inode: stat.ino }
  } catch (error) {
    // A process that ends while its link is followed is one that may not be looked at (proc_pid_get_link, fs/proc/base.c). Whoever may not look at a living one
    // has been refused its maps before; a missing capability is EPERM.
    if (isSystemCallError(error) && (error.code === 'EACCES' || error.code === 'ESRCH')) return undefined
    throw error
  }
}

/** Whether two identities name one file. */
export function sameFile(a: FileIdentity, b: FileIdentity): boolean {
  return a.device === b.device && a.inode === b.inode
}

/** The mappings of `identity` among `mappings`; asks the kernel once for each file. One that changed after it was read may be missing. */
export function mappingsOf(procDirectory: string, mappings: readonly Mapping[], identity: FileIdentity): Mapping[] {
  return mappingsByFile(procDirectory, mappings)(identity)
}

/** The same for several files: asks the kernel now, and answers from that. */
export function mappingsByFile(procDirectory: string, mappings: readonly Mapping[]): (identity: FileIdentity) => Mapping[] {
  const asked = askAboutFiles(procDirectory, mappings)
  return (identity) =>
    mappings.filter(({ fileKey }) => {
      const found = asked.get(fileKey)
      return found !== undefined && sameFile(found, identity)
    })
}

/**
 * Whether a process maps a file. A mapping that changed after it was read cannot be asked about any more: a loader maps a whole library first, and at once other parts of it over its end.
 * @returns `null` if it may be one of those that changed
 */
export function mapsFile(procDirectory: string, mappings: readonly Mapping[], identity: FileIdentity): boolean | null {
  const asked = [...askAboutFiles(procDirectory, mappings).values()]
  if (asked.some((found) => found !== undefined && sameFile(found, identity))) return true
  return asked.includes(undefined) ? null : false
}

/** The identities of all mapped files by their keys; `undefined` where none of the file's mappings is there any more. */
function askAboutFiles(procDirectory: string, mappings: readonly Mapping[]): ReadonlyMap<string, FileIdentity | undefined> {
  const asked = new Map<string, FileIdentity | undefined>()
  for (const mapping of mappings) {
    if (mapping.path.startsWith('/') && asked.get(mapping.fileKey) === undefined) {
      asked.set(mapping.fileKey, mappingIdentity(procDirectory, mapping))
    }
  }
  return asked
}

/** The mapping that holds an address, or `null`; `all` are in the order in which the kernel lists them, which is that of their addresses. */
export function mappingAt(all: readonly Mapping[], address: bigint): Mapping | null {
  let low = 0
  let high = all.length
  while (low < high) {
    const middle = (low + high) >>> 1
    const mapping = all[middle]
    if (mapping !== undefined && mapping.start <= address) low = middle + 1
    else high = middle
  }
  const mapping = all[low - 1]
  return mapping !== undefined && address < mapping.end ? mapping : null
}

/** Address at which `fileOffset` is mapped executable, or `null`. */
export function codeAddress(mappings: readonly Mapping[], fileOffset: bigint): bigint | null {
  const mapping = mappings.find((m) => m.executable && covers(m, fileOffset))
  return mapping === undefined ? null : mapping.start + fileOffset - mapping.fileOffset
}

/** Whether the kernel looks for counters in a mapping of the file: if it is private and writable (`valid_ref_ctr_vma`, kernel/events/uprobes.c). */
export function takesCounters({ writable, shared }: Mapping): boolean {
  return writable && !shared
}

/** Whether the kernel puts breakpoints into a mapping of the file: if it is private and not writable (`valid_vma`, kernel/events/uprobes.c). */
export function takesBreakpoints({ writable, shared }: Mapping): boolean {
  return !writable && !shared
}

/**
 * Address of a counter at `refCtrOffset`, where the kernel would look for it ({@link takesCounters}). `null` if there is none: the kernel then arms the site and never raises the counter.
 */
export function counterAddress(mappings: readonly Mapping[], refCtrOffset: bigint): bigint | null {
  const mapping = mappings.find((m) => takesCounters(m) && covers(m, refCtrOffset))
  return mapping === undefined ? null : mapping.start + refCtrOffset - mapping.fileOffset
}

/** Whether a mapping of the file has `fileOffset` in it. */
export function covers(mapping: Mapping, fileOffset: bigint): boolean {
  return fileOffset >= mapping.fileOffset && fileOffset - mapping.fileOffset < mapping.end - mapping.start
}
