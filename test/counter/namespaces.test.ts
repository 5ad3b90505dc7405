/**
 * Agents in different namespaces agree on which memory is meant, and when a process was born.
 *
 * Not for guests: unshare, nsenter and setarch of busybox have not the options that this takes.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { machineMonotonicNs, machineTicks, ticksSinceBoot } from '../../lib/counter/boot-clock.js'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { leaseDirectory, leaseFiles } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer } from '../support/tracing.js'
import { identityOf } from './orphans.js'

const GCC = needs({ programs: ['gcc', 'setarch'] })
const NAMESPACES = needs({ programs: ['gcc', 'unshare', 'nsenter'] })

test('two runs of one program have two fingerprints, also where addresses are not random', GCC, async (t) => {
  const program = buildTarget(t, 'usdt', 'no-pie')
  const start = () => Target.start(t, 'setarch', { args: ['-R', program] })
  const [one, two] = [await start(), await start()]
  assert.notEqual(identityOf(one.pid).space.fingerprint, identityOf(two.pid).space.fingerprint)
})

test('start times, the time since boot and the monotonic clock are the same from another time namespace', NAMESPACES, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const born = machineTicks(identityOf(target.pid).startTime)
  const before = ticksSinceBoot()
  const beforeNs = machineMonotonicNs()
  const program = `
    const { machineMonotonicNs, machineTicks, ticksSinceBoot } = require(${JSON.stringify(join(__dirname, '..', '..', 'lib', 'counter', 'boot-clock'))})
    const stat = require('node:fs').readFileSync('/proc/${target.pid}/stat', 'utf8')
    console.log(String(machineTicks(BigInt(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]))), String(ticksSinceBoot()), String(machineMonotonicNs()))`
  const { stdout } = spawnSync(
    'unshare',
    [
      '--time',
      '--monotonic',
      '43200',
      '--boottime',
      '86400',
      '--fork',
      process.execPath,
      ...(__filename.endsWith('.ts') ? ['--import', 'tsx'] : []),
      '-e',
      program,
    ],
    { encoding: 'utf8', cwd: join(__dirname, '..', '..') },
  )
  const [seenBorn = 0n, seenNow = 0n, seenNs = 0n] = stdout.trim().split(' ').map(BigInt)
  assert.equal(seenBorn, born)
  assert.ok(seenNow >= before && seenNow <= ticksSinceBoot())
  assert.ok(seenNs >= beforeNs && seenNs <= machineMonotonicNs())
})

test('a process is not looked for in the /proc of another pid namespace, where its number is that of another one', NAMESPACES, () => {
  const program = `
    const { loadNative } = require('./lib/native')
    const { TargetProcess } = require('./lib/target/process')
    try {
      console.log(TargetProcess.open(loadNative(), process.pid).startTime)
    } catch ({ code, message }) {
      console.log(process.pid, code, message)
    }`
  const { stdout } = spawnSync(
    'unshare',
    ['--pid', '--fork', process.execPath, ...(__filename.endsWith('.ts') ? ['--import', 'tsx'] : []), '-e', program],
    { encoding: 'utf8', cwd: join(__dirname, '..', '..') },
  )
  assert.match(stdout, /^1 ERR_UPROBE_UNSUPPORTED \/proc is that of another pid namespace, where process 1 has the number \d+\. /)
})

/** A target that is process 1 of a pid namespace of its own, and its pid as we see it. */
async function contained(t: TestContext): Promise<{ target: Target; pid: number }> {
  const target = await Target.start(t, 'unshare', { args: ['--pid', '--fork', '--mount-proc', '--kill-child', buildTarget(t, 'usdt')] })
  const pid = Number(readFileSync(`/proc/${target.pid}/task/${target.pid}/children`, 'utf8').trim())
  return { target, pid }
}

/** Starts a program in the pid and mount namespaces of a process. */
function entering(pid: number): string[] {
  return ['nsenter', '-t', String(pid), '-p', '-m', `--wd=${join(__dirname, '..', '..')}`]
}

test('agents in two pid namespaces share a claim, and each keeps it when the other is killed', NAMESPACES, async (t) => {
  const { target, pid } = await contained(t)
  const leaseDir = leaseDirectory()
  assert.deepEqual(identityOf(pid).space.pid, 1)
  const outside = newTracer(t, { leaseDir })
  const probe = await outside.attach('usdt:t:gated', { pid, counter: 'msb' })
  const inside = await startAgent(t, entering(pid), leaseDir)
  assert.equal(await attachIn(inside, 'usdt:t:gated', { pid: 1, counter: 'msb' }), 'attached')
  await detachComplete(probe, 0)
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  const second = await outside.attach('usdt:t:gated', { pid, counter: 'msb' })
  assert.equal(await inside.ask('die counter-about-to-be-cleared'), 'armed')
  inside.tell('pause')
  await inside.exited
  await detachComplete(await newTracer(t, { leaseDir }).attach('usdt:t:plain', { pid }), 0)
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  assert.equal(await target.askNumber('gated 2'), 2)
  await detachComplete(second, 2)
  assert.equal(await target.ask('counters'), '0 0 0 0')
})

test('what an agent in another pid namespace has left is found by the numbers of that namespace', NAMESPACES, async (t) => {
  const { target, pid } = await contained(t)
  const leaseDir = leaseDirectory()
  const inside = await startAgent(t, entering(pid), leaseDir)
  assert.equal(await inside.ask('die breakpoints-in'), 'armed')
  await assert.rejects(attachIn(inside, 'usdt:t:gated', { pid: 1, counter: 'msb' }))
  await inside.exited
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  assert.deepEqual(leaseFiles(leaseDir).filter((name) => name === 'lease.json').length, 1)
  await detachComplete(await newTracer(t, { leaseDir }).attach('usdt:t:plain', { pid }), 0)
  assert.equal(await target.ask('counters'), '0 0 0 0')
  assert.deepEqual(leaseFiles(leaseDir), ['locks'])
})
