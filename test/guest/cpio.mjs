/**
 * Writing initramfs archives: the "newc" format of cpio, as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst).
 */
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'

const MAX_BYTES = 1024 ** 3

/** An archive that grows in memory; the kernel takes several, one after another. */
export class Archive {
  #pieces = []
  #bytes = 0
  #inode = 1
  #paths = new Set()
  #directories = new Set()

  /** Adds a file with the given content. */
  file(path, content, mode = 0o755) {
    this.#parents(path)
    this.#entry(path, 0o100000 | mode, Buffer.from(content))
  }

  /** Adds a symbolic link. */
  link(path, target) {
    this.#parents(path)
    this.#entry(path, 0o120777, Buffer.from(target))
  }

  /** Adds an empty directory. */
  directory(path) {
    this.#parents(`${path}/.`)
  }

  /** Adds a file or folder of this machine, unless it is there; links inside a folder stay links. */
  copy(path, source, options = {}) {
    if (this.#paths.has(path)) return
    if (source === '' || source === '/') throw new Error(`refusing to archive ${JSON.stringify(source)}`)
    const stat = lstatSync(source)
    if (options.follow !== true && stat.isSymbolicLink()) this.link(path, readlinkSync(source))
    else if (stat.isDirectory()) for (const name of readdirSync(source)) this.copy(`${path}/${name}`, join(source, name))
    else if (stat.isFile() || stat.isSymbolicLink()) this.file(path, readFileSync(source), stat.mode & 0o777)
  }

  /** The whole archive. */
  finish() {
    this.#entry('TRAILER!!!', 0, Buffer.alloc(0))
    return Buffer.concat(this.#pieces)
  }

  #parents(path) {
    const parts = path.split('/').slice(0, -1)
    for (let depth = 1; depth <= parts.length; depth++) {
      const directory = parts.slice(0, depth).join('/')
      if (directory === '' || this.#directories.has(directory)) continue
      this.#directories.add(directory)
      this.#entry(directory, 0o040755, Buffer.alloc(0))
    }
  }

  #entry(path, mode, content) {
    this.#paths.add(path)
    const name = Buffer.from(`${path}\0`)
    const fields = [this.#inode++, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0]
    const head = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`
    this.#push(pad(Buffer.concat([Buffer.from(head), name])))
    this.#push(pad(content))
  }

  #push(piece) {
    this.#bytes += piece.length
    if (this.#bytes > MAX_BYTES) throw new Error('the archive grows beyond 1 GiB: a wrong folder is being copied')
    this.#pieces.push(piece)
  }
}

function pad(buffer) {
  const rest = buffer.length % 4
  return rest === 0 ? buffer : Buffer.concat([buffer, Buffer.alloc(4 - rest)])
}
