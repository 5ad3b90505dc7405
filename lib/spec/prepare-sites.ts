/**
 * From resolved files to numbered sites that are fit to be registered.
 *
 * Every file is searched; what is found is checked for hazards and for a counter that the kernel can reach, its operands are bound to the file's symbols, and it gets its slot.
 * When no path was named, a file of the process that is broken or for another machine is passed over: it is not what was asked about.
 */
import { release } from 'node:os'
import type { Arch } from '../capture/operands.js'
import { bindOperands, functionArguments, type Operand, parseOperands, returnValue, symbolsOf } from '../capture/operands.js'
import type { CaptureShape, StackShape } from '../capture/shape.js'
import { counterPlaces, kernelFindsCounter } from '../counter/places.js'
import { BREAKPOINT_BYTES, CLAIM, type FileCounter, readCounterOf, type SharingSite } from '../counter/read.js'
import { negativeCounter, unclaimable, unreachableByKernel } from '../counter/unreachable.js'
import type { FileFacts } from '../counter/verify.js'
import type { ElfFile } from '../elf/elf-file.js'
import { readUsdtNotes } from '../elf/stapsdt.js'
import { findSymbolAddresses, functionContaining, isGoBinary } from '../elf/symbols.js'
import { UprobeError } from '../errors.js'
import { escapeForDisplay, type Logger } from '../log.js'
import type { Native } from '../native.js'
import type { AttachSettings } from '../options.js'
import type { ProbeSite } from '../probe-types.js'
import { elfInstructions } from '../register/elf-instructions.js'
import { checkSite } from '../register/hazards.js'
import { describeSite, type Site } from '../register/site.js'
import type { TargetFile } from '../target/file.js'
import { codeAddress, type Mapping, mappingsOf } from '../target/maps.js'
import type { TargetProcess } from '../target/process.js'
import type { ResolvedFile } from '../target/resolve.js'
import { type FoundSite, findSites } from './find-sites.js'
import type { ProbeSpec } from './spec.js'

/** The sites of one file. */
export interface FileSites {
  readonly file: TargetFile
  readonly facts: FileFacts
  /** `null` for every process that maps the file. */
  readonly processes: readonly TargetProcess[] | null
  readonly sites: readonly Site[]
}

/** All sites of a specification. */
export interface PreparedSites {
  readonly arch: Arch
  readonly files: readonly FileSites[]
  /** All of them, by slot. */
  readonly sites: readonly Site[]
  /** What the user sees of them, by slot. */
  readonly publicSites: readonly ProbeSite[]
  readonly warnings: readonly string[]
}

/** What is to be prepared. */
export interface PrepareRequest {
  readonly native: Native
  readonly spec: ProbeSpec
  readonly files: readonly ResolvedFile[]
  readonly settings: AttachSettings
  readonly log: Logger
  readonly signal: AbortSignal
}

/** e_machine of the files that this machine can run in its own mode. */
const MACHINES: Record<Arch, { machine: number; name: string }> = {
  x64: { machine: 62, name: 'x86-64' },
  arm64: { machine: 183, name: 'AArch64' },
}

/** A process, and where it maps the file in question. */
interface ProcessView {
  readonly target: TargetProcess
  readonly mappings: readonly Mapping[]
  /** All mappings, those that are no file's included. */
  readonly all: readonly Mapping[]
}

interface FoundInFile extends ResolvedFile {
  readonly elf: ElfFile
  readonly found: readonly FoundSite[]
}

/** Finds, checks and numbers the sites. */
export async function prepareSites(request: PrepareRequest): Promise<PreparedSites> {
  const { spec, settings, signal } = request
  const arch: Arch = process.arch === 'arm64' ? 'arm64' : 'x64'
  const warnings: string[] = []
  const found = await findInFiles(request, arch, warnings)
  const total = found.reduce((sum, file) => sum + file.found.length, 0)
  if (total === 0) throw notFound(spec, request.files, warnings)
  if (total > settings.maxSites) {
    throw new UprobeError(
      'ERR_UPROBE_TOO_MANY_SITES',
      `${escapeForDisplay(spec.text)} stands for ${total} sites, and maxSites is ${settings.maxSites}. Narrow the pattern, or raise maxSites.`,
    )
  }
  const files: FileSites[] = []
  const sites: Site[] = []
  const publicSites: ProbeSite[] = []
  let refusal: UprobeError | null = null
  for (const { file, elf, processes, found: candidates } of found) {
    const facts = await readFacts(file, elf, candidates)
    const views: ProcessView[] = []
    for (const target of processes ?? []) {
      const all = await target.maps(true)
      views.push({ target, all, mappings: mappingsOf(target.procDirectory, all, file.identity) })
    }
    const fit: FoundSite[] = []
    for (const candidate of candidates) {
      signal.throwIfAborted()
      const error = await checkFitness(request, elf, facts, views, candidate)
      if (error === null) {
        fit.push(candidate)
      } else {
        refusal ??= error
        if (!spec.wildcard) throw error
        warnings.push(`left out: ${error.message}`)
      }
    }
    const numbered = await bindSites(spec, settings, arch, elf, fit, sites.length)
    sites.push(...numbered)
    publicSites.push(
      ...fit.map(({ probe, fileOffset, refCtrOffset, args }) => ({ probe, fileOffset, refCtrOffset, args, path: file.path, targets: [] })),
    )
    if (numbered.length > 0) files.push({ file, facts, processes, sites: numbered })
  }
  if (sites.length === 0 && refusal !== null) throw refusal
  checkStrings(settings, sites)
  return { arch, files, sites, publicSites, warnings }
}

async function findInFiles({ spec, files, signal, log }: PrepareRequest, arch: Arch, warnings: string[]): Promise<FoundInFile[]> {
  const result: FoundInFile[] = []
  for (const resolved of files) {
    signal.throwIfAborted()
    try {
      const elf = await resolved.file.elf()
      checkMachine(elf, arch)
      const { sites, skipped } = await findSites(spec, elf)
      warnings.push(...skipped)
      if (sites.length > 0) result.push({ ...resolved, elf, found: sites })
    } catch (error) {
      const passable = error instanceof UprobeError && (error.code === 'ERR_UPROBE_BAD_ELF' || error.code === 'ERR_UPROBE_ARCH')
      if (spec.path !== null || !passable) throw error
      log.debug({ err: error }, 'a file of the process was passed over')
    }
  }
  return result
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

function notFound(spec: ProbeSpec, files: readonly ResolvedFile[], skipped: readonly string[]): UprobeError {
  const where = spec.path === null ? `in the ${files.length} files that the process maps` : `in ${escapeForDisplay(spec.path)}`
  const help =
    spec.kind === 'usdt'
      ? '`uprobe list` shows which USDT probes there are.'
      : 'Check the name with `nm -D`; a stripped file has only its dynamic symbols.'
  const why = skipped.length === 0 ? '' : ` (${skipped.slice(0, 3).join('; ')})`
  return new UprobeError('ERR_UPROBE_NOT_FOUND', `${escapeForDisplay(spec.text)}: nothing matches ${where}${why}. ${help}`)
}

/** Original bytes at the sites, and which sites of the file share a counter with them. */
async function readFacts(file: TargetFile, elf: ElfFile, found: readonly FoundSite[]): Promise<FileFacts> {
  const originals = new Map<bigint, Uint8Array>()
  for (const { fileOffset } of found) originals.set(fileOffset, await elf.read(fileOffset, BREAKPOINT_BYTES))
  return { identity: file.identity, path: file.path, originals, counters: await readCounters(elf, found, originals) }
}

/** The counters of the sites, with every site of the file that shares them. */
async function readCounters(
  elf: ElfFile,
  found: readonly FoundSite[],
  originals: ReadonlyMap<bigint, Uint8Array>,
): Promise<Map<bigint, FileCounter>> {
  const wanted = new Set(found.map(({ counterVaddr }) => counterVaddr))
  const counters = new Map<bigint, FileCounter & { sites: SharingSite[] }>()
  wanted.delete(null)
  if (wanted.size === 0) return counters
  for (const { semaphoreVaddr, refCtrOffset, provider, name, vaddr, fileOffset } of await readUsdtNotes(elf)) {
    if (semaphoreVaddr === null || fileOffset === null || !wanted.has(semaphoreVaddr)) continue
    const counter = counters.get(semaphoreVaddr) ?? {
      vaddr: semaphoreVaddr,
      refCtrOffset,
      anonymousStart: refCtrOffset === null ? elf.anonymousStart(semaphoreVaddr) : null,
      provider,
      name,
      sites: [],
    }
    counters.set(semaphoreVaddr, counter)
    // Two notes of one address are one uprobe, which counts once.
    if (counter.sites.some((site) => site.fileOffset === fileOffset)) continue
    counter.sites.push({ vaddr, fileOffset, original: originals.get(fileOffset) ?? (await elf.read(fileOffset, BREAKPOINT_BYTES)) })
  }
  return counters
}

/** Whether a site may be registered at all; the error says why not. */
async function checkFitness(
  request: PrepareRequest,
  elf: ElfFile,
  facts: FileFacts,
  views: readonly ProcessView[],
  site: FoundSite,
): Promise<UprobeError | null> {
  return checkCounter(request, facts, views, site) ?? (await checkHazards(request, elf, views, site))
}

/** Whether the counter can be held as it is wanted, in every process that maps the code; asked before anything is registered. */
function checkCounter({ settings }: PrepareRequest, facts: FileFacts, views: readonly ProcessView[], site: FoundSite): UprobeError | null {
  const counter = site.counterVaddr === null ? undefined : facts.counters.get(site.counterVaddr)
  if (counter === undefined) return null
  const where = describeSite(site, escapeForDisplay(facts.path))
  if (settings.counter === 'kernel' && counter.refCtrOffset === null && views.length === 0) return unreachableByKernel(where, null, true)
  for (const { target, mappings, all } of views) {
    if (codeAddress(mappings, site.fileOffset) === null) continue
    const { problem } = counterPlaces(all, mappings, counter)
    if (settings.counter === 'msb') {
      if (problem !== null) return unclaimable(where, target.pid, problem)
    } else if (!kernelFindsCounter(mappings, counter)) {
      return unreachableByKernel(where, target.pid, problem === null)
    } else {
      const value = readNegative(target, mappings, counter)
      if (value !== null) return negativeCounter(where, target.pid, value)
    }
  }
  return null
}

/**
 * The counter, if the kernel takes it for negative and it is no claim. Where a breakpoint was left in, the kernel accepts a registration all the same, and leaks a uprobe when that goes, since it cannot count
 * down (`update_ref_ctr` and `uprobe_write_opcode`, kernel/events/uprobes.c). Claims are guarded: the kernel refuses before it looks.
 */
function readNegative(target: TargetProcess, mappings: readonly Mapping[], { refCtrOffset }: FileCounter): number | null {
  const value = refCtrOffset === null ? null : readCounterOf(target, mappings, refCtrOffset)
  return value !== null && value > CLAIM ? value : null
}

/** Whether the kernel would accept the site and harm the target by it. */
function checkHazards(
  { native, spec, settings }: PrepareRequest,
  elf: ElfFile,
  views: readonly ProcessView[],
  site: FoundSite,
): Promise<UprobeError | null> {
  return checkSite(site, {
    source: elfInstructions(elf, elf.machine === MACHINES.arm64.machine ? 'arm64' : 'x64'),
    goBinary: isGoBinary(elf),
    retprobe: spec.kind === 'uretprobe',
    unsafe: settings.unsafe,
    kernelRelease: release(),
    uprobeSyscallErrno: native.uprobeSyscallErrno(),
    // Without named processes the probe is for every process that maps the file.
    targets: views.length === 0 ? null : views.map(({ target }) => ({ pid: target.pid, seccompMode: target.seccompMode() })),
  })
}

/** Gives the sites of one file their slots, and binds their operands to the file's symbols. */
async function bindSites(
  spec: ProbeSpec,
  settings: AttachSettings,
  arch: Arch,
  elf: ElfFile,
  found: readonly FoundSite[],
  firstSlot: number,
): Promise<Site[]> {
  const operands = found.map(({ args }) => operandsOf(spec, arch, args))
  const names = new Set(operands.flatMap((list) => [...symbolsOf(list)]))
  const symbols = names.size === 0 ? new Map<string, bigint>() : await findSymbolAddresses(elf, names)
  const stacks = settings.stack ? await stacksOf(spec, settings.stackDepth, elf, found) : []
  return found.map((site, index) => {
    const bound = bindOperands(operands[index] ?? [], site.vaddr, symbols)
    const strings = settings.strings.filter((argument) => argument < bound.length)
    const shape: CaptureShape = { operands: bound, strings, stringLimit: settings.stringLimit, stack: stacks[index] ?? null }
    const { probe, vaddr, fileOffset, counterVaddr, args } = site
    const refCtrOffset = settings.counter === 'kernel' ? site.refCtrOffset : null
    return { slot: firstSlot + index, probe, vaddr, fileOffset, counterVaddr, refCtrOffset, args, shape }
  })
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

/** An index in `strings` that no site has is a mistake; one that only some sites of a pattern have is not. */
function checkStrings(settings: AttachSettings, sites: readonly Site[]): void {
  const most = Math.max(...sites.map((site) => site.shape.operands.length))
  const beyond = settings.strings.find((argument) => argument >= most)
  if (beyond === undefined) return
  throw new UprobeError('ERR_UPROBE_BAD_OPTION', `Option strings names argument ${beyond}, and the probe has ${most}, counted from 0.`)
}
