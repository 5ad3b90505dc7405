/**
 * The files that code comes from, each opened once, however many processes map it.
 *
 * A file is reached through /proc/PID/map_files while the process is there, whatever its name is by now, and is held open from then on, so that a stack can be explained when the process has exited and its
 * container is gone. What a stripped file lacks may be in a file of debug symbols, which is found by the build id: in the root of the process first, then in our own.
 * Files that may not answer are left alone (target/mounts.ts).
 */
import { closeSync, fstatSync, openSync } from 'node:fs'
import { ElfFile } from '../elf/elf-file.js'
import { SHT_SYMTAB } from '../elf/headers.js'
import { loadNative } from '../native.js'
import { saysAbsent, saysUnusable } from '../shortage.js'
import { type Mapping, mapFilesPath } from '../target/maps.js'
import type { Mounts } from '../target/mounts.js'
import { readBuildId } from './build-id.js'
import { SymbolIndex } from './symbol-index.js'

/** How many files are held open, and how many symbols are kept of all of them (20 bytes each). */
const MAX_MODULES = 192
const MAX_SYMBOLS = 2 ** 23

/** A descriptor that stands for a file without opening it (include/uapi/asm-generic/fcntl.h, the same on x86-64 and arm64): opening a device does something. */
const O_PATH = 0o10000000

/** A file that code was mapped from. */
export class Module {
  #symbols: SymbolIndex | null = null
  #closed = false

  private constructor(
    /** The headers; `null` if it is no ELF file that can be read. */
    readonly elf: ElfFile | null,
    /** In hexadecimal digits; `null` if it has none. */
    readonly buildId: string | null,
    private readonly debug: ElfFile | null,
    private readonly onIndexed: (module: Module) => void,
  ) {}

  /**
   * Reads what is needed while the process is there: headers, build id, and where debug symbols are.
   * @param fd - stands for the file; the caller closes it
   * @param procDirectory - /proc/PID
   * @throws {UprobeError} `ERR_UPROBE_LIMIT`; nothing is left open then
   */
  static async open(fd: number, procDirectory: string, mounts: Mounts, onIndexed: (module: Module) => void): Promise<Module> {
    const elf = await openElf(fd)
    if (elf === null) return new Module(null, null, null, onIndexed)
    try {
      const buildId = await readBuildId(elf)
      const debug = buildId === null || hasSymbolTable(elf) ? null : await openDebugFile(procDirectory, mounts, buildId)
      return new Module(elf, buildId, debug, onIndexed)
    } catch (error) {
      await elf.close()
      throw error
    }
  }

  /** Whether it had to make room for others, so that it must be opened anew. */
  get closed(): boolean {
    return this.#closed
  }

  /** The functions, from the file and from that of its debug symbols. */
  async symbols(): Promise<SymbolIndex> {
    if (this.#symbols === null) {
      const files = [this.elf, this.debug].filter((file) => file !== null)
      this.#symbols = await SymbolIndex.of(files)
      this.onIndexed(this)
    }
    return this.#symbols
  }

  /** How many symbols are kept. */
  get indexed(): number {
    return this.#symbols?.size ?? 0
  }

  /** Forgets the symbols; they are read again when asked for. */
  forget(): void {
    this.#symbols = null
  }

  /** Closes the files. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true
    this.forget()
    await this.debug?.close()
    await this.elf?.close()
  }
}

/** All of them. */
export class Modules {
  /** The one that was asked for last is the last. */
  readonly #byFile = new Map<string, Module>()

  /** @param most - how many are held open */
  constructor(private readonly most: number = MAX_MODULES) {}

  /**
   * The file of a mapping, which answers; `null` if it is not to be had: the process is gone, or may not be looked at. It stays open until as many others were asked for since.
   * @throws {UprobeError} `ERR_UPROBE_LIMIT`, or a failed system call that says the same
   */
  async open(procDirectory: string, mapping: Mapping, mounts: Mounts): Promise<Module | null> {
    const fd = optional(() => openSync(mapFilesPath(procDirectory, mapping), O_PATH))
    if (fd === null) return null
    try {
      const stat = fstatSync(fd, { bigint: true })
      if (!stat.isFile()) return null
      const key = [stat.dev, stat.ino, stat.size, stat.mtimeNs].join(':')
      const module = this.#byFile.get(key) ?? (await Module.open(fd, procDirectory, mounts, () => this.#forgetSome()))
      this.#byFile.delete(key)
      this.#byFile.set(key, module)
      await this.#makeRoom()
      return module
    } finally {
      closeSync(fd)
    }
  }

  async #makeRoom(): Promise<void> {
    for (const [oldest, old] of this.#byFile) {
      if (this.#byFile.size <= this.most) return
      this.#byFile.delete(oldest)
      await old.close()
    }
  }

  #forgetSome(): void {
    let total = [...this.#byFile.values()].reduce((sum, { indexed }) => sum + indexed, 0)
    for (const module of this.#byFile.values()) {
      if (total <= MAX_SYMBOLS) return
      total -= module.indexed
      module.forget()
    }
  }
}

function hasSymbolTable(elf: ElfFile): boolean {
  return elf.sections.some(({ type }) => type === SHT_SYMTAB)
}

/** Where distributions put debug symbols, by build id. */
const DEBUG_DIRECTORY = '/usr/lib/debug/.build-id'

/** The file of debug symbols of a build id, if there is one that says so itself. */
async function openDebugFile(procDirectory: string, mounts: Mounts, buildId: string): Promise<ElfFile | null> {
  const path = `${DEBUG_DIRECTORY}/${buildId.slice(0, 2)}/${buildId.slice(2)}.debug`
  const native = loadNative()
  const ways = [
    ['own', () => native.openInRoot(`${procDirectory}/root`, path)],
    ['ours', () => native.openFile(path)],
  ] as const
  for (const [root, open] of ways) {
    const fd = mounts.mayHangPath(root, path) ? null : optional(open)
    if (fd === null) continue
    let elf: ElfFile | null
    try {
      elf = fstatSync(fd).isFile() ? await openElf(fd) : null
    } finally {
      native.closeFd(fd)
    }
    if (elf !== null && (await isDebugFile(elf, buildId))) return elf
  }
  return null
}

/** Whether a file holds the symbols that are wanted; it is closed if it does not. */
async function isDebugFile(elf: ElfFile, buildId: string): Promise<boolean> {
  let wanted = false
  try {
    wanted = hasSymbolTable(elf) && (await readBuildId(elf)) === buildId
  } finally {
    if (!wanted) await elf.close()
  }
  return wanted
}

/** Opens the file that a descriptor stands for; `null` if it is none that can be read. */
async function openElf(fd: number): Promise<ElfFile | null> {
  try {
    return await ElfFile.open(`/proc/self/fd/${fd}`)
  } catch (error) {
    if (saysUnusable(error)) return null
    throw error
  }
}

/** What a system call gives, or `null` if it fails: the file is not there, or may not be opened. Where a limit is reached, it may be there. */
function optional<T>(call: () => T): T | null {
  try {
    return call()
  } catch (error) {
    if (saysAbsent(error)) return null
    throw error
  }
}
