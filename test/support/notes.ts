/**
 * The USDT sites of a file as `readelf -n` and the program headers of `readelf -lW` give them: where tests look, found without any code of
 * the package. Files whose sections were moved after linking (prelink) are not understood.
 */
import { execFileSync } from 'node:child_process'

/** One site. */
export interface Note {
  readonly provider: string
  readonly name: string
  readonly args: string
  readonly fileOffset: bigint
  /** `null` if the probe has no semaphore. */
  readonly refCtrOffset: bigint | null
}

interface Load {
  readonly offset: bigint
  readonly address: bigint
  readonly fileBytes: bigint
}

function readelf(option: string, path: string): string {
  return execFileSync('readelf', [option, path], { encoding: 'utf8', maxBuffer: 64 * 1024 * 1024, env: { ...process.env, LC_ALL: 'C' } })
}

function loadsOf(path: string): Load[] {
  const loads: Load[] = []
  for (const [, offset = '', address = '', fileBytes = ''] of readelf('-lW', path).matchAll(/^ +LOAD +(0x\w+) (0x\w+) 0x\w+ (0x\w+)/gm)) {
    loads.push({ offset: BigInt(offset), address: BigInt(address), fileBytes: BigInt(fileBytes) })
  }
  return loads
}

function toFileOffset(loads: readonly Load[], address: bigint): bigint {
  const load = loads.find((l) => address >= l.address && address < l.address + l.fileBytes)
  if (load === undefined) throw new Error(`address 0x${address.toString(16)} is in no file-backed segment`)
  return address - load.address + load.offset
}

const NOTE = /Provider: (.*)\n +Name: (.*)\n +Location: (0x\w+), Base: 0x\w+, Semaphore: (0x\w+)\n +Arguments: ?(.*)/g

/** All sites of a file, or those of `provider:name`. A site whose place is not in the file is left out. */
export function notesOf(path: string, probe?: string): Note[] {
  const loads = loadsOf(path)
  const notes: Note[] = []
  for (const [, provider = '', name = '', location = '', semaphore = '', args = ''] of readelf('-n', path).matchAll(NOTE)) {
    if (probe !== undefined && probe !== `${provider}:${name}`) continue
    const counter = BigInt(semaphore)
    notes.push({
      provider,
      name,
      args: args.trim(),
      fileOffset: toFileOffset(loads, BigInt(location)),
      refCtrOffset: counter === 0n ? null : toFileOffset(loads, counter),
    })
  }
  return notes
}

/** The only site of `provider:name`, which must have a semaphore. */
export function gatedNote(path: string, probe: string): { fileOffset: bigint; refCtrOffset: bigint } {
  const [note, ...others] = notesOf(path, probe)
  if (note === undefined || others.length > 0) throw new Error(`${path} has ${others.length + (note ? 1 : 0)} sites of ${probe}`)
  if (note.refCtrOffset === null) throw new Error(`${probe} has no semaphore`)
  return { fileOffset: note.fileOffset, refCtrOffset: note.refCtrOffset }
}

/** Offset in the file of a function, by `nm` or, where the file is stripped, `nm -D`. */
export function functionOffset(path: string, symbol: string): bigint {
  for (const options of [[], ['-D']]) {
    const symbols = execFileSync('nm', [...options, path], {
      encoding: 'utf8',
      maxBuffer: 256 * 1024 * 1024,
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    const line = symbols.split('\n').find((l) => l.endsWith(` ${symbol}`) || l.includes(` ${symbol}@`))
    if (line !== undefined) return toFileOffset(loadsOf(path), BigInt(`0x${line.slice(0, 16)}`))
  }
  throw new Error(`${path} has no symbol ${symbol}`)
}
