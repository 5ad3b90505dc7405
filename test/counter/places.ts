/**
 * What the tests of counters share: the sites of a target as the package sees them, and registrations of another tracer in a target.
 */
import { statSync } from 'node:fs'
import type { FileCounter, SharingSite } from '../../lib/counter/read.js'
import type { FileFacts } from '../../lib/counter/site-facts.js'
import { loadNative } from '../../lib/native.js'
import { readUprobePmu } from '../../lib/register/pmu.js'
import type { Site } from '../../lib/register/site.js'
import { type Mapping, mappingsOf } from '../../lib/target/maps.js'
import { TargetProcess } from '../../lib/target/process.js'
import { fileBytes } from '../support/memory.js'
import type { Note } from '../support/notes.js'
import type { Target } from '../support/target.js'
import type { Cleanup } from '../support/temp.js'

/** Opens a target as the package does. */
export function openProcess(t: Cleanup, target: Target): TargetProcess {
  const opened = TargetProcess.open(loadNative(), target.pid)
  t.after(() => opened.close())
  return opened
}

/** Where a process maps a file. */
export async function mappingsIn(opened: TargetProcess, path: string): Promise<Mapping[]> {
  return mappingsOf(opened.procDirectory, await opened.maps(), factsOf(path, []).identity)
}

/** The notes as sites that share a counter. */
export function counterSites(path: string, notes: readonly Note[]): SharingSite[] {
  return notes.map(({ fileOffset }) => ({ fileOffset, vaddr: fileOffset, original: Buffer.from(fileBytes(path, fileOffset), 'hex') }))
}

class Counters extends Map<bigint, FileCounter> {
  isShared(vaddr: bigint): boolean {
    return (this.get(vaddr)?.sites.length ?? 0) > 1
  }
}

/** What the package would know of the file for these notes; they share their counters with no others. */
export function factsOf(path: string, notes: readonly Note[]): FileFacts {
  const { dev: device, ino: inode } = statSync(path, { bigint: true })
  const counters = new Counters()
  for (const { refCtrOffset, provider, name } of notes) {
    if (refCtrOffset === null) continue
    const sharing = notes.filter((note) => note.refCtrOffset === refCtrOffset)
    counters.set(refCtrOffset, {
      vaddr: refCtrOffset,
      refCtrOffset,
      anonymousStart: null,
      provider,
      name,
      sites: counterSites(path, sharing),
    })
  }
  const originals = new Map(counterSites(path, notes).map(({ fileOffset, original }) => [fileOffset, original]))
  return { identity: { device, inode }, path, originals, counters }
}

/** The notes as sites, in their order. */
export function sitesOf(notes: readonly Note[]): Site[] {
  return notes.map(({ provider, name, args, fileOffset, refCtrOffset }, slot) => ({
    slot,
    probe: `usdt:${provider}:${name}`,
    vaddr: fileOffset,
    fileOffset,
    counterVaddr: refCtrOffset,
    counterOffset: refCtrOffset,
    refCtrOffset,
    args,
    shape: { operands: [], strings: [], stringLimit: 256 },
  }))
}

/** Registers a site of the program, or of a library, in a process, as any tracer may, with its counter or without. The function that is returned takes it back; so does the end of the test. */
export async function register(
  t: Cleanup,
  target: Target,
  note: Note,
  counter: 'with its counter' | 'without a counter',
  path: string = target.program,
): Promise<() => Promise<void>> {
  const native = loadNative()
  let fd: number | null = await native.perfEventOpenUprobe({
    type: readUprobePmu().type,
    path,
    fileOffset: note.fileOffset,
    refCtrOffset: counter === 'with its counter' ? Number(note.refCtrOffset) : 0,
    retprobe: false,
    tid: target.pid,
  })
  const takeBack = async (): Promise<void> => {
    if (fd === null) return
    const open = fd
    fd = null
    await native.closeFds([open])
  }
  t.after(takeBack)
  return takeBack
}
