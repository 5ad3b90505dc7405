/**
 * What is refused before anything is registered, for what the counter of a site is in the process at that moment.
 */
import assert from 'node:assert/strict'
import { describe, it, type TestContext } from 'node:test'
import { ElfFile } from '../../lib/elf/elf-file.js'
import { loadNative } from '../../lib/native.js'
import { elfInstructions } from '../../lib/register/elf-instructions.js'
import { SiteFitness, viewsOf } from '../../lib/spec/fitness.js'
import { factsOf, openProcess } from '../counter/places.js'
import { buildTarget } from '../support/build.js'
import { writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'

const GCC = needs({ programs: ['gcc'] })

/** What is said of the first site of a probe, with its counter at a value that somebody stored. */
async function refusal(t: TestContext, source: string, probe: string, stored: number | null): Promise<string | null> {
  const target = await Target.start(t, buildTarget(t, source))
  const notes = notesOf(target.program, probe)
  const [note] = notes
  assert.ok(note !== undefined && note.refCtrOffset !== null)
  if (stored !== null) writeCounter(target.pid, target.program, note.refCtrOffset, stored)
  const elf = await ElfFile.open(target.program)
  t.after(() => elf.close())
  const facts = factsOf(target.program, notes)
  const fitness = SiteFitness.of({
    native: loadNative(),
    settings: { counter: 'kernel', unsafe: false },
    retprobe: false,
    source: elfInstructions(elf, process.arch === 'arm64' ? 'arm64' : 'x64'),
    elf,
    facts,
    views: await viewsOf(facts.identity, [openProcess(t, target)]),
  })
  const { fileOffset, refCtrOffset, args } = note
  const site = {
    probe,
    origin: 'note',
    vaddr: fileOffset,
    fileOffset,
    counterVaddr: refCtrOffset,
    refCtrOffset,
    args,
    atEntry: false,
  } as const
  return (await fitness.check(site))?.code ?? null
}

describe('a counter that the kernel is to count on', () => {
  for (const value of [0, 1, 0x7fff]) {
    it(`may be ${value}`, GCC, async (t) => assert.equal(await refusal(t, 'usdt', 't:gated', value), null))
  }

  it('may be claimed, since the kernel refuses it by itself', GCC, async (t) => {
    assert.equal(await refusal(t, 'usdt', 't:gated', 0x8000), null)
  })

  for (const value of [0x8001, 0xffff]) {
    it(`must not be negative, as ${value} is to the kernel`, GCC, async (t) => {
      assert.equal(await refusal(t, 'usdt', 't:gated', value), 'ERR_UPROBE_COUNTER_NEGATIVE')
    })
  }

  it('must lie where the kernel finds it', GCC, async (t) => {
    assert.equal(await refusal(t, 'bad-counter', 't:readonly', null), 'ERR_UPROBE_COUNTER_UNREACHABLE')
  })
})
