/**
 * Another tracer's registration, made with plain calls: what a tool does that is not this package.
 */
import { closeSync, readFileSync } from 'node:fs'
import { loadNative } from '../../lib/native.js'

/**
 * Registers a site for the own process, which does not map the file: nothing is written anywhere, but the kernel now knows the site with this counter offset
 * and no other (`alloc_uprobe`, kernel/events/uprobes.c).
 */
export async function registerForOwnProcess(path: string, fileOffset: bigint, refCtrOffset: number): Promise<{ close(): void }> {
  const fd = await loadNative().perfEventOpenUprobe({
    type: Number(readFileSync('/sys/bus/event_source/devices/uprobe/type', 'utf8')),
    path,
    fileOffset,
    refCtrOffset,
    retprobe: false,
    tid: process.pid,
  })
  return { close: () => closeSync(fd) }
}
