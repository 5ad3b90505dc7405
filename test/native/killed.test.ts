/**
 * Agents that are killed at any moment of opening and closing probes leave nothing in their targets.
 *
 * Where this fails, uprobes have leaked, and stay until the kernel is booted anew: it runs in guests only (`npm run test:guest -- --tests=killed`). With the probes
 * opened and closed by the agent itself, every second or third kill leaves breakpoints and counts.
 *
 * In guests on 5.10 and newest only: its many agents take long, and the others have the same ways to register.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { buildTarget } from '../support/build.js'
import { REGISTRATIONS } from '../support/features.js'
import { counterValue, fileBytes, instructionBytes } from '../support/memory.js'
import { gatedNote } from '../support/notes.js'
import { startRestless } from '../support/restless.js'
import { Target } from '../support/target.js'
import type { Cleanup } from '../support/temp.js'
import { waitFor } from '../support/wait.js'

const skip =
  process.env.UPROBE_TEST_GUEST === '1'
    ? false
    : 'leaks uprobes if it fails, so it runs in a virtual machine: npm run test:guest -- --tests=killed'

/** Agents that work at a time. They wait for each other in the kernel, which makes a moment long. */
const AGENTS = 3
/** How often each is killed. */
const KILLS = Number(process.env.UPROBE_TEST_KILLS ?? '6')
/** An agent is killed at a random moment of its first so many milliseconds of work, which is several rounds of it. */
const LONGEST_LIFE_MS = 400
/** As many as a program has at most, for links; events are opened and closed one by one, which takes long. */
const SITES = { perf: 8, multi: 2048 }
const INSTRUCTION_BYTES = process.arch === 'arm64' ? 4 : 1

/** What the kernel has logged of leaks since `mark` was written to its log. (6.1 leaks without a word.) */
function leaksLoggedSince(mark: string): string[] {
  const log = execFileSync('dmesg', { encoding: 'utf8', maxBuffer: 1 << 26 })
  return log
    .slice(log.indexOf(mark) + 1)
    .split('\n')
    .filter((line) => line.includes('leaking uprobe'))
}

async function killAgents(t: Cleanup, registration: 'perf' | 'multi'): Promise<void> {
  const sites = SITES[registration]
  const path = buildTarget(t, 'many')
  const { fileOffset: firstOffset, refCtrOffset } = gatedNote(path, 't:many')
  const target = await Target.start(t, path)
  const code = fileBytes(path, firstOffset, sites * INSTRUCTION_BYTES)
  const armed = () => instructionBytes(target.pid, path, firstOffset, sites * INSTRUCTION_BYTES) !== code
  const plan = { path, pid: target.pid, registration, firstOffset, instructionBytes: INSTRUCTION_BYTES, sites, refCtrOffset }
  for (let kill = 0; kill < KILLS; kill++) {
    const agent = await startRestless(t, plan)
    await waitFor('a probe in the target', armed)
    await delay(Math.random() * LONGEST_LIFE_MS)
    agent.kill('SIGKILL')
    assert.deepEqual(await agent.exited, { code: null, signal: 'SIGKILL' }, agent.errorOutput)
    await waitFor('the breakpoints to go', () => !armed())
    await waitFor('the counter to go down', () => counterValue(target.pid, path, refCtrOffset) === 0)
  }
  assert.equal(await target.askNumber('counter'), 0)
}

for (const registration of REGISTRATIONS) {
  test(`agents that are killed while they open and close leave no breakpoint and no count (${registration})`, { skip }, async (t) => {
    const mark = `killing agents (${registration})`
    writeFileSync('/dev/kmsg', mark)
    await Promise.all(Array.from({ length: AGENTS }, () => killAgents(t, registration)))
    assert.deepEqual(leaksLoggedSince(mark), [])
  })
}
