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
import { type FileIdentity, mappingsOf } from './maps.js'
import { TargetProcess } from './process.js'

const SLICE_MS = 4

/**
 * The processes that map `identity` with code. The caller closes them. Processes that end while we look are left out.
 * @param signal - ends the walk early.
 */
export async function processesMapping(native: Native, identity: FileIdentity, signal?: AbortSignal): Promise<TargetProcess[]> {
  const found: TargetProcess[] = []
  let sliceStart = performance.now()
  try {
    for (const name of await readdir('/proc')) {
      if (!/^\d+$/.test(name)) continue
      signal?.throwIfAborted()
      const target = openOrNull(native, Number(name))
      if (target === null) continue
      let keep = false
      try {
        const code = (await target.maps()).filter((m) => m.executable)
        keep = mappingsOf(target.procDirectory, code, identity).length > 0
      } catch (error) {
        if (!isGone(error)) throw error
      } finally {
        if (keep) found.push(target)
        else target.close()
      }
      if (performance.now() - sliceStart > SLICE_MS) {
        await nextTurn()
        sliceStart = performance.now()
      }
    }
    return found
  } catch (error) {
    for (const target of found) target.close()
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
