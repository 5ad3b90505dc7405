/**
 * The addon's own probes.
 *
 * Not for guests: it is about the file, and wants tools of binutils that guests have not.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { addonPath } from '../../lib/native.js'
import { fileBytes } from '../support/memory.js'
import { notesOf } from '../support/notes.js'
import { freshCopy } from '../support/temp.js'
import { attach, native, record, withoutRights } from './kernel.js'

const ONE_NOP = process.arch === 'arm64' ? '1f2003d5' : '90'
/** `xor %ecx, %ecx`, or `eor w9, w9, w9`. */
const NO_NOP = process.arch === 'arm64' ? '2901094a' : '31c9'

/** The addon as it is, and as prebuildify strips it. */
function bothForms(t: Parameters<typeof freshCopy>[0]): string[] {
  const stripped = freshCopy(t, addonPath())
  execFileSync('strip', ['--strip-all', stripped])
  return [addonPath(), stripped]
}

test('each probe has one site, on a one-instruction no-op or the instruction that is none, also when stripped', (t) => {
  for (const path of bothForms(t)) {
    const sites = notesOf(path).map(({ provider, name, fileOffset }): [string, string] => {
      const bytes = name === 'step' ? NO_NOP.length / 2 : undefined
      return [`${provider}:${name}`, fileBytes(path, fileOffset, bytes)]
    })
    assert.deepEqual(Object.fromEntries(sites), { 'uprobe:demo': ONE_NOP, 'uprobe:selftest': ONE_NOP, 'uprobe:step': NO_NOP })
    assert.equal(sites.length, 3)
  }
})

test('the demo has an int, a 64-bit and a pointer argument and a semaphore, the self-test neither', (t) => {
  const argument = process.arch === 'arm64' ? 'x\\d+' : '%\\w+'
  for (const path of bothForms(t)) {
    const [demo, ...more] = notesOf(path, 'uprobe:demo')
    const [selftest] = notesOf(path, 'uprobe:selftest')
    assert.deepEqual(more, [])
    assert.match(demo?.args ?? '', new RegExp(`^-4@${argument} -8@${argument} 8@${argument}$`))
    assert.ok(typeof demo?.refCtrOffset === 'bigint')
    assert.equal(fileBytes(path, demo.refCtrOffset, 2), '0000')
    assert.equal(selftest?.args, '')
    assert.equal(selftest.refCtrOffset, null)
  }
})

test('the demo is silent and its semaphore 0 while nobody traces it', () => {
  assert.equal(native.demoSemaphore(), 0)
  assert.equal(native.fireDemo(1, -2n, 'text'), false)
  assert.throws(() => native.fireDemo(1, 1n << 63n, 'text'), { name: 'TypeError' })
})

test('the demo fires while its semaphore is up', { skip: withoutRights }, async (t) => {
  const path = freshCopy(t, addonPath())
  const copy = require(path) as typeof native
  const [demo] = notesOf(path, 'uprobe:demo')
  assert.ok(typeof demo?.refCtrOffset === 'bigint')
  const recording = await record(t)
  const perfFd = await attach(t, path, demo.fileOffset, recording.progFd, process.pid, Number(demo.refCtrOffset))
  assert.equal(copy.demoSemaphore(), 1)
  assert.equal(copy.fireDemo(41, -2n, 'text'), true)
  native.perfEventEnable(perfFd, true)
  await recording.reader.drain()
  assert.deepEqual(
    recording.records.map(({ index }) => index),
    [41],
  )
})

test('the self-test fires on a thread of its own, as often as asked', { skip: withoutRights }, async (t) => {
  const path = freshCopy(t, addonPath())
  const copy = require(path) as typeof native
  const [selftest] = notesOf(path, 'uprobe:selftest')
  assert.ok(selftest)
  const recording = await record(t)
  await attach(t, path, selftest.fileOffset, recording.progFd, process.pid)
  copy.fireSelfTest(1000)
  await recording.reader.drain()
  assert.equal(recording.records.length, 1000)
})

test('our macros need no header of SystemTap', () => {
  const header = readFileSync(join(__dirname, '..', '..', 'native', 'usdt.h'), 'utf8')
  assert.doesNotMatch(header, /^#\s*include/m)
})
