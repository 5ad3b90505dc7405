/**
 * From the wish (a path, some pids) to the files to probe and the processes to probe them in.
 *
 * - pids, no path: the files that each process maps executable;
 * - pids and a path: the file that the process itself knows under that path. If it maps the file, that mapping is used, also when the
 *   path leads to a newer version by now: a probe on the new inode would be dead for this process;
 * - a path alone: the file in our own root, for every process that maps it, now or later.
 */
import { readlinkSync } from 'node:fs'
import { resolve as resolvePath } from 'node:path'
import { EACCES, EPERM } from '../errno.js'
import { errnoOf, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { Native } from '../native.js'
import { rightsForTracing } from '../rights.js'
import { TargetFile } from './file.js'
import { identityKey, type Mapping, mappingIdentity, sameFile } from './maps.js'
import type { TargetProcess } from './process.js'

/** A file, and the processes it is wanted in; `null` for every process that maps it. */
export interface ResolvedFile {
  readonly file: TargetFile
  readonly processes: readonly TargetProcess[] | null
}

/** Finds the files. The caller closes each `file`; when this throws, none is left open. */
export async function resolveFiles(native: Native, path: string | null, processes: readonly TargetProcess[]): Promise<ResolvedFile[]> {
  if (processes.length === 0) {
    if (path === null) {
      throw new UprobeError(
        'ERR_UPROBE_BAD_OPTION',
        'Neither a process nor a file is named. Give `pid`, or write a PATH in the probe specification.',
      )
    }
    return [{ file: TargetFile.open(native, resolvePath(path)), processes: null }]
  }
  const found = new Map<string, { file: TargetFile; processes: TargetProcess[] }>()
  const add = (file: TargetFile, target: TargetProcess): void => {
    const key = identityKey(file.identity)
    const known = found.get(key)
    if (known === undefined) {
      found.set(key, { file, processes: [target] })
    } else {
      file.close()
      known.processes.push(target)
    }
  }
  try {
    for (const target of processes) {
      const mapped = distinctFiles(await target.maps())
      if (path === null) {
        const refusals = mapped.map((mapping) => addIfPresent(native, target, mapping, add)).filter((refusal) => refusal !== null)
        const [refusal] = refusals
        // A single file may be refused by its file system. All of them are by the kernel, and to have found nothing would be a lie.
        if (refusal !== undefined && refusals.length === mapped.length && !target.addressSpaceGone()) throw denied(target, refusal)
      } else {
        add(fileOfProcess(native, target, mapped, path), target)
      }
    }
  } catch (error) {
    for (const { file } of found.values()) file.close()
    throw error
  }
  return [...found.values()]
}

/** One executable mapping of each file. */
function distinctFiles(mappings: readonly Mapping[]): Mapping[] {
  const seen = new Set<string>()
  return mappings.filter((mapping) => {
    if (!mapping.executable || seen.has(mapping.fileKey)) return false
    seen.add(mapping.fileKey)
    return true
  })
}

/** Opens a mapped file, unless the mapping went away since it was listed, or is of a device. Returns the error if it may not be opened. */
function addIfPresent(
  native: Native,
  target: TargetProcess,
  mapping: Mapping,
  add: (file: TargetFile, target: TargetProcess) => void,
): UprobeError | null {
  try {
    add(TargetFile.openMapped(native, target.procDirectory, mapping), target)
    return null
  } catch (error) {
    if (!(error instanceof UprobeError) || error.code !== 'ERR_UPROBE_FILE') throw error
    const errno = refusalOf(error)
    return errno === EACCES || errno === EPERM ? error : null
  }
}

function denied(target: TargetProcess, cause: unknown): UprobeError {
  return new UprobeError('ERR_UPROBE_TARGET_DENIED', `The files that process ${target.pid} maps may not be opened. ${rightsForTracing()}`, {
    cause,
    errno: refusalOf(cause),
    pid: target.pid,
  })
}

/** The errno of a system call that failed, also where that is told as a file that cannot be opened. */
function refusalOf(error: unknown): number | undefined {
  return errnoOf(error instanceof UprobeError ? error.cause : error)
}

/** Looks at a mapped file. Who has not the right to do so gets EPERM for any (`proc_map_files_get_link`, fs/proc/base.c); EACCES is the answer of one file. */
function lookAtMapped<T>(target: TargetProcess, look: () => T): T {
  try {
    return look()
  } catch (error) {
    if (refusalOf(error) === EPERM && !target.addressSpaceGone()) throw denied(target, error)
    throw error
  }
}

function fileOfProcess(native: Native, target: TargetProcess, mapped: readonly Mapping[], path: string): TargetFile {
  // A bare name such as `libc.so.6` means a mapped file of that name.
  if (!path.includes('/')) {
    const mapping = mapped.find((m) => m.path.endsWith(`/${path}`))
    if (mapping !== undefined) return lookAtMapped(target, () => TargetFile.openMapped(native, target.procDirectory, mapping))
    throw new UprobeError(
      'ERR_UPROBE_FILE',
      `Process ${target.pid} maps no file named ${escapeForDisplay(path)}. Write the whole path, as the process sees it.`,
      { pid: target.pid, path: escapeForDisplay(path) },
    )
  }
  let named: TargetFile | null = null
  let refusal: unknown
  try {
    named = TargetFile.openInRoot(native, `${target.procDirectory}/root`, resolvePath(path))
  } catch (error) {
    refusal = error
  }
  try {
    const identity = named?.identity
    if (named !== null && mapped.some((m) => identity !== undefined && isFile(target, m, identity))) return named
    // The path may mean a newer file than the one that runs, or none any more.
    const names = new Set([path, resolvePath(path)])
    if (named !== null) names.add(readlinkSync(named.kernelPath))
    const older = mapped.find((m) => m.deleted && names.has(m.path))
    if (older === undefined) {
      if (named === null) throw refusal
      return named
    }
    const running = lookAtMapped(target, () => TargetFile.openMapped(native, target.procDirectory, older))
    named?.close()
    return running
  } catch (error) {
    named?.close()
    throw error
  }
}

function isFile(target: TargetProcess, mapping: Mapping, identity: { device: bigint; inode: bigint }): boolean {
  const found = lookAtMapped(target, () => mappingIdentity(target.procDirectory, mapping))
  return found !== undefined && sameFile(found, identity)
}
