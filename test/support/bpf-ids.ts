/**
 * The BPF programs and maps that this process has made, and which of them the kernel still has: an object lives as long as anything refers to it, also when its maker has closed it.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { buildTarget } from './build.js'
import { Target } from './target.js'
import type { Cleanup } from './temp.js'

const KINDS = { programs: 'prog_id', maps: 'map_id' } as const

/** Programs and maps, as ids or as their number. */
export interface BpfObjects<T> {
  readonly programs: T
  readonly maps: T
}

/** What this process holds open (Documentation/filesystems/proc.rst, fdinfo). */
function held(field: string): number[] {
  const ids: number[] = []
  for (const fd of readdirSync('/proc/self/fdinfo')) {
    let text: string
    try {
      text = readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1')
    } catch {
      // The descriptor with which the folder was read is gone by now.
      continue
    }
    const id = new RegExp(`^${field}:\\s*(\\d+)$`, 'm').exec(text)?.[1]
    if (id !== undefined) ids.push(Number(id))
  }
  return ids
}

/** Remembers what was seen open in this process, and asks the kernel what is left of it. */
export class OwnBpfObjects {
  readonly #ever: BpfObjects<Set<number>> = { programs: new Set(), maps: new Set() }

  private constructor(private readonly lister: Target) {}

  static async start(t: Cleanup): Promise<OwnBpfObjects> {
    return new OwnBpfObjects(await Target.start(t, buildTarget(t, 'bpf-ids')))
  }

  /** Takes note of what is open now. */
  note(): void {
    for (const kind of ['programs', 'maps'] as const) for (const id of held(KINDS[kind])) this.#ever[kind].add(id)
  }

  /** How many were ever seen. */
  get seen(): BpfObjects<number> {
    return { programs: this.#ever.programs.size, maps: this.#ever.maps.size }
  }

  /** How many of those that were ever seen the kernel still has. */
  async alive(): Promise<BpfObjects<number>> {
    return { programs: await this.#alive('programs'), maps: await this.#alive('maps') }
  }

  async #alive(kind: 'programs' | 'maps'): Promise<number> {
    const answer = await this.lister.ask(kind)
    if (answer.includes('error')) throw new Error('the kernel does not list its BPF objects')
    return answer.split(' ').filter((id) => this.#ever[kind].has(Number(id))).length
  }
}
