/**
 * The files that code comes from, each opened once, however many processes map it.
 *
 * A file is reached through /proc/PID/map_files while the process is there, whatever its name is by now, and is held open from then on, so that a stack can be explained when the process has exited and its
 * container is gone. What a stripped file lacks may be in a file of debug symbols, which is found by the build id: in the root of the process first, then in our own.
 */
import { closeSync, constants, fstatSync, openSync, statSync } from 'node:fs'
import { ElfFile } from '../elf/elf-file.js'
import { SHT_SYMTAB } from '../elf/headers.js'
import { UprobeError } from '../errors.js'
import { loadNative } from '../native.js'
import { saysAbsent } from '../shortage.js'
import { type Mapping, mapFilesPath } from '../target/maps.js'
import { readBuildId } from './build-id.js'
import { SymbolIndex } from './symbol-index.js'

/** How many files are held open, and how many symbols are kept of all of them (20 bytes each). */
const MAX_MODULES = 192
const MAX_SYMBOLS = 2 ** 23

/** A file that code was mapped from. */
export class Module {
  #elf: ElfFile | null = null
  #debug: ElfFile | null = null
  #buildId: string | null = null
  #symbols: SymbolIndex | null = null
  #opening: Promise<void> | null = null

  constructor(
    private readonly fd: number,
    private readonly path: string,
    private readonly root: string,
    private readonly onIndexed: (module: Module) => void,
  ) {}

  /** The headers; `null` if it is no ELF file that can be read. */
  async elf(): Promise<ElfFile | null> {
    await this.prepare()
    return this.#elf
  }

  /** In hexadecimal digits; `null` if it has none. */
  async buildId(): Promise<string | null> {
    await this.prepare()
    return this.#buildId
  }

  /** The functions, from the file and from that of its debug symbols. */
  async symbols(): Promise<SymbolIndex> {
    await this.prepare()
    if (this.#symbols === null) {
      const files = [this.#elf, this.#debug].filter((file) => file !== null)
      this.#symbols = await SymbolIndex.of(files)
      this.onIndexed(this)
    }
    return this.#symbols
  }

  /** How many symbols are kept. */
  get indexed(): number {
    return this.#symbols?.size ?? 0
  }

  /** Reads what is needed while the process is there: headers, build id, and where debug symbols are. */
  prepare(): Promise<void> {
    this.#opening ??= this.#open()
    return this.#opening
  }

  /** Forgets the symbols; they are read again when asked for. */
  forget(): void {
    this.#symbols = null
  }

  async close(): Promise<void> {
    await this.prepare()
    await this.#debug?.close()
    this.#debug = null
    this.#elf = null
    closeSync(this.fd)
  }

  async #open(): Promise<void> {
    this.#elf = await readable(() => ElfFile.fromFd(this.fd, this.path))
    if (this.#elf === null) return
    this.#buildId = await readBuildId(this.#elf)
    if (this.#buildId !== null && !hasSymbolTable(this.#elf)) this.#debug = await openDebugFile(this.root, this.#buildId)
  }
}

/** All of them. */
export class Modules {
  /** The one that was asked for last is the last. */
  readonly #byFile = new Map<string, Module>()

  /** The file of a mapping; `null` if it is not to be had: the process is gone, or may not be looked at. */
  async open(procDirectory: string, mapping: Mapping): Promise<Module | null> {
    const path = mapFilesPath(procDirectory, mapping)
    const stat = optional(() => statSync(path, { bigint: true }))
    // What is no regular file is not opened: opening a device does something.
    if (stat === null || !stat.isFile()) return null
    const key = [stat.dev, stat.ino, stat.size, stat.mtimeNs].join(':')
    let module = this.#byFile.get(key) ?? null
    if (module === null) {
      const fd = optional(() => openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY))
      if (fd === null) return null
      module = new Module(fd, mapping.path, `${procDirectory}/root`, () => this.#forgetSome())
    }
    this.#byFile.delete(key)
    this.#byFile.set(key, module)
    await module.prepare()
    for (const [oldest, old] of this.#byFile) {
      if (this.#byFile.size <= MAX_MODULES) break
      this.#byFile.delete(oldest)
      await old.close()
    }
    return module
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
async function openDebugFile(root: string, buildId: string): Promise<ElfFile | null> {
  const path = `${DEBUG_DIRECTORY}/${buildId.slice(0, 2)}/${buildId.slice(2)}.debug`
  const native = loadNative()
  for (const open of [() => native.openInRoot(root, path), () => native.openFile(path)]) {
    const fd = optional(open)
    if (fd === null) continue
    // The descriptor is not the ELF file's own, but the file stays reachable through it until it is opened anew.
    const elf = await readable(async () => {
      try {
        return fstatSync(fd).isFile() ? await ElfFile.open(`/proc/self/fd/${fd}`) : null
      } finally {
        native.closeFd(fd)
      }
    })
    if (elf === null) continue
    if (hasSymbolTable(elf) && (await readBuildId(elf)) === buildId) return elf
    await elf.close()
  }
  return null
}

/** What an untrusted file gives, or `null` if it is broken. */
export async function readable<T>(read: () => Promise<T>): Promise<T | null> {
  try {
    return await read()
  } catch (error) {
    if (error instanceof UprobeError) return null
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
