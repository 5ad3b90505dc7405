/**
 * The BPF programs of one probe, loaded when a way of registering first asks for them.
 *
 * A perf event knows nothing of the site it is for (`PERF_EVENT_IOC_SET_BPF` takes no cookie), so each site has a program with its slot built in. A
 * uprobe_multi link passes a cookie a site, so one program serves them all, and chooses the operands to read by the cookie.
 */
import { type CaptureProgram, compileSteps, readsMemory, splitSteps } from '../capture/compile.js'
import { type CaptureShape, shapeKey } from '../capture/shape.js'
import { stepsInSlices } from '../elf/time-slice.js'
import { UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import { BPF_LICENSE, BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI, loadProgram } from './bpf-objects.js'
import type { Site } from './site.js'

/** A program for a uprobe_multi link, and the sites it serves. */
export interface MultiProgram {
  readonly fd: number
  /** By slot, the index of the shape among those of the program; -1 for a site that it does not serve. */
  readonly shapes: Int32Array
  /** Whether it serves every site. */
  readonly servesAll: boolean
}

/** The different shapes of a probe's sites, and which of them each has. */
interface Kinds {
  readonly shapes: readonly CaptureShape[]
  /** Indexes of `shapes`, by slot. */
  readonly bySlot: Int32Array
}

function kindsOf(sites: readonly Site[]): Kinds {
  const shapes: CaptureShape[] = []
  const bySlot = new Int32Array(sites.length)
  const byKey = new Map<string, number>()
  const byShape = new Map<CaptureShape, number>()
  const find = (shape: CaptureShape): number => {
    const found = byShape.get(shape)
    if (found !== undefined) return found
    // Shapes of several files may be alike without being one.
    const key = shapeKey(shape)
    const kind = byKey.get(key) ?? shapes.push(shape) - 1
    byKey.set(key, kind)
    byShape.set(shape, kind)
    return kind
  }
  // Sites that follow each other are mostly of one kind.
  let before: CaptureShape | undefined
  let kind = 0
  sites.forEach(({ shape, slot }) => {
    if (shape !== before) {
      before = shape
      kind = find(shape)
    }
    bySlot[slot] = kind
  })
  return { shapes, bySlot }
}

/** What all programs of a probe have in common. */
export type ProgramBase = Omit<CaptureProgram, 'attach' | 'slot' | 'shapes' | 'sleepable'>

/** Whether this kernel takes sleepable programs for uprobes that fetch memory (seen on 6.12, refused by 6.1), as far as known: those that make records, and those that add up, which use maps of other kinds. */
const sleepableWorks = { records: true, sums: true }

/** The programs of one probe. `close` when the probe is detached; attached events and links keep theirs alive. */
export class CapturePrograms {
  readonly #perf = new Map<number, Promise<number>>()
  #multi: Promise<MultiProgram[]> | null = null

  constructor(
    private readonly native: Native,
    private readonly base: ProgramBase,
    private readonly sites: readonly Site[],
  ) {}

  /** The program of one site, for a perf event. */
  perf(site: Site): Promise<number> {
    let program = this.#perf.get(site.slot)
    if (program === undefined) {
      program = this.#load('perf', site.slot, [site.shape])
      this.#perf.set(site.slot, program)
    }
    return program
  }

  /** The programs of all sites, for uprobe_multi links: one, unless the operands differ so much that it would grow too large. */
  multi(): Promise<MultiProgram[]> {
    this.#multi ??= this.#loadMulti()
    return this.#multi
  }

  async #loadMulti(): Promise<MultiProgram[]> {
    const kinds = kindsOf(this.sites)
    const programs: MultiProgram[] = []
    let first = 0
    for (const shapes of await stepsInSlices(splitSteps(kinds.shapes, { ...this.base, sleepable: true }))) {
      const servesAll = shapes.length === kinds.shapes.length
      const [from, to] = [first, first + shapes.length]
      first = to
      const served = servesAll ? kinds.bySlot : kinds.bySlot.map((kind) => (kind >= from && kind < to ? kind - from : -1))
      try {
        programs.push({ fd: await this.#load('multi', 0, shapes), shapes: served, servesAll })
      } catch (error) {
        for (const { fd } of programs) this.native.closeFd(fd)
        throw error
      }
    }
    return programs
  }

  /** Loads a program as one that may sleep, where it reads memory and the kernel takes it, so that it also reads what is not paged in. */
  async #load(attach: 'perf' | 'multi', slot: number, shapes: readonly CaptureShape[]): Promise<number> {
    const load = async (sleepable: boolean): Promise<number> =>
      loadProgram(this.native, {
        type: BPF_PROG_TYPE_KPROBE,
        expectedAttachType: attach === 'multi' ? BPF_TRACE_UPROBE_MULTI : 0,
        insns: await stepsInSlices(compileSteps({ ...this.base, attach, slot, shapes, sleepable })),
        license: BPF_LICENSE,
        name: 'uprobe_capture',
        sleepable,
      })
    const kind = this.base.sink ? 'sums' : 'records'
    if (!sleepableWorks[kind] || !readsMemory(this.base, shapes)) return load(false)
    try {
      return await load(true)
    } catch (error) {
      if (!(error instanceof UprobeError) || error.code !== 'ERR_UPROBE_BPF_REJECTED') throw error
      const fd = await load(false)
      // It was the sleeping that the kernel did not like.
      sleepableWorks[kind] = false
      return fd
    }
  }

  /** Closes the fds of all programs that were loaded. Idempotent. */
  async close(): Promise<void> {
    const multi = this.#multi
    const pending = [...this.#perf.values()]
    this.#perf.clear()
    this.#multi = null
    const fds: number[] = []
    for (const result of await Promise.allSettled(pending)) if (result.status === 'fulfilled') fds.push(result.value)
    if (multi !== null) {
      const [result] = await Promise.allSettled([multi])
      if (result.status === 'fulfilled') fds.push(...result.value.map((program) => program.fd))
    }
    for (const fd of fds) this.native.closeFd(fd)
  }
}
