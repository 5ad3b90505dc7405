/**
 * From a specification and a file to the sites it means in that file.
 *
 * A USDT name may stand for several notes, since inlining copies the probe; a symbol may stand for several functions (a static function in several
 * compilation units); all are sites of the one probe. A file that does not hold what is asked for yields no sites: another file of the same process may.
 */
import type { ElfFile } from '../elf/elf-file.js'
import { NoteIndex } from '../elf/note-index.js'
import type { UsdtNote } from '../elf/stapsdt.js'
import { type ElfSymbol, findFunctions } from '../elf/symbols.js'
import { readUsdtNotes } from '../elf/usdt-notes.js'
import { UprobeError } from '../errors.js'
import { compileGlob, hasWildcard } from '../glob.js'
import { escapeForDisplay } from '../log.js'
import type { SiteWork } from '../progress.js'
import type { ProbeSpec } from './spec.js'

/** Why an address is taken for the start of an instruction. */
export type SiteOrigin = 'note' | 'symbol' | 'inside'

/** A site as the file gives it. */
export interface FoundSite {
  /** Resolved name without the path, as `usdt:postgresql:query__start`, `uprobe:malloc+0x10`. */
  readonly probe: string
  readonly origin: SiteOrigin
  readonly vaddr: bigint
  readonly fileOffset: bigint
  /** Virtual address of the semaphore in the file; `null` if the note names none. */
  readonly counterVaddr: bigint | null
  /** Where the semaphore lies in the file; `null` if there is none, or it has no place in the file (as in `.bss`). */
  readonly refCtrOffset: bigint | null
  /** Operands as stored in the note; `null` for functions. */
  readonly args: string | null
  /** Whether it is known to be the first instruction of a function. */
  readonly atEntry: boolean
}

/** A site of a note. There may be thousands, so what the note says is not copied. */
class NoteSite implements FoundSite {
  constructor(
    readonly note: UsdtNote,
    readonly fileOffset: bigint,
  ) {}

  get probe(): string {
    return probeOf(this.note)
  }

  get origin(): SiteOrigin {
    return 'note'
  }

  get vaddr(): bigint {
    return this.note.vaddr
  }

  get counterVaddr(): bigint | null {
    return this.note.semaphoreVaddr
  }

  get refCtrOffset(): bigint | null {
    return this.note.refCtrOffset
  }

  get args(): string {
    return this.note.args
  }

  get atEntry(): boolean {
    return false
  }
}

/** What a file yields. */
export interface FoundSites {
  readonly sites: readonly FoundSite[]
  /** What matched and cannot be probed, as sentences. */
  readonly skipped: readonly string[]
  /** All USDT notes of the file; `null` if they were not asked for. */
  readonly notes: readonly UsdtNote[] | null
}

/** Finds the sites of `spec` in `elf`. Throws `ERR_UPROBE_BAD_ELF`, and `ERR_UPROBE_IFUNC` for an exact name. */
export async function findSites(spec: ProbeSpec, elf: ElfFile, work: SiteWork): Promise<FoundSites> {
  switch (spec.place.by) {
    case 'note':
      return findNotes(elf, spec.place.provider, spec.place.name, work)
    case 'symbol':
      return findBySymbol(spec, elf, spec.place.symbol, spec.place.offset)
    case 'offset':
      return findByOffset(elf, spec.place.fileOffset)
  }
}

function probeOf({ provider, name }: UsdtNote): string {
  return `usdt:${provider}:${name}`
}

/** The notes of a file whose code has a place in it, as sites, and the others. */
interface NoteSites {
  readonly sites: readonly NoteSite[]
  readonly unplaced: readonly UsdtNote[]
}

/** So many notes without a place are told of one by one. A file may have a hundred thousand. */
const MAX_SKIPPED = 20

/** What was made of the notes that are kept: an agent attaches to the same thousands again and again. */
const madeOfNotes = new WeakMap<readonly UsdtNote[], NoteSites>()

async function sitesOf(notes: readonly UsdtNote[], work: SiteWork): Promise<NoteSites> {
  const made = madeOfNotes.get(notes)
  if (made !== undefined) return made
  const sites: NoteSite[] = []
  const unplaced: UsdtNote[] = []
  await work.each(notes, (note) => {
    if (note.fileOffset === null) unplaced.push(note)
    else sites.push(new NoteSite(note, note.fileOffset))
    return undefined
  })
  madeOfNotes.set(notes, { sites, unplaced })
  return { sites, unplaced }
}

async function findNotes(elf: ElfFile, provider: string, name: string, work: SiteWork): Promise<FoundSites> {
  const isProvider = compileGlob(provider)
  const isName = compileGlob(name)
  const notes = await readUsdtNotes(elf)
  const candidates = hasWildcard(provider) || hasWildcard(name) ? notes : await NoteIndex.of(notes).named(provider, name)
  const { sites: all, unplaced } = await sitesOf(candidates, work)
  // Notes that follow each other mostly have one provider.
  let before: string | null = null
  let matches = false
  const isMeant = (note: UsdtNote): boolean => {
    if (note.provider !== before) {
      before = note.provider
      matches = isProvider(before)
    }
    return matches && isName(note.name)
  }
  const sites: FoundSite[] = []
  await work.each(all, (site) => {
    if (isMeant(site.note)) sites.push(site)
    return undefined
  })
  const skipped: string[] = []
  let more = 0
  await work.each(unplaced, (note) => {
    if (!isMeant(note)) return undefined
    if (skipped.length === MAX_SKIPPED) more++
    else
      skipped.push(
        `${escapeForDisplay(probeOf(note))}: its address 0x${note.vaddr.toString(16)} has no place in the file (a file of debug symbols?)`,
      )
    return undefined
  })
  if (more > 0) skipped.push(`${more} more whose addresses have no place in the file`)
  return { sites, skipped, notes }
}

async function findBySymbol(spec: ProbeSpec, elf: ElfFile, symbol: string, offset: bigint): Promise<FoundSites> {
  const found = preferDefaultVersions(symbol, await findFunctions(elf, symbol))
  const sites = new Map<bigint, FoundSite>()
  const skipped: string[] = []
  for (const candidate of found) {
    const name = escapeForDisplay(candidate.name)
    if (candidate.kind === 'ifunc') {
      const why =
        `${name} in ${escapeForDisplay(elf.path)} is an indirect function (IFUNC): its address is that of a resolver which runs once. ` +
        'Probe the implementation that the resolver chooses, by its own symbol or by 0xOFFSET.'
      if (!spec.wildcard) throw new UprobeError('ERR_UPROBE_IFUNC', why, { path: escapeForDisplay(elf.path) })
      skipped.push(why)
      continue
    }
    if (offset !== 0n && candidate.size !== 0n && offset >= candidate.size) {
      throw new UprobeError(
        'ERR_UPROBE_NOT_INSTRUCTION',
        `${name}+0x${offset.toString(16)} lies behind the function, which is 0x${candidate.size.toString(16)} bytes long.`,
        { path: escapeForDisplay(elf.path) },
      )
    }
    const vaddr = candidate.vaddr + offset
    const fileOffset = elf.fileOffsetOf(vaddr)
    if (fileOffset === null) {
      skipped.push(`${name}: its address 0x${vaddr.toString(16)} has no place in the file`)
      continue
    }
    // Several names of one address are one site.
    if (sites.has(vaddr)) continue
    const label = offset === 0n ? candidate.name : `${candidate.name}+0x${offset.toString(16)}`
    sites.set(vaddr, {
      probe: `${spec.kind}:${label}`,
      origin: offset === 0n ? 'symbol' : 'inside',
      vaddr,
      fileOffset,
      counterVaddr: null,
      refCtrOffset: null,
      args: null,
      atEntry: offset === 0n && candidate.kind === 'function',
    })
  }
  return { sites: [...sites.values()], skipped, notes: null }
}

/** Of several versions of a symbol, a name without a version means the default one, as it does for the linker. */
function preferDefaultVersions(symbol: string, found: readonly ElfSymbol[]): readonly ElfSymbol[] {
  if (symbol.includes('@')) return found
  const withDefault = new Set(found.filter((s) => s.version !== null && s.defaultVersion).map((s) => s.name))
  return found.filter((s) => s.version === null || s.defaultVersion || !withDefault.has(s.name))
}

async function findByOffset(elf: ElfFile, fileOffset: bigint): Promise<FoundSites> {
  const vaddr = elf.vaddrOf(fileOffset)
  if (vaddr === null || !elf.isExecutable(vaddr)) {
    throw new UprobeError(
      'ERR_UPROBE_NOT_INSTRUCTION',
      `Offset 0x${fileOffset.toString(16)} of ${escapeForDisplay(elf.path)} is not in an executable segment. Give an offset in the file, not a virtual address.`,
      { path: escapeForDisplay(elf.path) },
    )
  }
  const probe = `uprobe:0x${fileOffset.toString(16)}`
  // A note vouches for its nop, also in a stripped file, where no symbol says where to decode from.
  const notes = await readUsdtNotes(elf)
  const noted = notes.some((note) => note.fileOffset === fileOffset)
  return {
    sites: [
      { probe, origin: noted ? 'note' : 'inside', vaddr, fileOffset, counterVaddr: null, refCtrOffset: null, args: null, atEntry: false },
    ],
    skipped: [],
    notes,
  }
}
