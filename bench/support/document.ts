/**
 * The parts of docs/performance.md that are generated, between markers that Markdown does not show:
 *
 *     <!-- bench:NAME -->
 *     …
 *     <!-- /bench:NAME -->
 *
 * What stands outside of them people wrote, and it stays. A part without markers is appended under the heading that it brings with it; where the markers are there
 * already, so is a heading, and the part's own is left out.
 */

/** Puts a part into the document in the place of its last version. */
export function replacePart(document: string, name: string, markdown: string): string {
  const begin = `<!-- bench:${name} -->`
  const end = `<!-- /bench:${name} -->`
  const from = document.indexOf(begin)
  if (from < 0) {
    const { heading, body } = splitHeading(markdown)
    const head = heading === '' ? '' : `${heading}\n\n`
    return `${document.trimEnd()}\n\n${head}${begin}\n\n${body}\n\n${end}\n`
  }
  const to = document.indexOf(end, from)
  if (to < 0) throw new Error(`the part ${name} begins with ${begin} and does not end with ${end}`)
  return `${document.slice(0, from)}${begin}\n\n${splitHeading(markdown).body}\n\n${document.slice(to)}`
}

/** Divides a section into its heading, which may be missing, and the rest. */
export function splitHeading(markdown: string): { heading: string; body: string } {
  const text = markdown.trim()
  const [first = ''] = text.split('\n', 1)
  return first.startsWith('## ') ? { heading: first, body: text.slice(first.length).trim() } : { heading: '', body: text }
}
