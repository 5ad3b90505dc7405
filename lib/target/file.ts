/**
 * One file that is probed, held open from the moment it was found.
 *
 * Everything about a probe hangs on the file's inode, and a path can come to mean another one between two looks. So the file is opened once: the ELF
 * reader reads this fd, and the kernel is given `/proc/self/fd/N`, which leads to the same inode however the file was reached:
 * from our mount namespace, from a container's root, or through map_files when it was deleted or replaced since.
 */
import { fstatSync, readlinkSync } from 'node:fs'
import { ElfFile } from '../elf/elf-file.js'
import { errnoOf, isSystemCallError, UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { Native } from '../native.js'
import { limitError } from '../shortage.js'
import { DELETED, type FileIdentity, type Mapping, mapFilesPath } from './maps.js'

/** A file that is probed. The opener closes it. */
export class TargetFile {
  #elf: Promise<ElfFile> | null = null
  #closed = false

  private constructor(
    readonly native: Native,
    readonly fd: number,
    /** The path as the user or the target knows it; for people, never opened again. */
    readonly path: string,
    readonly identity: FileIdentity,
    private readonly size: bigint,
  ) {}

  /** Opens a path in our own mount namespace. Throws `ERR_UPROBE_FILE` or `ERR_UPROBE_LIMIT`. */
  static open(native: Native, path: string): TargetFile {
    return TargetFile.#adopt(native, path, () => native.openFile(path))
  }

  /**
   * Opens a path as a process sees it: below its root, symbolic links included (`openat2`, RESOLVE_IN_ROOT), so that a link made in a
   * container never leads out of it. Throws `ERR_UPROBE_FILE`.
   */
  static openInRoot(native: Native, root: string, path: string): TargetFile {
    return TargetFile.#adopt(native, path, () => native.openInRoot(root, path))
  }

  /** Opens the file of a mapping, whatever its name is by now. Throws `ERR_UPROBE_FILE`. */
  static openMapped(native: Native, procDirectory: string, mapping: Mapping): TargetFile {
    return TargetFile.#adopt(native, mapping.path, () => native.openFile(mapFilesPath(procDirectory, mapping)))
  }

  static #adopt(native: Native, path: string, open: () => number): TargetFile {
    let fd: number
    try {
      fd = open()
    } catch (cause) {
      const limit = limitError(cause, `${escapeForDisplay(path)} cannot be opened`)
      if (limit !== null) throw limit
      const call = isSystemCallError(cause) ? cause : null
      throw new UprobeError(
        'ERR_UPROBE_FILE',
        `${escapeForDisplay(path)} cannot be opened (${call?.code ?? cause}). Check the path, and that it exists in the target's root.`,
        {
          cause,
          path: escapeForDisplay(path),
          syscall: call?.syscall,
          errno: errnoOf(cause),
        },
      )
    }
    const stat = fstatSync(fd, { bigint: true })
    if (!stat.isFile()) {
      native.closeFd(fd)
      throw new UprobeError('ERR_UPROBE_FILE', `${escapeForDisplay(path)} is not a regular file. Name an executable or a shared library.`, {
        path: escapeForDisplay(path),
      })
    }
    return new TargetFile(native, fd, path, { device: stat.dev, inode: stat.ino }, stat.size)
  }

  /** What is given to the kernel as the path of the file. */
  get kernelPath(): string {
    return `/proc/self/fd/${this.fd}`
  }

  /** Whether the file has lost its name, which the kernel then says behind its path wherever it tells of it. */
  get deleted(): boolean {
    return readlinkSync(this.kernelPath).endsWith(DELETED)
  }

  /** The parsed headers; read on first use. */
  elf(): Promise<ElfFile> {
    const elf = this.#elf ?? ElfFile.fromFd(this.fd, this.path, { size: this.size, readCached: this.native.readCached })
    this.#elf = elf
    return elf
  }

  /** Closes the fd. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.native.closeFd(this.fd)
  }
}
