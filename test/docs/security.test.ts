import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

const ROOT = join(__dirname, '../..')

test('SECURITY.md names every dependency that is installed with the package, and they are pinned', () => {
  const text = readFileSync(join(ROOT, 'SECURITY.md'), 'utf8')
  const [, sentence = ''] = /runtime dependencies are ([^.]*), pinned/.exec(text) ?? []
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { dependencies: Record<string, string> }
  assert.deepEqual([...sentence.matchAll(/`([^`]+)`/g)].map(([, name]) => name).sort(), Object.keys(dependencies).sort())
  for (const [name, version] of Object.entries(dependencies)) assert.match(version, /^\d+\.\d+\.\d+$/, name)
})
