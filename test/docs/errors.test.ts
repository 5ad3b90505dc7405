import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { ERROR_CODES } from '../../lib/errors.js'

const ROOT = join(__dirname, '../..')

describe('docs/errors.md', () => {
  const text = readFileSync(join(ROOT, 'docs/errors.md'), 'utf8')
  const sections = text.split(/^## /m).slice(1)

  it('has a heading for each code, and no other', () => {
    assert.deepEqual(sections.map((section) => section.split('\n', 1)[0]).sort(), Object.keys(ERROR_CODES).sort())
  })

  it('gives cause and remedy under each', () => {
    for (const section of sections) assert.match(section, /\*\*Cause\.\*\* \S[\s\S]*\*\*Remedy\.\*\* \S/, section.slice(0, 40))
  })

  it('describes every code that the source throws', () => {
    const sources = readdirSync(join(ROOT, 'lib'), { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'))
    const thrown = sources.flatMap((name) => readFileSync(join(ROOT, 'lib', name), 'utf8').match(/ERR_UPROBE_[A-Z0-9_]+/g) ?? [])
    for (const code of new Set(thrown)) assert.ok(code in ERROR_CODES, `${code} is used and not listed`)
  })
})
