import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { needs } from '../support/needs.js'
import { type Cleanup, tempDirectory } from '../support/temp.js'

const ROOT = join(__dirname, '../..')

/** The code blocks of a document. */
function blocksOf(document: string): string[] {
  return [...readFileSync(join(ROOT, document), 'utf8').matchAll(/```js\n([\s\S]*?)```/g)].map(([, block = '']) => block)
}

/** A program, in a directory as after `npm install uprobe`. */
function pasted(t: Cleanup, text: string): string {
  const directory = tempDirectory(t)
  const program = join(directory, 'pasted.mjs')
  writeFileSync(program, text)
  mkdirSync(join(directory, 'node_modules'))
  symlinkSync(ROOT, join(directory, 'node_modules/uprobe'))
  return program
}

test('the first code block of the README runs as it stands when it is pasted', needs(), (t) => {
  const [block = ''] = blocksOf('README.md')
  assert.match(block, /from 'uprobe'/)
  const program = pasted(t, block)
  const { status, stdout, stderr } = spawnSync(process.execPath, [program], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  assert.match(stdout, /^\d+n \d+ \S+ uprobe:chdir \/\n\{\n {2}hits: 1,\n {2}filtered: 0,\n {2}delivered: 1,\n {2}lost: 0,/)
})

test('a program with listeners ends at once, as the README says, unless it waits as the guide shows', needs(), async (t) => {
  assert.match(readFileSync(join(ROOT, 'README.md'), 'utf8'), /probe\.on\('hit'.*\n```\n\nA tracer does not keep the process alive/)
  const attaching = [
    "import { Tracer } from 'uprobe'",
    'const tracer = new Tracer()',
    "const probe = await tracer.attach('uprobe:chdir', { pid: process.pid })",
    "setImmediate(() => console.log('attached'))",
  ].join('\n')
  const alone = spawnSync(process.execPath, [pasted(t, `${attaching}\nprobe.on('hit', console.log)`)], { encoding: 'utf8' })
  assert.deepEqual([alone.status, alone.stdout], [0, 'attached\n'], alone.stderr)
  const block = blocksOf('docs/guide.md').find((text) => text.includes("once(process, 'SIGINT')")) ?? ''
  const waiting = spawn(process.execPath, [pasted(t, `${attaching}\n${block}`)], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.after(() => waiting.kill('SIGKILL'))
  const ended = once(waiting, 'exit')
  // When it has turned once it waits, or has ended.
  await once(waiting.stdout, 'data')
  waiting.kill('SIGINT')
  assert.deepEqual(await ended, [0, null])
})
