/**
 * Prints what `uprobe list` found. Apart from the command, so that listing a file loads neither the parser of arguments nor what failures need.
 */
// Not through index.js, which would load all that attaching takes.
import { list, type UsdtListing } from '../list.js'
import { escapeForDisplay } from '../log.js'
import { printTexts } from './output.js'
import { hex, jsonLine } from './text.js'

/** A site as JSON: addresses and offsets as `0x…` strings, which keep 64 bits in every JSON parser. */
function toJson(site: UsdtListing): object {
  return {
    provider: site.provider,
    name: site.name,
    path: site.path,
    pc: hex(site.pc),
    base: hex(site.base),
    semaphore: hex(site.semaphore),
    args: site.args,
    fileOffset: hex(site.fileOffset),
    refCtrOffset: hex(site.refCtrOffset),
  }
}

/** Characters. */
const BLOCK_LENGTH = 16_384
const NOT_MAPPED = 'not mapped'

/** What to say of a site's counter; a semaphore without a place in the file lies where the kernel never finds it. */
function counterColumn(site: UsdtListing): string {
  if (site.refCtrOffset !== null) return `counter ${hex(site.refCtrOffset)}`
  return site.semaphore === 0n ? 'no counter' : 'counter unreachable'
}

/**
 * Makes the function that forms a site's line for people, in aligned columns. What the file calls its probes is escaped one by one only where something in all of it needs
 * that.
 */
function aligner(sites: readonly UsdtListing[]): (site: UsdtListing) => string {
  const names = sites.map(({ name }) => name).join('')
  const shown = escapeForDisplay(names) === names ? (name: string): string => name : escapeForDisplay
  const [probeWidth, offsetWidth, counterWidth] = widthsOf(sites, shown)
  let before: UsdtListing | undefined
  let place = ''
  let args = ''
  return (site) => {
    if (before?.path !== site.path || before.provider !== site.provider) place = placeOf(site)
    if (before?.args !== site.args) args = escapeForDisplay(site.args)
    before = site
    const offset = hex(site.fileOffset) ?? NOT_MAPPED
    const counter = counterColumn(site)
    const end = args === '' ? counter : `${counter.padEnd(counterWidth)}  ${args}`
    return `${(place + shown(site.name)).padEnd(probeWidth)}  ${offset.padEnd(offsetWidth)}  ${end}`
  }
}

/**
 * Some hundred lines at a time, each as one text. There may be ten thousand sites: a line is formed when it is printed and then forgotten, and what is done for each is
 * done in this one loop, since no code is optimized before the listing ends.
 */
function* blocksOf(sites: readonly UsdtListing[], lineOf: (site: UsdtListing) => string): Generator<string> {
  let block = ''
  for (const site of sites) {
    if (block.length > BLOCK_LENGTH) {
      yield block
      block = lineOf(site)
    } else {
      block += block === '' ? lineOf(site) : `\n${lineOf(site)}`
    }
  }
  if (block !== '') yield block
}

/** The probe as `trace` takes it, up to its name. */
function placeOf({ path, provider }: UsdtListing): string {
  return escapeForDisplay(`usdt:${path}:${provider}:`)
}

/** How wide the columns before the last one are. Of numbers, the greatest is the longest. */
function widthsOf(sites: readonly UsdtListing[], shown: (name: string) => string): [probe: number, offset: number, counter: number] {
  let before: UsdtListing | undefined
  let placeWidth = 0
  let probeWidth = 0
  let offsetWidth = 0
  let counterWidth = 0
  let lastOffset = -1n
  let lastCounter = -1n
  for (const site of sites) {
    if (before?.path !== site.path || before.provider !== site.provider) placeWidth = placeOf(site).length
    before = site
    probeWidth = Math.max(probeWidth, placeWidth + shown(site.name).length)
    if (site.fileOffset === null) offsetWidth = NOT_MAPPED.length
    else if (site.fileOffset > lastOffset) lastOffset = site.fileOffset
    if (site.refCtrOffset === null) counterWidth = Math.max(counterWidth, counterColumn(site).length)
    else if (site.refCtrOffset > lastCounter) lastCounter = site.refCtrOffset
  }
  if (lastOffset >= 0n) offsetWidth = Math.max(offsetWidth, hex(lastOffset).length)
  if (lastCounter >= 0n) counterWidth = Math.max(counterWidth, `counter ${hex(lastCounter)}`.length)
  return [probeWidth, offsetWidth, counterWidth]
}

/** Runs the command. */
export async function printList(target: string | number, pattern: string | undefined, json: boolean): Promise<void> {
  const sites = await list(target, pattern)
  await printTexts(blocksOf(sites, json ? (site) => jsonLine(toJson(site)) : aligner(sites)))
}
