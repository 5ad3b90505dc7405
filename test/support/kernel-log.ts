/**
 * What the kernel has logged since a moment.
 */
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'

/** Marks this moment in the kernel's log; returns a function that gives the lines since then. */
export function kernelLogSince(mark: string): () => string[] {
  const text = `uprobe test: ${mark} (${process.pid}.${performance.now()})`
  // A line that is not ended is not shown before the next one comes.
  writeFileSync('/dev/kmsg', `${text}\n`)
  return () => {
    const log = execFileSync('dmesg', { encoding: 'utf8', maxBuffer: 1 << 28 })
    const at = log.indexOf(text)
    if (at < 0) throw new Error(`the kernel has logged so much that the beginning is lost`)
    return log.slice(at).split('\n').slice(1)
  }
}
