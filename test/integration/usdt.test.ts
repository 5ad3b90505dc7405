/**
 * USDT probes of a program of our own: arguments, semaphores, several sites, several files.
 */
import assert from 'node:assert/strict'
import { copyFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { HAS_SLEEPABLE, REGISTRATIONS } from '../support/features.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue, isArmed } from '../support/memory.js'
import { needs } from '../support/needs.js'
import { gatedNote, notesOf } from '../support/notes.js'
import { Target } from '../support/target.js'
import { collect, detachComplete, newTracer } from '../support/tracing.js'

test('says which argument is asked for as a string and is hardly a pointer', needs({ programs: ['gcc'] }), async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const tracer = newTracer(t)
  const warningsOf = async (spec: string, strings: number[]): Promise<readonly string[]> => {
    const probe = await tracer.attach(spec, { pid: target.pid, strings })
    await probe.detach()
    return probe.warnings
  }
  const [warning = '', ...others] = await warningsOf('usdt:t:gated', [0, 2])
  assert.match(warning, /argument 0 of usdt:t:gated, which is hardly a pointer: it is 4 bytes wide \(-4@.*\)/)
  assert.deepEqual(others, [])
  assert.deepEqual(await warningsOf('usdt:t:gated', [2]), [])
  // Where one site of a pattern has a pointer there, it is meant for that one.
  assert.deepEqual(await warningsOf('usdt:t:*', [0]), [])
})

for (const registration of REGISTRATIONS) {
  test(`delivers each hit with its exact arguments, in order (${registration})`, needs({ programs: ['gcc'] }), async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, strings: [2], registration })
    const hits = collect(probe)
    const before = process.hrtime.bigint()
    assert.equal(await target.askNumber('gated 100'), 100)
    await detachComplete(probe, 100)
    const after = process.hrtime.bigint()

    assert.deepEqual(
      hits.map((hit) => hit.args),
      Array.from({ length: 100 }, (_, i) => [0 - i, (1n << 63n) + BigInt(i), `hit ${i}`]),
    )
    let last = before
    for (const hit of hits) {
      assert.equal(hit.pid, target.pid)
      assert.equal(hit.tid, target.pid)
      assert.equal(hit.comm, 'usdt')
      assert.equal(hit.probe, 'usdt:t:gated')
      assert.equal(hit.site.path, target.program)
      assert.ok(hit.timestamp > last && hit.timestamp < after, 'timestamps are CLOCK_MONOTONIC and rise')
      last = hit.timestamp
    }
  })

  test(
    `raises a shared semaphore by the number of its sites and takes that back (${registration})`,
    needs({ programs: ['gcc'] }),
    async (t) => {
      const target = await Target.start(t, buildTarget(t, 'usdt'))
      const sites = notesOf(target.program, 't:shared')
      const refCtrOffset = sites[0]?.refCtrOffset ?? 0n
      assert.equal(sites.length, 3)
      assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)

      const probe = await newTracer(t).attach('usdt:t:shared', { pid: target.pid, registration })
      const hits = collect(probe)
      assert.equal(counterValue(target.pid, target.program, refCtrOffset), 3)
      assert.deepEqual(
        probe.sites.map((site) => [site.fileOffset, site.refCtrOffset, site.targets[0]?.state, site.targets[0]?.counter]),
        sites.map((site) => [site.fileOffset, refCtrOffset, 'armed', 3]),
      )
      assert.equal(await target.askNumber('shared 2'), 6)
      await detachComplete(probe, 6)

      assert.deepEqual(
        hits.map((hit) => hit.args),
        [
          [0, 0],
          [1, 0],
          [2, 0],
          [0, 1],
          [1, 1],
          [2, 1],
        ],
      )
      assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)
      for (const site of sites) assert.equal(isArmed(target.pid, target.program, site.fileOffset), false)
      assert.equal(await target.askNumber('shared 2'), 0)
    },
  )
}

test('a gated probe is executed only while it is attached, and its counter goes 0, 1, 0', needs({ programs: ['gcc'] }), async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const state = (): [number, boolean] => [
    counterValue(target.pid, target.program, refCtrOffset),
    isArmed(target.pid, target.program, fileOffset),
  ]
  assert.deepEqual(state(), [0, false])
  assert.equal(await target.askNumber('gated 3'), 0)

  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  assert.deepEqual(state(), [1, true])
  assert.equal(await target.askNumber('gated 3'), 3)

  await detachComplete(probe, 3)
  assert.deepEqual(state(), [0, false])
  assert.equal(await target.askNumber('gated 3'), 0)
})

test(
  'two probes of one tracer, and one of another, share a site: the counter is 1 until the last goes',
  needs({ programs: ['gcc'] }),
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const { refCtrOffset } = gatedNote(target.program, 't:gated')
    const value = (): number => counterValue(target.pid, target.program, refCtrOffset)
    const tracer = newTracer(t)
    const first = await tracer.attach('usdt:t:gated', { pid: target.pid })
    const second = await tracer.attach('usdt:t:gated', { pid: target.pid, strings: [2] })
    const third = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
    const hits = [first, second, third].map(collect)
    assert.equal(value(), 1)
    await target.ask('gated 4')
    await detachComplete(first, 4)
    assert.equal(value(), 1)
    await target.ask('gated 5')
    await detachComplete(second, 9)
    await detachComplete(third, 9)
    assert.equal(value(), 0)
    assert.deepEqual(
      hits.map((list) => list.length),
      [4, 9, 9],
    )
  },
)

test('a pause takes breakpoint and counter out of the target, and a resume puts them back', needs({ programs: ['gcc'] }), async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const { fileOffset, refCtrOffset } = gatedNote(target.program, 't:gated')
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid })
  await target.ask('gated 2')
  await probe.pause()
  assert.equal(probe.state, 'paused')
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)
  assert.equal(isArmed(target.pid, target.program, fileOffset), false)
  assert.equal(await target.askNumber('gated 5'), 0)
  await probe.resume()
  assert.equal(probe.state, 'attached')
  assert.equal(counterValue(target.pid, target.program, refCtrOffset), 1)
  assert.equal(await target.askNumber('gated 3'), 3)
  await detachComplete(probe, 5)
})

test('a pattern attaches every probe of the provider behind one Probe', needs({ programs: ['gcc'] }), async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const probe = await newTracer(t).attach('usdt:t:*', { pid: target.pid })
  assert.deepEqual(probe.warnings, [])
  assert.deepEqual(
    probe.sites.map((site) => site.probe).sort(),
    ['gated', 'plain', 'shared', 'shared', 'shared', 'twin', 'ungated'].map((name) => `usdt:t:${name}`),
  )
  assert.equal(await target.ask('counters'), '1 1 3 1')
  await target.ask('gated 2')
  await target.ask('plain 3')
  await target.ask('ungated 4')
  await target.ask('shared 5')
  await target.ask('twin')
  await detachComplete(probe, 2 + 3 + 4 + 15 + 1)
  assert.deepEqual(Object.fromEntries(probe.statsByName().map((stats) => [stats.probe, [stats.path, stats.hits, stats.delivered]])), {
    'usdt:t:gated': [target.program, 2, 2],
    'usdt:t:plain': [target.program, 3, 3],
    'usdt:t:ungated': [target.program, 4, 4],
    'usdt:t:shared': [target.program, 15, 15],
    'usdt:t:twin': [target.program, 1, 1],
  })
  assert.equal(await target.ask('counters'), '0 0 0 0')
})

test(
  'one name in a program and in a library that it has loaded: one Probe, each file with its own semaphore',
  needs({ programs: ['gcc'] }),
  async (t) => {
    const target = await Target.start(t, buildTarget(t, 'usdt'))
    const library = buildTarget(t, 'lib', 'shared')
    await target.ask(`dlopen ${library}`)
    const inProgram = gatedNote(target.program, 't:twin')
    const inLibrary = gatedNote(library, 't:twin')

    const probe = await newTracer(t).attach('usdt:t:twin', { pid: target.pid, strings: [0] })
    const hits = collect(probe)
    assert.equal(probe.sites.length, 2)
    assert.equal(counterValue(target.pid, target.program, inProgram.refCtrOffset), 1)
    assert.equal(counterValue(target.pid, library, inLibrary.refCtrOffset), 1)
    assert.equal(await target.askNumber('twin'), 1)
    assert.equal(await target.askNumber('lib 2'), 2)
    await detachComplete(probe, 3)
    assert.deepEqual(
      hits.map((hit) => [hit.site.path, hit.args[0]]),
      [
        [target.program, 'program'],
        [library, HAS_SLEEPABLE ? 'library' : hits[1]?.args[0]],
        [library, HAS_SLEEPABLE ? 'library' : hits[2]?.args[0]],
      ],
      'the constant of the library is not paged in before its first use, and a program that may not sleep finds it unreadable',
    )
    assert.equal(counterValue(target.pid, target.program, inProgram.refCtrOffset), 0)
    assert.equal(counterValue(target.pid, library, inLibrary.refCtrOffset), 0)
  },
)

test('a library that the target loads after the attach is armed when it is mapped', needs({ programs: ['gcc'] }), async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const library = join(dirname(target.program), 'late.so')
  copyFileSync(buildTarget(t, 'lib', 'shared'), library)
  const probe = await newTracer(t).attach(`usdt:${library}:t:own`, { pid: target.pid })
  const hits = collect(probe)
  assert.deepEqual(
    probe.sites.flatMap((site) => site.targets.map(({ state }) => state)),
    ['not-mapped'],
  )
  assert.equal(await target.ask(`dlopen ${library}`), `loaded ${library}`)
  assert.equal(counterValue(target.pid, library, gatedNote(library, 't:own').refCtrOffset), 1)
  assert.equal(await target.askNumber('lib 3'), 3)
  await target.ask('dlclose')
  assert.equal(await target.ask(`dlopen ${library}`), `loaded ${library}`)
  assert.equal(await target.askNumber('lib 2'), 2)
  await detachComplete(probe, 5)
  assert.deepEqual(
    hits.map((hit) => hit.args[0]),
    [0, 1, 2, 0, 1],
  )
})

test(
  'of a file that nobody maps by now a warning says so, and its sites are armed when somebody does',
  needs({ programs: ['gcc'] }),
  async (t) => {
    const program = buildTarget(t, 'usdt')
    const tracer = newTracer(t)
    const probe = await tracer.attach(`usdt:${program}:t:plain`)
    assert.deepEqual(probe.warnings, [`no process that may be looked at maps ${program} by now; its sites are armed as soon as one does`])
    const target = await Target.start(t, program)
    await target.ask('plain 3')
    await detachComplete(probe, 3)
    const again = await tracer.attach(`usdt:${program}:t:plain`)
    assert.deepEqual(again.warnings, [])
    await again.detach()
  },
)

test('of each process that is named and does not map the file, a warning says so, once', needs({ programs: ['gcc'] }), async (t) => {
  const program = buildTarget(t, 'usdt')
  const [one, other] = [await Target.start(t, program), await Target.start(t, program)]
  const library = join(dirname(program), 'later.so')
  copyFileSync(buildTarget(t, 'lib', 'shared'), library)
  await one.ask(`dlopen ${library}`)
  for (const [counter, then] of [
    ['kernel', ''],
    ['msb', ', but counters are claimed only at an attach: attach again then'],
  ] as const) {
    const tracer = newTracer(t, { leaseDir: leaseDirectory() })
    const probe = await tracer.attach(`usdt:${library}:t:*`, { pid: [one.pid, other.pid], counter })
    assert.ok(probe.sites.length > 1)
    assert.deepEqual(probe.warnings, [`process ${other.pid} does not map ${library} now; its sites are armed when it does${then}`])
    await other.ask(`dlopen ${library}`)
    assert.deepEqual([await one.askNumber('lib 3'), await other.askNumber('lib 2')], [6, counter === 'kernel' ? 4 : 0])
    await detachComplete(probe, counter === 'kernel' ? 10 : 6)
    const again = await tracer.attach(`usdt:${library}:t:*`, { pid: [one.pid, other.pid], counter })
    assert.deepEqual(again.warnings, [])
    await again.detach()
    await other.ask('dlclose')
  }
})

test('a program that is not position-independent, and a static one', needs({ programs: ['gcc'] }), async (t) => {
  for (const linkage of ['no-pie', 'static'] as const) {
    const target = await Target.start(t, buildTarget(t, 'usdt', linkage))
    const { refCtrOffset } = gatedNote(target.program, 't:gated')
    const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, strings: [2] })
    const hits = collect(probe)
    assert.equal(counterValue(target.pid, target.program, refCtrOffset), 1)
    assert.equal(await target.askNumber('gated 2'), 2)
    await detachComplete(probe, 2)
    assert.deepEqual(hits[1]?.args, [-1, (1n << 63n) + 1n, 'hit 1'])
    assert.equal(counterValue(target.pid, target.program, refCtrOffset), 0)
  }
})
