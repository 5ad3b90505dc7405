/**
 * From resolved files to numbered sites that are fit to be registered.
 *
 * Every file is searched; what is found is checked for hazards and for a counter that the kernel can reach, its operands are bound to the file's symbols, and it gets its slot.
 * When no path was named, a file of the process that is broken or for another machine is passed over: it is not what was asked about.
 */
import type { Arch } from '../capture/operands.js'
import { functionArguments, type Operand, parseOperands, returnValue, symbolsOf } from '../capture/operands.js'
import type { CaptureShape, StackShape } from '../capture/shape.js'
import type { FileFacts } from '../counter/site-facts.js'
import type { ElfFile } from '../elf/elf-file.js'
import { FileWindow } from '../elf/file-window.js'
import { SHT_SYMTAB } from '../elf/headers.js'
import type { UsdtNote } from '../elf/stapsdt.js'
import { findSymbolAddresses, functionContaining } from '../elf/symbols.js'
import { UprobeError } from '../errors.js'
import { escapeForDisplay, type Logger } from '../log.js'
import type { Native } from '../native.js'
import type { AttachSettings } from '../options.js'
import type { SiteWork } from '../progress.js'
import { elfInstructions } from '../register/elf-instructions.js'
import type { Site } from '../register/site.js'
import type { TargetFile } from '../target/file.js'
import type { TargetProcess } from '../target/process.js'
import type { ResolvedFile } from '../target/resolve.js'
import { checkStrings } from './check-strings.js'
import { FileCounters } from './file-counters.js'
import { type FoundSite, findSites } from './find-sites.js'
import { SiteFitness, viewsOf } from './fitness.js'
import { nearestFunction } from './nearest-function.js'
import { nearestProbe } from './nearest-probe.js'
import { OriginalCode } from './original-code.js'
import { Shapes } from './shapes.js'
import type { ProbeSpec } from './spec.js'

/** The sites of one file. The slots of the files follow each other. */
export interface FileSites {
  readonly file: TargetFile
  readonly facts: FileFacts
  /** `null` for every process that maps the file. */
  readonly processes: readonly TargetProcess[] | null
  readonly sites: readonly Site[]
  /** All USDT notes of the file, as long as they are kept; `null` if they were not asked for. */
  readonly notes: WeakRef<readonly UsdtNote[]> | null
}

/** All sites of a specification. */
export interface PreparedSites {
  readonly arch: Arch
  readonly files: readonly FileSites[]
  /** All of them, by slot. */
  readonly sites: readonly Site[]
  readonly warnings: readonly string[]
}

/** What is to be prepared. */
export interface PrepareRequest {
  readonly native: Native
  readonly spec: ProbeSpec
  readonly files: readonly ResolvedFile[]
  readonly settings: AttachSettings
  readonly log: Logger
  readonly work: SiteWork
  /** Called when it is known that there are sites, and looking at them begins. */
  onFound(): void
}

/** e_machine of the files that this machine can run in its own mode. */
const MACHINES: Record<Arch, { machine: number; name: string }> = {
  x64: { machine: 62, name: 'x86-64' },
  arm64: { machine: 183, name: 'AArch64' },
}

interface FoundInFile extends ResolvedFile {
  readonly elf: ElfFile
  readonly found: readonly FoundSite[]
  /** All USDT notes of the file; `null` if they were not asked for. */
  readonly notes: readonly UsdtNote[] | null
}

/** Finds, checks and numbers the sites. */
export async function prepareSites(request: PrepareRequest): Promise<PreparedSites> {
  const { native, spec, settings, work } = request
  const arch: Arch = process.arch === 'arm64' ? 'arm64' : 'x64'
  const warnings: string[] = []
  const { found, passed } = await findInFiles(request, arch, warnings)
  const total = found.reduce((sum, file) => sum + file.found.length, 0)
  if (total === 0) {
    const elves = passed.map(({ elf }) => elf)
    const nearest =
      (await nearestProbe(
        spec,
        passed.map(({ notes }) => notes),
        work,
      )) ?? (await nearestFunction(spec, elves, work.signal))
    throw notFound(spec, request.files, warnings, nearest, elves.every(isStripped))
  }
  if (total > settings.maxSites) {
    throw new UprobeError(
      'ERR_UPROBE_TOO_MANY_SITES',
      `${escapeForDisplay(spec.text)} stands for ${total} sites, and maxSites is ${settings.maxSites}. Narrow the pattern, or raise maxSites.`,
    )
  }
  request.onFound()
  const files: FileSites[] = []
  let slots = 0
  let refusal: UprobeError | null = null
  work.begin('check', total)
  for (const one of found) {
    const { file, elf, processes } = one
    await work.beforeLongStep()
    const window = new FileWindow(elf)
    const [facts, views] = await Promise.all([readFacts(one, window, work), viewsOf(file.identity, processes)])
    const source = elfInstructions(elf, elf.machine === MACHINES.arm64.machine ? 'arm64' : 'x64', window)
    const fitness = SiteFitness.of({ native, settings, retprobe: spec.kind === 'uretprobe', source, elf, facts, views })
    const { fit, refused } = await checkSites(one.found, fitness, spec, work)
    refusal ??= refused[0] ?? null
    for (const { message } of refused) warnings.push(`left out: ${message}`)
    const numbered = await bindSites(request, arch, elf, fit, slots)
    slots += numbered.length
    if (numbered.length > 0) files.push({ file, facts, processes, sites: numbered, notes: one.notes && new WeakRef(one.notes) })
  }
  work.end()
  const [only, second] = files
  const sites = only !== undefined && second === undefined ? only.sites : files.flatMap((file) => file.sites)
  if (sites.length === 0 && refusal !== null) throw refusal
  warnings.push(...checkStrings(spec, settings, sites))
  return { arch, files, sites, warnings }
}

/** Divides sites into those that may be registered, and why others may not. Throws the first such reason, unless the specification is a pattern. */
async function checkSites(
  found: readonly FoundSite[],
  fitness: SiteFitness,
  spec: ProbeSpec,
  work: SiteWork,
): Promise<{ readonly fit: readonly FoundSite[]; readonly refused: readonly UprobeError[] }> {
  const unfit = new Set<FoundSite>()
  const refused: UprobeError[] = []
  const settle = (site: FoundSite, error: UprobeError | null): void => {
    if (error === null) return
    if (!spec.wildcard) throw error
    unfit.add(site)
    refused.push(error)
  }
  await work.each(found, (site) => {
    work.count()
    const checking = fitness.check(site)
    if (checking instanceof Promise) return checking.then((error) => settle(site, error))
    settle(site, checking)
    return undefined
  })
  return { fit: unfit.size === 0 ? found : found.filter((site) => !unfit.has(site)), refused }
}

/** A file in which nothing was found, and its notes. */
interface PassedFile {
  readonly elf: ElfFile
  readonly notes: readonly UsdtNote[]
}

/** What is found in which file, and the others. */
async function findInFiles(
  { spec, files, work, log }: PrepareRequest,
  arch: Arch,
  warnings: string[],
): Promise<{ readonly found: readonly FoundInFile[]; readonly passed: readonly PassedFile[] }> {
  const result: FoundInFile[] = []
  const passed: PassedFile[] = []
  for (const resolved of files) {
    work.signal.throwIfAborted()
    await work.beforeLongStep()
    try {
      const elf = await resolved.file.elf()
      checkMachine(elf, arch)
      const { sites, skipped, notes } = await findSites(spec, elf, work)
      warnings.push(...skipped)
      if (sites.length > 0) result.push({ ...resolved, elf, found: sites, notes })
      else passed.push({ elf, notes: notes ?? [] })
    } catch (error) {
      const passable = error instanceof UprobeError && (error.code === 'ERR_UPROBE_BAD_ELF' || error.code === 'ERR_UPROBE_ARCH')
      if (spec.path !== null || !passable) throw error
      log.debug({ err: error }, 'a file of the process was passed over')
    }
  }
  return { found: result, passed }
}

function checkMachine(elf: ElfFile, arch: Arch): void {
  const { machine, name } = MACHINES[arch]
  if (elf.machine === machine && elf.bits === 64) return
  throw new UprobeError(
    'ERR_UPROBE_ARCH',
    `${escapeForDisplay(elf.path)} is for ${elf.machineName} (${elf.bits} bits); only ${name} programs can be probed here. Listing its probes works.`,
    { path: escapeForDisplay(elf.path) },
  )
}

function isStripped(elf: ElfFile): boolean {
  return !elf.sections.some(({ type }) => type === SHT_SYMTAB)
}

function notFound(
  spec: ProbeSpec,
  files: readonly ResolvedFile[],
  skipped: readonly string[],
  nearest: string | null,
  stripped: boolean,
): UprobeError {
  const where = spec.path === null ? `in the ${files.length} files that the process maps` : `in ${escapeForDisplay(spec.path)}`
  const help =
    spec.kind === 'usdt'
      ? '`uprobe list` shows which USDT probes there are.'
      : stripped
        ? 'Check the name with `nm -D`; a stripped file has only its dynamic symbols.'
        : 'Check the name with `nm`; functions that the compiler has inlined everywhere are not there.'
  const why = skipped.length === 0 ? '' : ` (${skipped.slice(0, 3).join('; ')})`
  const meant = nearest === null ? '' : `Is ${escapeForDisplay(nearest)} meant? `
  return new UprobeError('ERR_UPROBE_NOT_FOUND', `${escapeForDisplay(spec.text)}: nothing matches ${where}${why}. ${meant}${help}`)
}

/** Original bytes at the sites, and which sites of the file share a counter with them. */
async function readFacts({ file, elf, found, notes }: FoundInFile, window: FileWindow, work: SiteWork): Promise<FileFacts> {
  const originals = new OriginalCode(window)
  await work.each(found, ({ fileOffset }) => originals.learn(fileOffset))
  const counters = await FileCounters.of(elf, found, notes, originals, work)
  return { identity: file.identity, path: file.path, originals, counters }
}

/** Gives the sites of one file their slots, and binds their operands to the file's symbols. */
async function bindSites(
  { spec, settings, work }: PrepareRequest,
  arch: Arch,
  elf: ElfFile,
  found: readonly FoundSite[],
  firstSlot: number,
): Promise<Site[]> {
  const parsed = new Map<string | null, Operand[]>()
  const names = new Set<string>()
  // Sites that follow each other mostly have the same operands.
  let before: string | null | undefined
  await work.each(found, ({ args }) => {
    if (args === before) return undefined
    before = args
    if (parsed.has(args)) return undefined
    const operands = operandsOf(spec, arch, args)
    parsed.set(args, operands)
    for (const name of symbolsOf(operands)) names.add(name)
    return undefined
  })
  const symbols = names.size === 0 ? new Map<string, bigint>() : await findSymbolAddresses(elf, names)
  const stacks = settings.stack ? await stacksOf(spec, settings.stackDepth, elf, found) : []
  const shapes = new Shapes(settings)
  const sites: Site[] = []
  await work.each(found, (one) => {
    const shape = shapes.of(parsed.get(one.args) ?? [], one.vaddr, symbols, stacks[sites.length] ?? null)
    sites.push(new BoundSite(firstSlot + sites.length, one, settings.counter === 'kernel', shape))
    return undefined
  })
  return sites
}

/** A site with its slot. There may be thousands, so what was found is not copied. */
class BoundSite implements Site {
  constructor(
    readonly slot: number,
    private readonly found: FoundSite,
    private readonly counted: boolean,
    readonly shape: CaptureShape,
  ) {}

  get probe(): string {
    return this.found.probe
  }

  get vaddr(): bigint {
    return this.found.vaddr
  }

  get fileOffset(): bigint {
    return this.found.fileOffset
  }

  get counterVaddr(): bigint | null {
    return this.found.counterVaddr
  }

  get counterOffset(): bigint | null {
    return this.found.refCtrOffset
  }

  get refCtrOffset(): bigint | null {
    return this.counted ? this.found.refCtrOffset : null
  }

  get args(): string | null {
    return this.found.args
  }
}

/** How the stack is found at each site. A function that is named by its offset is looked for, since its caller is found in another place at its first instruction. */
async function stacksOf(spec: ProbeSpec, depth: number, elf: ElfFile, found: readonly FoundSite[]): Promise<StackShape[]> {
  const stacks: StackShape[] = []
  for (const { vaddr, atEntry } of found) {
    const begins = atEntry || (spec.place.by === 'offset' && (await functionContaining(elf, vaddr))?.vaddr === vaddr)
    // At a return the function is gone already, and the site is in its caller.
    stacks.push({ depth, atEntry: begins && spec.kind === 'uprobe' })
  }
  return stacks
}

function operandsOf(spec: ProbeSpec, arch: Arch, args: string | null): Operand[] {
  if (spec.kind === 'uretprobe') return returnValue(arch)
  return args === null ? functionArguments(arch) : parseOperands(args, arch)
}
