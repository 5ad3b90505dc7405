/**
 * What `readelf` says about files: the independent opinion that tests compare with.
 */
import { spawnSync } from 'node:child_process'

export const READELF = '/usr/bin/readelf'

/** A USDT note as readelf prints it, and where its addresses lie, by the program headers and sections that readelf prints. */
export interface ExpectedSite {
  readonly provider: string
  readonly name: string
  readonly args: string
  readonly pc: bigint
  readonly base: bigint
  readonly semaphore: bigint
  readonly fileOffset: bigint | null
  readonly refCtrOffset: bigint | null
}

const NOTE = /Provider: (.*)\n +Name: (.*)\n +Location: (0x[0-9a-f]+), Base: (0x[0-9a-f]+), Semaphore: (0x[0-9a-f]+)\n +Arguments: (.*)/g
const LOAD = /^ +LOAD +(0x[0-9a-f]+) (0x[0-9a-f]+) 0x[0-9a-f]+ (0x[0-9a-f]+) /gm
const BASE = /\] \.stapsdt\.base +PROGBITS +([0-9a-f]+) /
const TEXT_WITHOUT_CONTENT = /\] \.text +NOBITS /

/** The USDT sites of files, by path. */
export function expectedSites(paths: readonly string[]): Map<string, ExpectedSite[]> {
  const sites = new Map<string, ExpectedSite[]>()
  const perCall = 200
  for (let first = 0; first < paths.length; first += perCall) {
    // It prints a title for each file only if there are several.
    const some = ['/dev/null', ...paths.slice(first, first + perCall)]
    const { stdout } = spawnSync(READELF, ['-nlSW', ...some], {
      encoding: 'utf8',
      maxBuffer: 256 * 1024 * 1024,
      env: { ...process.env, LC_ALL: 'C' },
    })
    for (const block of stdout.split(/^File: /m).slice(1)) {
      const path = block.slice(0, block.indexOf('\n'))
      sites.set(path, parseSites(block))
    }
  }
  return sites
}

function parseSites(block: string): ExpectedSite[] {
  const loads = [...block.matchAll(LOAD)].map(([, offset = '', vaddr = '', bytes = '']) => ({
    offset: BigInt(offset),
    vaddr: BigInt(vaddr),
    bytes: BigInt(bytes),
  }))
  const actualBase = BASE.exec(block)?.[1]
  const place = (address: bigint): bigint | null => {
    const load = loads.find(({ vaddr, bytes }) => address >= vaddr && address < vaddr + bytes)
    return load === undefined || TEXT_WITHOUT_CONTENT.test(block) ? null : address - load.vaddr + load.offset
  }
  return [...block.matchAll(NOTE)].map(([, provider = '', name = '', location = '', base = '', sem = '', args = '']) => {
    const moved = actualBase === undefined ? 0n : BigInt(`0x${actualBase}`) - BigInt(base)
    const semaphore = BigInt(sem)
    return {
      provider,
      name,
      args,
      pc: BigInt(location),
      base: BigInt(base),
      semaphore,
      fileOffset: place(BigInt(location) + moved),
      refCtrOffset: semaphore === 0n ? null : place(semaphore + moved),
    }
  })
}
