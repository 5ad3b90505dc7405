/**
 * Reading sites and counters of a process, while tracers of all kinds come and go.
 */
import assert from 'node:assert/strict'
import { describe, it, type TestContext } from 'node:test'
import { type CounterReading, type CounterSite, inspectCounter, isArmed, readCounter } from '../../lib/counter/read.js'
import { counterAddress, type Mapping } from '../../lib/target/maps.js'
import { buildTarget } from '../support/build.js'
import { counterValue, writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, type Note, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { counterSites, mappingsIn, openProcess, register } from './places.js'

const GCC = needs({ programs: ['gcc'] })

/** A target, and how the package reads one of its counters. */
async function counterOf(t: TestContext, probe: string) {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const opened = openProcess(t, target)
  const mappings = await mappingsIn(opened, target.program)
  const notes = notesOf(target.program, probe)
  const refCtrOffset = notes[0]?.refCtrOffset
  assert.ok(refCtrOffset != null)
  const sites = counterSites(target.program, notes)
  const inspect = (): CounterReading => inspectCounter(opened, mappings, refCtrOffset, sites)
  return { target, opened, mappings, notes, refCtrOffset, sites, inspect }
}

function first(notes: readonly Note[]): Note {
  const [note] = notes
  assert.ok(note)
  return note
}

describe('a site', () => {
  it('is armed exactly while somebody has registered it', GCC, async (t) => {
    const { target, opened, mappings, notes, sites } = await counterOf(t, 't:gated')
    const armed = (): Array<boolean | null> => sites.map(({ fileOffset, original }) => isArmed(opened, mappings, fileOffset, original))
    assert.deepEqual(armed(), [false])
    const takeBack = await register(t, target, first(notes), 'without a counter')
    assert.deepEqual(armed(), [true])
    await takeBack()
    assert.deepEqual(armed(), [false])
  })

  it('that is not mapped, or whose process is gone, is neither armed nor not', GCC, async (t) => {
    const { target, opened, mappings, sites } = await counterOf(t, 't:gated')
    const [site] = sites
    assert.ok(site)
    assert.equal(isArmed(opened, [], site.fileOffset, site.original), null)
    await target.end()
    assert.equal(isArmed(opened, mappings, site.fileOffset, site.original), null)
  })
})

describe('a counter', () => {
  it('is read as 16 unsigned bits, and not at all where nothing is mapped or the process is gone', GCC, async (t) => {
    const { target, opened, mappings, refCtrOffset } = await counterOf(t, 't:gated')
    const address = counterAddress(mappings, refCtrOffset)
    assert.ok(address !== null)
    for (const value of [0, 1, 0x7fff, 0x8000, 0xffff]) {
      writeCounter(target.pid, target.program, refCtrOffset, value)
      assert.equal(readCounter(opened, address), value)
    }
    assert.equal(readCounter(opened, 8n), null)
    await target.end()
    assert.equal(readCounter(opened, address), null)
  })

  it('of three sites counts those that are registered with it, once each, whoever did it', GCC, async (t) => {
    const { target, notes, sites, refCtrOffset, inspect } = await counterOf(t, 't:shared')
    const [one, two, three] = notes
    assert.ok(one && two && three)
    assert.equal(sites.length, 3)
    const seen = (): Array<number | null> => {
      const { value, armedSites } = inspect()
      assert.equal(value, counterValue(target.pid, target.program, refCtrOffset))
      return [value, armedSites]
    }
    assert.deepEqual(seen(), [0, 0])
    const takeOne = await register(t, target, one, 'with its counter')
    const takeOneAgain = await register(t, target, one, 'with its counter')
    assert.deepEqual(seen(), [1, 1])
    await register(t, target, two, 'with its counter')
    assert.deepEqual(seen(), [2, 2])
    await takeOne()
    assert.deepEqual(seen(), [2, 2])
    await register(t, target, three, 'with its counter')
    assert.deepEqual(seen(), [3, 3])
    await takeOneAgain()
    assert.deepEqual(seen(), [2, 2])
  })

  it('is not raised by a registration without it', GCC, async (t) => {
    const { target, notes, inspect } = await counterOf(t, 't:gated')
    await register(t, target, first(notes), 'without a counter')
    const { value, armedSites } = inspect()
    assert.deepEqual([value, armedSites], [0, 1])
  })

  it('that the kernel cannot find has no address and no value, though its site is armed', GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'bad-counter'))
    const opened = openProcess(t, target)
    const [note] = notesOf(target.program, 't:readonly')
    assert.ok(note?.refCtrOffset != null)
    await register(t, target, note, 'with its counter')
    const mappings = await mappingsIn(opened, target.program)
    const sites = counterSites(target.program, [note])
    assert.deepEqual(inspectCounter(opened, mappings, note.refCtrOffset, sites), {
      address: null,
      value: null,
      armedSites: 1,
      steady: true,
    })
  })

  it('of a program that is not position-independent is found at its own address', GCC, async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt', 'no-pie'))
    const opened = openProcess(t, target)
    const { refCtrOffset } = gatedNote(target.program, 't:gated')
    const mappings = await mappingsIn(opened, target.program)
    writeCounter(target.pid, target.program, refCtrOffset, 7)
    assert.equal(inspectCounter(opened, mappings, refCtrOffset, []).value, 7)
  })
})

describe('a reading while tracers come and go', () => {
  const SITE: CounterSite = { fileOffset: 0x1000n, original: Buffer.of(0x90, 0x90, 0x90, 0x90) }
  const COUNTER = 0x2000n
  const MAPPINGS = [
    { start: 0x10_1000n, fileOffset: 0x1000n, executable: true, writable: false },
    { start: 0x10_2000n, fileOffset: 0x2000n, executable: false, writable: true },
  ].map(
    (differences): Mapping => ({
      end: differences.start + 0x1000n,
      readable: true,
      shared: false,
      fileKey: 'fd:00 1',
      path: '/program',
      deleted: false,
      ...differences,
    }),
  )

  /** A process in which a breakpoint and its counter go through these states, one at each look at the counter; the last one stays. */
  function changing(states: ReadonlyArray<readonly [value: number, armed: boolean]>) {
    let look = -1
    const state = (): readonly [number, boolean] => states[Math.min(Math.max(look, 0), states.length - 1)] ?? [0, false]
    return {
      looks: () => look + 1,
      readMemory: (address: bigint, bytes: number): Buffer => {
        const memory = Buffer.alloc(bytes, 0x90)
        if (address === 0x10_2000n) {
          look++
          memory.writeUInt16LE(state()[0])
        } else if (state()[1]) {
          memory.fill(0xcc)
        }
        return memory
      },
    }
  }

  const inspect = (memory: ReturnType<typeof changing>): readonly [number | null, number] => {
    const { value, armedSites } = inspectCounter(memory, MAPPINGS, COUNTER, [SITE])
    return [value, armedSites]
  }

  it('is taken twice when nothing changes', () => {
    const memory = changing([[1, true]])
    assert.deepEqual(inspect(memory), [1, 1])
    assert.equal(memory.looks(), 4)
  })

  it('is repeated until value and sites stand still', () => {
    // Another tool takes its count back after our first reading.
    const memory = changing([
      [2, true],
      [2, true],
      [1, true],
    ])
    assert.deepEqual(inspect(memory), [1, 1])
    assert.equal(memory.looks(), 6)
  })

  it('is repeated when the value changes while the sites are looked at', () => {
    const memory = changing([
      [2, true],
      [2, true],
      [1, true],
      [2, true],
    ])
    assert.deepEqual(inspect(memory), [2, 1])
    assert.equal(memory.looks(), 6)
  })

  it('ends when they never do', () => {
    const memory = changing(Array.from({ length: 1000 }, (_, look) => [look % 2, true] as const))
    inspect(memory)
    assert.ok(memory.looks() < 100)
  })
})
