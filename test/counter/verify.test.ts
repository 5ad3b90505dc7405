/**
 * What is said of each site after a registration, in a process that really has it, or has not.
 */
import assert from 'node:assert/strict'
import { describe, it, type TestContext } from 'node:test'
import type { SiteTarget } from '../../lib/counter/site-facts.js'
import { type Verification, verifySites } from '../../lib/counter/verify.js'
import { SiteWork } from '../../lib/progress.js'
import { buildTarget } from '../support/build.js'
import { writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { type Note, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { factsOf, openProcess, register, sitesOf } from './places.js'

const GCC = needs({ programs: ['gcc'] })

interface Scene {
  readonly target: Target
  readonly notes: readonly Note[]
  verify(): Promise<Verification>
}

async function scene(t: TestContext, probe: string, source = 'usdt'): Promise<Scene> {
  const target = await Target.start(t, buildTarget(t, source))
  const opened = openProcess(t, target)
  const notes = notesOf(target.program, probe)
  assert.ok(notes.length > 0)
  return { target, notes, verify: () => verifySites(opened, factsOf(target.program, notes), sitesOf(notes), unwatched()) }
}

function unwatched(): SiteWork {
  return SiteWork.quietly(new AbortController().signal)
}

/** More than any of the targets has. */
const SLOTS = 64

/** What was found, by slot. */
function found({ sites }: Verification): SiteTarget[] {
  return Array.from({ length: SLOTS }, (_, slot) => sites.get(slot) ?? []).flat()
}

/** State and counter by slot, then codes of failures, then the number of warnings. */
function summary(verified: Verification): unknown[] {
  const { failures, warnings } = verified
  return [found(verified).map(({ state, counter }) => [state, counter]), failures.map(({ error }) => error.code), warnings.length]
}

describe('sites with a counter', () => {
  it('are armed when breakpoint and count are in', GCC, async (t) => {
    const { target, notes, verify } = await scene(t, 't:shared')
    for (const note of notes) await register(t, target, note, 'with its counter')
    const verified = await verify()
    const armed = ['armed', 3]
    assert.deepEqual(summary(verified), [[armed, armed, armed], [], 0])
    for (const { pid, address } of found(verified)) assert.ok(pid === target.pid && address !== null)
  })

  it('are not armed, each with an error, when nothing is in', GCC, async (t) => {
    const { verify } = await scene(t, 't:shared')
    const state = ['not-armed', null]
    const code = 'ERR_UPROBE_NOT_ARMED'
    assert.deepEqual(summary(await verify()), [[state, state, state], [code, code, code], 0])
  })

  it('are told apart', GCC, async (t) => {
    const { target, notes, verify } = await scene(t, 't:shared')
    const [, second] = notes
    assert.ok(second)
    await register(t, target, second, 'with its counter')
    const verified = await verify()
    assert.deepEqual(summary(verified)[0], [
      ['not-armed', null],
      ['armed', 1],
      ['not-armed', null],
    ])
    assert.deepEqual(
      verified.failures.map(({ site }) => site.slot),
      [0, 2],
    )
  })

  it('are not armed when the count is missing, which the error says with both numbers', GCC, async (t) => {
    const { target, notes, verify } = await scene(t, 't:gated')
    const [note] = notes
    assert.ok(note)
    await register(t, target, note, 'without a counter')
    const verified = await verify()
    assert.deepEqual(summary(verified), [[['not-armed', 0]], ['ERR_UPROBE_COUNTER_NOT_RAISED'], 0])
    const error = verified.failures[0]?.error
    assert.match(error?.message ?? '', /its counter reads 0, and 1 of its sites are armed/)
    assert.equal(error?.pid, target.pid)
    assert.equal(error?.path, target.program)
  })

  it('are armed with one warning for the counter when it reads more than is armed', GCC, async (t) => {
    const { target, notes, verify } = await scene(t, 't:shared')
    const [note] = notes
    assert.ok(note?.refCtrOffset != null)
    // Raised by hand before the kernel counts, and left alone after: the kernel takes back what is its own.
    writeCounter(target.pid, target.program, note.refCtrOffset, 2)
    for (const each of notes) await register(t, target, each, 'with its counter')
    const verified = await verify()
    const armed = ['armed', 5]
    assert.deepEqual(summary(verified), [[armed, armed, armed], [], 1])
    assert.match(verified.warnings[0] ?? '', /the counter reads 5 and 3 of its sites are armed/)
  })

  it('are useless where the kernel does not find the counter', GCC, async (t) => {
    const { target, notes, verify } = await scene(t, 't:readonly', 'bad-counter')
    const [note] = notes
    assert.ok(note)
    await register(t, target, note, 'with its counter')
    assert.deepEqual(summary(await verify()), [[['not-armed', null]], ['ERR_UPROBE_COUNTER_UNREACHABLE'], 0])
  })
})

describe('sites without a counter', () => {
  it('are armed when the breakpoint is in', GCC, async (t) => {
    const { target, notes, verify } = await scene(t, 't:plain')
    const [note] = notes
    assert.ok(note)
    assert.deepEqual(summary(await verify()), [[['not-armed', null]], ['ERR_UPROBE_NOT_ARMED'], 0])
    await register(t, target, note, 'without a counter')
    assert.deepEqual(summary(await verify()), [[['armed', null]], [], 0])
  })
})

describe('a process that tells nothing', () => {
  it('has sites that are not mapped when it does not map the file', GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const library = buildTarget(t, 'lib', 'shared')
    const notes = notesOf(library)
    const opened = openProcess(t, target)
    const verify = (): Promise<Verification> => verifySites(opened, factsOf(library, notes), sitesOf(notes), unwatched())
    const verified = await verify()
    assert.deepEqual(summary(verified), [notes.map(() => ['not-mapped', null]), [], 0])
    for (const { address } of found(verified)) assert.equal(address, null)
    await target.ask(`dlopen ${library}`)
    assert.deepEqual(
      summary(await verify())[0],
      notes.map(() => ['not-armed', null]),
    )
  })

  it('has unverified sites when its memory may not be read', GCC, async (t) => {
    const { target, notes } = await scene(t, 't:gated')
    const opened = openProcess(t, target)
    const { pid, procDirectory } = opened
    const closed = { pid, procDirectory, maps: () => opened.maps(), readMemory: () => null }
    assert.deepEqual(summary(await verifySites(closed, factsOf(target.program, notes), sitesOf(notes), unwatched())), [
      [['unverified', null]],
      [],
      0,
    ])
  })
})
