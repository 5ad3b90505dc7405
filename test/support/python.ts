/**
 * CPython 3.11 as Debian builds it (not a PIE, every USDT probe gated by its semaphore), run from a fresh copy, with a program that fires on command.
 *
 * Commands: `gc N [GENERATION]` collects N times, `audit N` raises N audit events `uprobe.test.0` …; both answer `done N`.
 */

import { Target } from './target.js'
import type { Cleanup } from './temp.js'
import { freshCopy } from './temp.js'

/** Debian's interpreter; another `python3.11` may come first in PATH. */
export const PYTHON = '/usr/bin/python3.11'

const PROGRAM = `
import gc, os, sys
gc.disable()
print("ready", flush=True)
while True:
    words = sys.stdin.readline().split()
    if not words:
        break
    count = int(words[1])
    if words[0] == "gc":
        generation = int(words[2]) if len(words) > 2 else 2
        for i in range(count):
            gc.collect(generation)
    elif words[0] == "audit":
        for i in range(count):
            sys.audit("uprobe.test." + str(i), i)
    print("done", count, flush=True)
os._exit(0)
`

/** Starts the interpreter. `target.program` is the copy that runs. */
export function startPython(t: Cleanup): Promise<Target> {
  // Without site packages and user settings nothing but the program above fires probes.
  return Target.start(t, freshCopy(t, PYTHON), { args: ['-I', '-S', '-c', PROGRAM], env: { PATH: '/usr/bin:/bin' } })
}
