/**
 * The tests' own eyes: what is in a process at a place of a file, read from /proc without any code of the package.
 */
import { closeSync, openSync, readFileSync, readSync, statSync, writeSync } from 'node:fs'

interface Region {
  readonly start: bigint
  readonly end: bigint
  readonly permissions: string
  readonly offset: bigint
}

/** The mappings of one file in a process, found by its inode. */
function regionsOf(pid: number, path: string): Region[] {
  const { dev, ino } = statSync(path, { bigint: true })
  const device = `${((dev >> 8n) & 0xfffn).toString(16).padStart(2, '0')}:${(dev & 0xffn).toString(16).padStart(2, '0')}`
  const regions: Region[] = []
  for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
    const [range = '', permissions = '', offset = '', lineDevice = '', inode = ''] = line.split(/ +/)
    if (inode !== String(ino) || lineDevice !== device) continue
    const [start = '', end = ''] = range.split('-')
    regions.push({ start: BigInt(`0x${start}`), end: BigInt(`0x${end}`), permissions, offset: BigInt(`0x${offset}`) })
  }
  return regions
}

function addressOf(pid: number, path: string, fileOffset: bigint, permission: string): bigint {
  const found = regionsOf(pid, path).find(
    ({ start, end, permissions, offset }) =>
      permissions.includes(permission) && fileOffset >= offset && fileOffset < offset + (end - start),
  )
  if (found === undefined) throw new Error(`process ${pid} has no ${permission} mapping of ${path} at 0x${fileOffset.toString(16)}`)
  return found.start + fileOffset - found.offset
}

function withMemory<T>(pid: number, flags: 'r' | 'r+', use: (fd: number) => T): T {
  const fd = openSync(`/proc/${pid}/mem`, flags)
  try {
    return use(fd)
  } finally {
    closeSync(fd)
  }
}

function readMemory(pid: number, address: bigint, bytes: number): Buffer {
  return withMemory(pid, 'r', (fd) => {
    const buffer = Buffer.alloc(bytes)
    if (readSync(fd, buffer, 0, bytes, address) !== bytes) throw new Error(`process ${pid} has no memory at 0x${address.toString(16)}`)
    return buffer
  })
}

function writeMemory(pid: number, address: bigint, bytes: Buffer): void {
  withMemory(pid, 'r+', (fd) => {
    // fs.writeSync takes its position as a number; user addresses on x86-64 and arm64 are below 2^48.
    if (writeSync(fd, bytes, 0, bytes.length, Number(address)) !== bytes.length)
      throw new Error(`0x${address.toString(16)} could not be written`)
  })
}

/** The bytes of the instruction that process `pid` would execute for the file's offset, as hexadecimal digits. */
export function instructionBytes(pid: number, path: string, fileOffset: bigint, bytes = process.arch === 'arm64' ? 4 : 1): string {
  return readMemory(pid, addressOf(pid, path, fileOffset, 'x'), bytes).toString('hex')
}

/** The bytes of the file itself at an offset, as hexadecimal digits. */
export function fileBytes(path: string, fileOffset: bigint, bytes = process.arch === 'arm64' ? 4 : 1): string {
  const fd = openSync(path, 'r')
  try {
    const buffer = Buffer.alloc(bytes)
    readSync(fd, buffer, 0, bytes, fileOffset)
    return buffer.toString('hex')
  } finally {
    closeSync(fd)
  }
}

/** Whether a breakpoint is in the process at the file's offset. */
export function isArmed(pid: number, path: string, fileOffset: bigint): boolean {
  return instructionBytes(pid, path, fileOffset) !== fileBytes(path, fileOffset)
}

/** The address of a counter in a process. */
export function counterAddressOf(pid: number, path: string, refCtrOffset: bigint): bigint {
  return addressOf(pid, path, refCtrOffset, 'w')
}

/** The counter of a process at the file's offset, as 16 unsigned bits. */
export function counterValue(pid: number, path: string, refCtrOffset: bigint): number {
  return readMemory(pid, addressOf(pid, path, refCtrOffset, 'w'), 2).readUInt16LE(0)
}

/** Puts a breakpoint into a process at the file's offset, as a debugger does: `int3`, or `brk #5`, by which the kernel knows its own. */
export function writeBreakpoint(pid: number, path: string, fileOffset: bigint): void {
  writeMemory(pid, addressOf(pid, path, fileOffset, 'x'), Buffer.from(process.arch === 'arm64' ? 'a00020d4' : 'cc', 'hex'))
}

/** Writes a counter of a process, as a tool does that counts by hand. */
export function writeCounter(pid: number, path: string, refCtrOffset: bigint, value: number): void {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16LE(value)
  writeMemory(pid, addressOf(pid, path, refCtrOffset, 'w'), bytes)
}
