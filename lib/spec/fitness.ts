/**
 * Whether the sites of one file may be registered, asked before anything is.
 *
 * What is the same for all of them, such as where the file is mapped and what is known of the kernel, is looked up once. Nothing here takes a system call a site: code is read by windows of the
 * file, and counters by pages of the process.
 */
import { release } from 'node:os'
import { type CounterView, negativeCounter, readNegative } from '../counter/negative.js'
import { counterPlaces, kernelFindsCounter } from '../counter/places.js'
import { CLAIM, type FileCounter } from '../counter/read.js'
import type { FileFacts } from '../counter/site-facts.js'
import { unclaimable, unreachableByKernel } from '../counter/unreachable.js'
import { isGoBinary } from '../elf/symbols.js'
import type { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { Native } from '../native.js'
import type { AttachSettings } from '../options.js'
import { checkSite, type HazardContext } from '../register/hazards.js'
import type { InstructionSource } from '../register/instruction-start.js'
import { describeSite } from '../register/site.js'
import { codeAddress, type FileIdentity, type Mapping, mappingsOf, takesCounters } from '../target/maps.js'
import { OffsetTable } from '../target/offset-table.js'
import { PagedMemory } from '../target/paged-memory.js'
import type { TargetProcess } from '../target/process.js'
import type { FoundSite } from './find-sites.js'

/** A process, and where it maps the file in question. */
export interface ProcessView extends CounterView {
  /** Where the kernel finds counters. */
  readonly counters: OffsetTable
  /** All mappings, those that are no file's included. */
  readonly all: readonly Mapping[]
}

/** What the checks depend on. */
export interface FitnessRequest {
  readonly native: Native
  readonly settings: Pick<AttachSettings, 'counter' | 'unsafe'>
  readonly retprobe: boolean
  readonly source: InstructionSource
  readonly elf: Parameters<typeof isGoBinary>[0]
  readonly facts: FileFacts
  /** Of the processes that were named. */
  readonly views: readonly ProcessView[]
}

/** Looks where processes map a file. Throws `ERR_UPROBE_TARGET_DENIED`. */
export async function viewsOf(identity: FileIdentity, processes: readonly TargetProcess[] | null): Promise<ProcessView[]> {
  const views: ProcessView[] = []
  for (const target of processes ?? []) {
    const all = await target.maps(true)
    const mappings = mappingsOf(target.procDirectory, all, identity)
    const counters = new OffsetTable(mappings.filter(takesCounters))
    views.push({ target, memory: new PagedMemory(target), all, mappings, counters })
  }
  return views
}

/** Checks the sites of one file. */
export class SiteFitness {
  readonly #path: string

  private constructor(
    private readonly counterMode: AttachSettings['counter'],
    private readonly facts: FileFacts,
    private readonly views: readonly ProcessView[],
    private readonly hazards: HazardContext,
  ) {
    this.#path = escapeForDisplay(facts.path)
  }

  /** Looks up what is the same for all sites. */
  static of({ native, settings, retprobe, source, elf, facts, views }: FitnessRequest): SiteFitness {
    return new SiteFitness(settings.counter, facts, views, {
      source,
      goBinary: isGoBinary(elf),
      retprobe,
      unsafe: settings.unsafe,
      kernelRelease: release(),
      uprobeSyscallErrno: native.uprobeSyscallErrno(),
      // Without named processes the probe is for every process that maps the file.
      targets: views.length === 0 ? null : views.map(({ target }) => ({ pid: target.pid, seccompMode: target.seccompMode() })),
    })
  }

  /** Why a site must not be registered; `null` if it may be. A promise where that has to be waited for. */
  check(site: FoundSite): UprobeError | null | Promise<UprobeError | null> {
    return this.#checkCounter(site) ?? checkSite(site, this.hazards)
  }

  /** Whether the counter can be held as it is wanted, in every process that maps the code. */
  #checkCounter(site: FoundSite): UprobeError | null {
    if (site.counterVaddr === null || this.#isPlain(site)) return null
    const counter = this.facts.counters.get(site.counterVaddr)
    if (counter === undefined) return null
    if (this.counterMode === 'kernel' && counter.refCtrOffset === null && this.views.length === 0) {
      return unreachableByKernel(this.#where(site), null, true)
    }
    for (const view of this.views) {
      const error = this.#checkCounterIn(view, site, counter)
      if (error !== null) return error
    }
    return null
  }

  /** Whether the kernel finds the counter and takes it for no negative one, in every process, and that is seen at once: so it is with nearly all of the thousands that a library may have. */
  #isPlain({ refCtrOffset }: FoundSite): boolean {
    if (this.counterMode !== 'kernel' || refCtrOffset === null) return false
    // An iterator would be an object a site, as long as V8 has not compiled this.
    for (let index = 0; index < this.views.length; index++) {
      const { memory, counters } = this.views[index] as ProcessView
      const address = counters.addressOf(refCtrOffset)
      const value = address === null ? null : memory.u16(address)
      if (value === null || value > CLAIM) return false
    }
    return true
  }

  #checkCounterIn(view: ProcessView, site: FoundSite, counter: FileCounter): UprobeError | null {
    const { target, mappings, all } = view
    if (codeAddress(mappings, site.fileOffset) === null) return null
    if (this.counterMode === 'msb') {
      const { problem } = counterPlaces(all, mappings, counter)
      return problem === null ? null : unclaimable(this.#where(site), target.pid, problem)
    }
    if (!kernelFindsCounter(mappings, counter)) {
      return unreachableByKernel(this.#where(site), target.pid, counterPlaces(all, mappings, counter).problem === null)
    }
    const value = counter.refCtrOffset === null ? null : readNegative(view, counter.refCtrOffset)
    return value === null || value === CLAIM ? null : negativeCounter(this.#where(site), target.pid, value)
  }

  #where(site: FoundSite): string {
    return describeSite(site, this.#path)
  }
}
