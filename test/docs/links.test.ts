import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, it } from 'node:test'

const ROOT = join(__dirname, '../..')
const PAGES = [
  'README.md',
  'SECURITY.md',
  'CHANGELOG.md',
  ...readdirSync(join(ROOT, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join('docs', name)),
]

/** The anchors that a page's headings have on the usual hosts: lower case, without punctuation, hyphens for blanks. */
function anchors(text: string): string[] {
  return [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  )
}

describe('the documentation', () => {
  for (const page of PAGES) {
    it(`${page} links only to pages and headings that exist`, () => {
      const text = readFileSync(join(ROOT, page), 'utf8')
      for (const [, target = '', anchor = ''] of text.matchAll(/\]\(([^)#\s]*)(?:#([^)]*))?\)/g)) {
        if (/^https?:/.test(target)) continue
        const linked = target === '' ? text : readFileSync(join(ROOT, dirname(page), target), 'utf8')
        if (anchor !== '') assert.ok(anchors(linked).includes(anchor), `${page} links to ${target}#${anchor}`)
      }
    })
  }
})
