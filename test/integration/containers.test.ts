/**
 * Targets whose file is not where our own mount namespace would look for it: in another root, deleted, or replaced.
 */
import assert from 'node:assert/strict'
import { copyFileSync, mkdirSync, realpathSync, renameSync, rmSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { tempDirectory } from '../support/temp.js'
import { collect, detachComplete, newTracer, refused } from '../support/tracing.js'

const CONTAINER = needs({ programs: ['gcc', 'unshare', 'chroot'] })
const GCC = needs({ programs: ['gcc'] })

/** A root of its own with a static program in it, and the program running there in its own mount namespace. */
async function startInContainer(t: Parameters<typeof tempDirectory>[0], programInRoot: string): Promise<{ root: string; target: Target }> {
  const root = tempDirectory(t)
  mkdirSync(join(root, dirname(programInRoot)), { recursive: true })
  copyFileSync(buildTarget(t, 'usdt', 'static'), join(root, programInRoot))
  const target = await Target.start(t, 'unshare', { args: ['-m', 'chroot', root, programInRoot] })
  return { root, target }
}

test('a program in a container is found by pid, and by its path inside', CONTAINER, async (t) => {
  const { target } = await startInContainer(t, '/app/server')
  const tracer = newTracer(t)
  const byPid = await tracer.attach('usdt:t:gated', { pid: target.pid })
  const byPath = await tracer.attach('usdt:/app/server:t:gated', { pid: target.pid })
  const hits = collect(byPath)
  assert.equal(await target.askNumber('gated 3'), 3)
  await detachComplete(byPid, 3)
  await detachComplete(byPath, 3)
  assert.equal(hits[0]?.site.path, '/app/server')
  await refused(tracer.attach('usdt:/app/server:t:gated'), 'ERR_UPROBE_FILE')
})

test('an absolute symbolic link inside a container leads to the file inside, not to ours of the same name', CONTAINER, async (t) => {
  // One absolute path, two files: a program with other probes in our root, the real one in the container.
  const ours = buildTarget(t, 'bad-counter')
  const { root, target } = await startInContainer(t, ours)
  symlinkSync(ours, join(root, 'link'))
  mkdirSync(join(root, 'deep'))
  symlinkSync('../../../../../../../link', join(root, 'deep/escape'))
  const tracer = newTracer(t)
  for (const path of ['/link', '/deep/escape']) {
    const probe = await tracer.attach(`usdt:${path}:t:gated`, { pid: target.pid })
    assert.equal(await target.askNumber('gated 3'), 3)
    await detachComplete(probe, 3)
    await refused(tracer.attach(`usdt:${path}:t:good`, { pid: target.pid }), 'ERR_UPROBE_NOT_FOUND')
  }
})

test('a program that was deleted while it runs', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  rmSync(target.program)
  const probe = await newTracer(t).attach('usdt:t:gated', { pid: target.pid, strings: [2] })
  const hits = collect(probe)
  assert.equal(await target.askNumber('gated 2'), 2)
  await detachComplete(probe, 2)
  assert.deepEqual(
    hits.map((hit) => hit.args[2]),
    ['hit 0', 'hit 1'],
  )
  assert.equal(await target.ask('counters'), '0 0 0 0')
})

test('a program that was replaced on disk: the process has the old file, and the probe is in that', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  renameSync(buildTarget(t, 'bad-counter'), target.program)
  const tracer = newTracer(t)
  const probe = await tracer.attach('usdt:t:gated', { pid: target.pid })
  assert.equal(await target.askNumber('gated 2'), 2)
  await detachComplete(probe, 2)
  await refused(tracer.attach('usdt:t:good', { pid: target.pid }), 'ERR_UPROBE_NOT_FOUND')
})

test('one file under two names is one file', GCC, async (t) => {
  const program = buildTarget(t, 'usdt')
  const link = join(dirname(program), 'other-name')
  symlinkSync(program, link)
  const target = await Target.start(t, link)
  const probe = await newTracer(t).attach(`usdt:${link}:t:gated`, { pid: target.pid })
  assert.equal(realpathSync(link), program)
  assert.equal(await target.askNumber('gated 2'), 2)
  await detachComplete(probe, 2)
})
