/**
 * All processes that map a file: needed to verify a probe that is meant for every process.
 *
 * It walks /proc once, in slices that leave the event loop free. Processes that come later are armed by the kernel when they map the
 * file (`uprobe_mmap`, kernel/events/uprobes.c) and are not looked at.
 */
import { readdir } from 'node:fs/promises'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { isSystemCallError, UprobeError } from '../errors.js'
import type { Native } from '../native.js'
import { type FileIdentity, mapsFile } from './maps.js'
import { isKernelThread, TargetProcess } from './process.js'

const SLICE_MS = 4
/** How often a process is looked at whose mappings change just then. */
const LOOKS = 3

/**
 * The processes that map `identity` with code, one after another: each is closed when the next one is asked for, so that a file which the whole system maps
 * takes no more descriptors than another. Processes that end while we look are left out.
 * @param signal - ends the walk early.
 */
export async function* processesMapping(native: Native, identity: FileIdentity, signal?: AbortSignal): AsyncGenerator<TargetProcess, void> {
  let sliceStart = performance.now()
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    signal?.throwIfAborted()
    const pid = Number(name)
    // Often most of all.
    if (isKernelThread(pid)) continue
    const target = openOrNull(native, pid)
    if (target === null) continue
    try {
      if (await mapsCode(target, identity)) yield target
    } finally {
      target.close()
    }
    if (performance.now() - sliceStart > SLICE_MS) {
      await nextTurn()
      sliceStart = performance.now()
    }
  }
}

async function mapsCode(target: TargetProcess, identity: FileIdentity): Promise<boolean> {
  try {
    for (let look = 0; look < LOOKS; look++) {
      const code = (await target.maps()).filter((m) => m.executable)
      const maps = mapsFile(target.procDirectory, code, identity)
      if (maps !== null) return maps
    }
    return false
  } catch (error) {
    if (isGone(error)) return false
    throw error
  }
}

function openOrNull(native: Native, pid: number): TargetProcess | null {
  try {
    return TargetProcess.open(native, pid)
  } catch (error) {
    if (isGone(error)) return null
    throw error
  }
}

function isGone(error: unknown): boolean {
  if (error instanceof UprobeError) return error.code === 'ERR_UPROBE_TARGET_GONE' || error.code === 'ERR_UPROBE_TARGET_DENIED'
  return isSystemCallError(error)
}
