/**
 * What the tests of recovery share: a process, a claim on one of its counters, and leases as dead agents leave them.
 */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { LeaseDirectory } from '../../lib/counter/lease-directory.js'
import { type LeaseClaim, LeaseOwner } from '../../lib/counter/lease-owner.js'
import { type Recovered, type RecoverOptions, recoverOrphans } from '../../lib/counter/recover.js'
import { readSpace } from '../../lib/counter/space.js'
import { childLogger } from '../../lib/log.js'
import { loadNative } from '../../lib/native.js'
import { TargetFile } from '../../lib/target/file.js'
import { TargetProcess } from '../../lib/target/process.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue, writeCounter } from '../support/memory.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { counterAddressIn } from './cells.js'

export const CLAIMED = 0x8000

export interface Scene {
  readonly target: Target
  readonly directory: LeaseDirectory
  /** A claim on the counter. */
  readonly claim: LeaseClaim
  /** Reads the counter, of the process or of one related to it. */
  value(pid?: number): number
  write(value: number, pid?: number): void
  /** Leaves a lease as a dead agent does. */
  orphan(claim: LeaseClaim): void
  recover(options?: RecoverOptions): Promise<Recovered[]>
}

/** Starts a program that has the probe `t:gated`, or another. */
export async function scene(t: TestContext, program = 'usdt', probe = 't:gated'): Promise<Scene> {
  const native = loadNative()
  const target = await Target.start(t, buildTarget(t, program))
  const refCtrOffset = notesOf(target.program, probe)[0]?.refCtrOffset ?? null
  assert.ok(refCtrOffset)
  const directory = LeaseDirectory.open(native, leaseDirectory(), 'create')
  const file = TargetFile.open(native, target.program)
  t.after(() => {
    directory.close()
    file.close()
  })
  const [provider = '', name = ''] = probe.split(':')
  const address = counterAddressIn(target.pid, target.program, refCtrOffset)
  return {
    target,
    directory,
    claim: {
      target: identityOf(target.pid),
      file: { ...file.identity, path: target.program },
      counters: [{ provider, name, refCtrOffset, vaddr: refCtrOffset, address }],
    },
    value: (pid = target.pid) => counterValue(pid, target.program, refCtrOffset),
    write: (value, pid = target.pid) => writeCounter(pid, target.program, refCtrOffset, value),
    orphan: (claim) => {
      const owner = LeaseOwner.create(directory, native)
      owner.write(claim)
      owner.close()
    },
    recover: (options = {}) => recoverOrphans(native, directory, childLogger(false, 'test'), options),
  }
}

/** What a lease says of a process. */
export function identityOf(pid: number): LeaseClaim['target'] {
  const opened = TargetProcess.open(loadNative(), pid)
  try {
    const space = readSpace(opened)
    assert.ok(space)
    return { pid, startTime: opened.startTime, space }
  } finally {
    opened.close()
  }
}

/** What was done, without names and addresses. */
export function outcomes(recovered: readonly Recovered[]): unknown[] {
  return recovered.map(({ outcome, cleared }) => [outcome, cleared.map(({ before, after }) => [before, after])])
}

/** The same claim, on a process that is gone: the parent of all that are there. */
export function onTheirParent({ target, ...rest }: LeaseClaim): LeaseClaim {
  return { ...rest, target: { ...target, pid: GONE, space: { ...target.space, pid: GONE } } }
}

/** Above the largest pid that a test's machine hands out, and below the largest there can be. */
const GONE = 2 ** 22
