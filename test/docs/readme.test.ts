import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { needs } from '../support/needs.js'
import { tempDirectory } from '../support/temp.js'

const ROOT = join(__dirname, '../..')

test('the first code block of the README runs as it stands when it is pasted', needs(), (t) => {
  const [, block = ''] = /```js\n([\s\S]*?)```/.exec(readFileSync(join(ROOT, 'README.md'), 'utf8')) ?? []
  assert.match(block, /from 'uprobe'/)
  const directory = tempDirectory(t)
  const program = join(directory, 'pasted.mjs')
  writeFileSync(program, block)
  // As after `npm install uprobe`.
  spawnSync('mkdir', [join(directory, 'node_modules')])
  symlinkSync(ROOT, join(directory, 'node_modules/uprobe'))
  const { status, stdout, stderr } = spawnSync(process.execPath, [program], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  assert.match(stdout, /^\d+n \d+ \S+ uprobe:chdir \/\n\{\n {2}hits: 1,\n {2}filtered: 0,\n {2}delivered: 1,\n {2}lost: 0,/)
})
