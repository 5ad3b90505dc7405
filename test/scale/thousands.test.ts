/**
 * Ten thousand sites of one file, each with a semaphore of its own: attached and detached in one call, by one program and one link, and counted exactly.
 *
 * Not for guests: emulated processors are too slow for it.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import test, { type TestContext } from 'node:test'
import { type Step, setStepHook } from '../../lib/counter/steps.js'
import type { Progress, ProgressStep, Tracer } from '../../lib/index.js'
import { type CounterMemoryOptions, loadNative } from '../../lib/native.js'
import { attachIn, startAgent } from '../support/agent.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { holdings } from '../support/leftovers.js'
import { writeCounter } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { notesOf } from '../support/notes.js'
import { registerForOwnProcess } from '../support/other-tracer.js'
import { detachComplete, newTracer, refused } from '../support/tracing.js'
import { countTurns } from '../support/wait.js'
import { assertSemaphores, numberOf, SITES, startThousands, type Thousands, variedHits } from './thousands.js'

const GCC = needs({ programs: ['gcc'] })
const CLAIM = 0x8000

/** How many more descriptors of a kind this process has than `before`. */
function moreOf(kind: string, before: ReturnType<typeof holdings>): number {
  return (holdings().descriptors[kind] ?? 0) - (before.descriptors[kind] ?? 0)
}

/** Starts the program and a tracer that has been used once, so that what a tracer opens for good is there. */
async function scene(t: TestContext): Promise<{ program: Thousands; tracer: Tracer }> {
  const program = await startThousands(t)
  const tracer = newTracer(t, { leaseDir: leaseDirectory() })
  await (await tracer.attach(program.spec('1??'), { pid: program.pid })).detach()
  return { program, tracer }
}

test('are attached by one program and one link, and each is counted and delivered exactly', GCC, async (t) => {
  const { program, tracer } = await scene(t)
  const before = holdings()
  const probe = await tracer.attach(program.spec('*'), { pid: program.pid, maxSites: SITES })
  const delivered = new Map<number, number>()
  probe.on('hit', (hit) => {
    const number = numberOf(hit.probe)
    assert.equal(hit.args[0], number)
    delivered.set(number, (delivered.get(number) ?? 0) + 1)
  })
  assert.deepEqual([moreOf('anon_inode:bpf-prog', before), moreOf('anon_inode:bpf_link', before)], [1, 1])
  assert.equal(probe.sites.length, SITES)
  assert.ok(probe.sites.every(({ targets }) => targets.length === 1 && targets[0]?.state === 'armed' && targets[0].counter === 1))
  await assertSemaphores(program, SITES, 1)
  const executed = await program.target.askNumber('vary')
  // The clock is read once: for each name it would take longer than the counts do.
  assert.equal(new Set(probe.statsByName().map(({ seenMs }) => seenMs)).size, 1)
  await detachComplete(probe, executed)
  await assertSemaphores(program, 0, 1)
  const counts = new Map(probe.statsByName().map(({ probe: name, hits }) => [numberOf(name), hits]))
  for (let number = 0; number < SITES; number++) {
    assert.deepEqual([counts.get(number), delivered.get(number) ?? 0], [variedHits(number), variedHits(number)], `site ${number}`)
  }
  assert.deepEqual(holdings().descriptors, before.descriptors)
})

test('a hundred perf events, whose counts share entries of a map, count each site exactly', GCC, async (t) => {
  const { program, tracer } = await scene(t)
  const probe = await tracer.attach(program.spec('7??'), { pid: program.pid, registration: 'perf' })
  assert.match(probe.warnings.join(), /100 sites need a perf event each.* detaching would take about 11 seconds/)
  await program.target.ask('vary')
  await probe.detach()
  assert.deepEqual(
    probe.statsByName().map(({ probe: name, hits }) => [numberOf(name), hits]),
    Array.from({ length: 100 }, (_, index) => [700 + index, variedHits(700 + index)]),
  )
})

test('more perf events than can be closed in a while are refused before anything is registered', GCC, async (t) => {
  const { program, tracer } = await scene(t)
  const before = holdings()
  const error = await refused(
    tracer.attach(program.spec('*'), { pid: program.pid, maxSites: SITES, registration: 'perf' }),
    'ERR_UPROBE_TOO_MANY_SITES',
  )
  assert.match(error.message, /10000 sites need a perf event each.* about 1080 seconds.* Linux 6\.10/)
  await assertSemaphores(program, 0, 1)
  assert.deepEqual(holdings().descriptors, before.descriptors)
})

test('take no call of the addon, and no reading of memory, a site', GCC, async (t) => {
  const { program, tracer } = await scene(t)
  const native = loadNative()
  let calls = 0
  for (const [name, member] of Object.entries(native)) {
    // Classes are not called.
    if (typeof member !== 'function' || /^[A-Z]/.test(name)) continue
    t.mock.method(native, name as 'closeFd', (...args: unknown[]) => {
      calls++
      return (member as (...args: unknown[]) => unknown)(...args)
    })
  }
  const { readSync } = fs
  t.mock.method(fs, 'readSync', (...args: Parameters<typeof readSync>) => {
    calls++
    return readSync(...args)
  })
  const callsFor = async (numbers: string): Promise<number> => {
    calls = 0
    const probe = await tracer.attach(program.spec(numbers), { pid: program.pid, maxSites: SITES })
    await probe.detach()
    return calls
  }
  const few = await callsFor('2??')
  // Ten thousand sites and their counters are on 25 pages, each of which is read twice.
  assert.ok((await callsFor('*')) <= few + 80, `${calls} calls`)
})

/** Lets the clock by which work is divided go on by a millisecond whenever somebody looks at it, however slow the machine is. */
function countedClock(t: TestContext): void {
  let now = process.hrtime.bigint()
  t.mock.method(process.hrtime, 'bigint', () => {
    now += 1_000_000n
    return now
  })
}

test('have their names compared when they are attached, so that none is when their counts are asked for', GCC, async (t) => {
  const { program, tracer } = await scene(t)
  const probe = await tracer.attach(program.spec('*'), { pid: program.pid, maxSites: SITES })
  const { set } = Map.prototype
  let kept = 0
  t.mock.method(Map.prototype, 'set', function (this: Map<unknown, unknown>, key: unknown, value: unknown) {
    kept++
    return set.call(this, key, value)
  })
  assert.equal(probe.statsByName().length, SITES)
  t.mock.restoreAll()
  assert.ok(kept < SITES / 100, `${kept} names`)
  await probe.detach()
})

for (const counter of ['kernel', 'msb'] as const) {
  const numbers = counter === 'kernel' ? '*' : '1*'
  test(`leave the event loop its turn after some hundred sites (${counter})`, GCC, async (t) => {
    const { program, tracer } = await scene(t)
    const most = new Map<ProgressStep, number>()
    let turn = 0
    let lastTurn = 0
    let last: Progress | null = null
    const counting = setInterval(() => undefined, 1)
    t.after(() => clearInterval(counting))
    const next = (): void => {
      turn++
      timer = setImmediate(next)
    }
    let timer = setImmediate(next)
    t.after(() => clearImmediate(timer))
    tracer.on('progress', (progress) => {
      if (last !== null && last.step === progress.step && turn - lastTurn <= 1) {
        most.set(progress.step, Math.max(most.get(progress.step) ?? 0, progress.done - last.done))
      }
      last = progress
      lastTurn = turn
    })
    countedClock(t)
    const probe = await tracer.attach(program.spec(numbers), { pid: program.pid, maxSites: SITES, counter })
    const sites = probe.sites.length
    await probe.detach()
    for (const step of counter === 'kernel' ? (['check', 'verify'] as const) : (['check', 'claim', 'verify'] as const)) {
      const worst = most.get(step) ?? sites
      assert.ok(worst <= 256, `${worst} sites in one turn of ${step}`)
    }
  })
}

for (const [counter, steps] of [
  ['kernel', ['check', 'register', 'verify']],
  ['msb', ['check', 'claim', 'register', 'verify']],
] as const) {
  for (const step of steps) {
    test(`are taken back when the attach is aborted in the middle (${counter}, ${step})`, GCC, async (t) => {
      const { program, tracer } = await scene(t)
      const probe = await tracer.attach(program.spec('3??'), { pid: program.pid, counter })
      await probe.detach()
      const before = holdings()
      const abort = new AbortController()
      const reason = new Error('enough')
      const seen: Progress[] = []
      tracer.on('progress', (progress) => {
        seen.push(progress)
        if (progress.action === 'attach' && progress.step === step && (step === 'register' || progress.done > 0)) abort.abort(reason)
      })
      // For there to be a middle: on a fast machine a step may take less than a slice of time.
      countedClock(t)
      const attaching = tracer.attach(program.spec('1*'), { pid: program.pid, maxSites: SITES, counter, signal: abort.signal })
      await assert.rejects(attaching, (error) => error === reason)
      assert.ok(
        !seen.some((progress) => progress.action === 'attach' && steps.indexOf(progress.step as never) > steps.indexOf(step as never)),
      )
      await assertSemaphores(program, 0, 1)
      assert.deepEqual([tracer.probes, await tracer.counters()], [[], []])
      assert.deepEqual(holdings().descriptors, before.descriptors)
    })
  }
}

test('have all their counters claimed, with a handful of descriptors, and given back', GCC, async (t) => {
  const program = await startThousands(t)
  const leaseDir = leaseDirectory()
  const tracer = newTracer(t, { leaseDir })
  await (await tracer.attach(program.spec('1??'), { pid: program.pid, counter: 'msb' })).detach()
  const before = holdings()
  const probe = await tracer.attach(program.spec('*'), { pid: program.pid, maxSites: SITES, counter: 'msb' })
  const descriptors = (held: ReturnType<typeof holdings>): number => Object.values(held.descriptors).reduce((sum, count) => sum + count, 0)
  assert.ok(descriptors(holdings()) - descriptors(before) < 32)
  await assertSemaphores(program, SITES, CLAIM)
  assert.ok(leaseFiles(leaseDir).includes('lease.json'))
  const executed = await program.target.askNumber('vary')
  await probe.pause()
  await assertSemaphores(program, 0, CLAIM)
  await probe.resume()
  await assertSemaphores(program, SITES, CLAIM)
  await probe.detach()
  assert.equal(probe.stats().hits, executed)
  await assertSemaphores(program, 0, CLAIM)
  assert.ok(!leaseFiles(leaseDir).some((name) => /^(lease|left|released)/.test(name)))
  assert.deepEqual(holdings().descriptors, before.descriptors)
})

test('are put on record in slices, and are reached through one object of the addon', GCC, async (t) => {
  const { program, tracer } = await scene(t)
  const native = loadNative()
  const { CounterMemory } = native
  let memories = 0
  native.CounterMemory = class extends CounterMemory {
    constructor(options: CounterMemoryOptions) {
      super(options)
      memories++
    }
  }
  const loop = countTurns()
  const at = new Map<string, number>()
  setStepHook((step) => {
    if (!at.has(step)) at.set(step, loop.turns)
  })
  t.after(() => {
    native.CounterMemory = CounterMemory
    loop.stop()
    setStepHook(null)
  })
  countedClock(t)
  const probe = await tracer.attach(program.spec('1*'), { pid: program.pid, maxSites: SITES, counter: 'msb' })
  const turns = (from: Step, to: Step): number => (at.get(to) ?? 0) - (at.get(from) ?? 0)
  // By that clock four looks are a slice, and there is a look at every 128 of 1111 counters.
  assert.ok(turns('lease-about-to-be-written', 'lease-written') >= 2)
  await probe.detach()
  assert.equal(memories, 1)
})

test('an abort says why also when a counter cannot be given back, which is told of by its lease', GCC, async (t) => {
  const program = await startThousands(t)
  const leaseDir = leaseDirectory()
  const tracer = newTracer(t, { leaseDir })
  const [note] = notesOf(program.target.program, 't:site1')
  assert.ok(note?.refCtrOffset)
  const { refCtrOffset } = note
  const write = (value: number): void => writeCounter(program.pid, program.target.program, refCtrOffset, value)
  const abort = new AbortController()
  const reason = new Error('enough')
  tracer.on('progress', ({ action, step, done }) => {
    if (action !== 'attach' || step !== 'claim' || done === 0 || abort.signal.aborted) return
    // A high byte that no claim has: it is not written.
    write(0xc000)
    abort.abort(reason)
  })
  const options = { pid: program.pid, counter: 'msb', maxSites: SITES, signal: abort.signal } as const
  await assert.rejects(tracer.attach(program.spec('1*'), options), (error) => error === reason)
  await assertSemaphores(program, 1, 0xc000)
  assert.ok(leaseFiles(leaseDir).includes('left.json'))
  write(0)
})

test('cannot be claimed while another tracer counts on one of them, which is named', GCC, async (t) => {
  const { program, tracer } = await scene(t)
  const [note] = notesOf(program.target.program, 't:site1500')
  assert.ok(note?.fileOffset && note.refCtrOffset)
  const other = await registerForOwnProcess(program.target.program, note.fileOffset, Number(note.refCtrOffset))
  const before = holdings()
  const attach = () => tracer.attach(program.spec('1*'), { pid: program.pid, counter: 'msb', maxSites: SITES })
  const error = await refused(attach(), 'ERR_UPROBE_COUNTER_BUSY')
  assert.match(
    error.message,
    new RegExp(`^usdt:t:site1500 at .*:0x${note.fileOffset.toString(16)}: another tracer has registered this site`),
  )
  await assertSemaphores(program, 0, CLAIM)
  assert.deepEqual(
    ['[perf_event]', 'bpf_link', 'bpf-prog'].map((kind) => moreOf(`anon_inode:${kind}`, before)),
    [0, 0, 0],
  )
  other.close()
  await (await attach()).detach()
})

test('are cleared one by one after their agent has died, and the event loop has its turn in between', GCC, async (t) => {
  const program = await startThousands(t)
  const leaseDir = leaseDirectory()
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, program.spec('1*'), { pid: program.pid, counter: 'msb', maxSites: SITES }), 'attached')
  await agent.stop()
  await assertSemaphores(program, 1111, CLAIM)

  const native = loadNative()
  const { lockByte } = native
  const held = new Set<bigint>()
  let mostHeld = 0
  let taken = 0
  let mostTaken = 0
  t.mock.method(native, 'lockByte', (...args: Parameters<typeof lockByte>) => {
    const done = lockByte(...args)
    const [, byte, how] = args
    // The steps of counters have the even bytes, but for that of recovering.
    if (byte === 0n || byte % 2n !== 0n) return done
    if (how === 'none') held.delete(byte)
    else if (done) {
      held.add(byte)
      mostTaken = Math.max(mostTaken, ++taken)
    }
    mostHeld = Math.max(mostHeld, held.size)
    return done
  })
  const { parse } = JSON
  const loop = countTurns()
  t.after(() => loop.stop())
  let longest = 0
  let turnsBefore: number | null = null
  t.mock.method(JSON, 'parse', (text: string) => {
    if (text.includes('"counters"') || text.includes('"provider"')) turnsBefore ??= loop.turns
    longest = Math.max(longest, text.length)
    return parse(text)
  })
  const turns = setInterval(() => undefined, 1)
  t.after(() => clearInterval(turns))
  const next = (): void => {
    taken = 0
    timer = setImmediate(next)
  }
  let timer = setImmediate(next)
  t.after(() => clearImmediate(timer))
  countedClock(t)
  const probe = await newTracer(t, { leaseDir }).attach(program.spec('2'), { pid: program.pid })
  await probe.detach()
  await assertSemaphores(program, 0, CLAIM)
  assert.equal(mostHeld, 1)
  assert.ok(mostTaken <= 256, `${mostTaken} counters in one turn`)
  // The lease has more than a hundred thousand, which are read in a turn of their own.
  assert.ok(turnsBefore !== null && turnsBefore > 0)
  assert.ok(longest > 0 && longest < 17 * 1024, `${longest} characters of it at a time`)
  assert.ok(!leaseFiles(leaseDir).some((name) => /^(lease|left|released)/.test(name)))
})

test('tell in order how far an attach and a detach are', GCC, async (t) => {
  const { program, tracer } = await scene(t)
  const spec = program.spec('*')
  const seen: Progress[] = []
  tracer.on('progress', (progress) => seen.push(progress))
  const probe = await tracer.attach(spec, { pid: program.pid, maxSites: SITES })
  await probe.detach()
  const steps: string[] = []
  for (const { action, step, done, total, spec: of } of seen) {
    const name = `${action} ${step}`
    if (steps.at(-1) !== name) steps.push(name)
    assert.ok(done <= total && of === spec)
  }
  assert.deepEqual(steps, ['attach check', 'attach register', 'attach verify', 'detach unregister'])
  for (const name of steps) {
    const ofStep = seen.filter(({ action, step }) => `${action} ${step}` === name)
    assert.deepEqual([ofStep[0]?.done, ofStep.at(-1)?.done, ofStep.at(-1)?.total], [0, SITES, SITES])
    for (const [index, { done }] of ofStep.entries()) assert.ok(index === 0 || done > (ofStep[index - 1]?.done ?? 0))
  }
})
